"""The last stages: pseudo-masks -> segmenter -> better pseudo-masks -> a fresh one (3.4, 3.5).

masks of round 0 -> train_segmenter-r0 -> predict_masks-r1 -> train_segmenter-r1 -> ...
                         |                     |
             masks of the held-out split   compared with the masks before
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pmm_ray.cam_pipeline import CamPipeline
from pmm_ray.config import PredictConfig, RunConfig, SegmenterConfig, section_hash
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import TableIndex, index_file, read_index
from pmm_ray.runtime.core.session import Session
from pmm_ray.runtime.core.stage import StageFolder, Summary

S = TypeVar("S", SegmenterConfig, PredictConfig)


@dataclass(frozen=True)
class Variant:
    """A segmenter whose rounds stand beside the run's own: a row of an ablation.

    Attributes:
        name: part of its stages' names; empty: the run's own segmenter.
        segmenter: fields of the section that differ.
        predict: likewise.
        rounds: cyclic rounds; None: the recipe's.
    """

    name: str = ""
    segmenter: Mapping[str, Any] = field(default_factory=dict)
    predict: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | None = None

    def round(self, number: int) -> str:
        """How a round is called in the names of its stages."""
        return f"{self.name}-r{number}" if self.name else f"r{number}"

    def title(self, what: str, number: int) -> str:
        """How a round's masks are called in the report."""
        return ", ".join([what, *([self.name] if self.name else []), f"round {number}"])

    def count(self, config: RunConfig) -> int:
        return config.cycles.rounds if self.rounds is None else self.rounds


def planned_rounds(config: RunConfig, variant: Variant | None = None) -> tuple[str, ...]:
    """Names of the stages of all rounds, in order. `stop_when` and `if_better` may end them early.

    Args:
        config: the recipe.
        variant: default the run's own segmenter.
    """
    variant = variant or Variant()
    plan: list[str] = []
    for number in range(variant.count(config) + 1):
        name = variant.round(number)
        if number > 0:
            plan += [f"choose_masks-{name}"] if config.cycles.update == "if_better" else []
            plan += [f"predict_masks-{name}", f"compare_masks-{name}"]
            plan += [f"evaluate-cyclic-{name}"] if config.evaluate.train_masks else []
        plan += [f"train_segmenter-{name}", f"predict_masks-{name}-{config.data.held_out_split}"]
        plan += [f"evaluate-segmenter-{name}"]
    return tuple(plan)


class CyclePipeline(CamPipeline):
    """The rounds of one session, each given the masks that the one before made."""

    def __init__(self, session: Session) -> None:
        super().__init__(session)
        self.compares = ""
        """What needs scores on the held-out split; refused early where there can be none."""
        if session.config.cycles.update == "if_better" and session.config.cycles.rounds:
            self.compares = "cycles.update: if_better"
        self._evaluations: dict[str, StageFolder] = {}  # stage that made masks -> their evaluation
        self._agreement: dict[str, float] = {}  # round -> with the masks before

    def _open_manifest(self) -> None:
        split = self.config.data.held_out_split
        if self.compares and not self._with_truth(split):
            instead = ": use cycles.update: always" if "if_better" in self.compares else ""
            raise CannotRunError(
                f"{self.compares} compares on images of split {split!r} with ground-truth masks, "
                f"and this data set has none{instead}"
            )
        super()._open_manifest()

    def held_out_score(self, stage: str) -> float | None:
        """mIoU 0..1 of the masks that a stage made of the held-out split; None: not scored."""
        scored = self._evaluations.get(stage)
        return None if scored is None else _summary(scored).metrics.get("mean_iou")

    def agreement(self, number: int, variant: Variant) -> float | None:
        """Share of pixels whose class a round's masks kept, 0..1; None: not compared."""
        return self._agreement.get(variant.round(number))

    def run_rounds(self, masks: StageFolder, variant: Variant | None = None) -> None:
        """Train a segmenter on the masks, and replace them as often as the recipe says."""
        variant = variant or Variant()
        segmenter = self.train_segmenter(masks, 0, variant)
        for number in range(1, variant.count(self.config) + 1):
            if not self._update(masks, number, variant):
                return
            earlier, masks = masks, self.relabel(segmenter, number, variant)
            settled = self._settled(earlier, masks, number, variant)
            self.score_training_masks(masks, number, variant)
            if settled:
                return
            segmenter = self.train_segmenter(masks, number, variant)

    def train_segmenter(self, masks: StageFolder, number: int, variant: Variant) -> StageFolder:
        """(v) Pseudo-masks -> a fresh segmenter; under-fitting is pretended in round 0 only."""
        from pmm_ray.stages import train_segmenter

        config = _with(self.config.segmenter, variant.segmenter)
        stage_hash = section_hash(
            config,
            *train_segmenter.model_identity(config, self.config.data.held_out_split),
            # weights that are chosen by the truth depend on how it was drawn
            *(self._truth if train_segmenter.chooses(config) else ()),
            self.config.seed,
            masks.hash,
            len(read_index(masks.uri)),
            self.config.data.train_split,
            number,
            train_segmenter.CODE_VERSION,
        )
        segmenter = self.session.stage(
            f"train_segmenter-{variant.round(number)}",
            stage_hash,
            lambda folder: train_segmenter.run(
                config, self.session.context(), folder, masks_uri=masks.uri, round=number
            ),
        )
        held_out = self.config.data.held_out_split
        images = index_file(self.session.manifest.uri, {"split": [held_out]})
        if len(images):
            name = variant.round(number)
            predicted = self._predict(
                f"predict_masks-{name}-{held_out}", segmenter, images, number, variant
            )
            title = variant.title("Segmenter", number)
            self._evaluate(f"evaluate-segmenter-{name}", title, predicted, held_out)
        return segmenter

    def relabel(self, segmenter: StageFolder, number: int, variant: Variant) -> StageFolder:
        """(vi) Segmenter -> the next round's masks of the training split (paper 3.5)."""
        images = index_file(self.session.manifest.uri, {"split": [self.config.data.train_split]})
        name = f"predict_masks-{variant.round(number)}"
        return self._predict(name, segmenter, images, number, variant)

    def score_training_masks(self, masks: StageFolder, number: int, variant: Variant) -> None:
        """Score a round's masks where the training split has ground truth and the recipe asks."""
        if self.config.evaluate.train_masks:
            name, title = variant.round(number), variant.title("Cyclic masks", number)
            train = self.config.data.train_split
            self._evaluate(f"evaluate-cyclic-{name}", title, masks, train)

    def _update(self, masks: StageFolder, number: int, variant: Variant) -> bool:
        """Whether the last segmenter may replace the masks that it learnt from."""
        if self.config.cycles.update == "always":
            return True
        from pmm_ray.stages import choose_masks

        held_out = self.config.data.held_out_split
        taught = masks.stage if number == 1 else self.held_out_stage(number - 2, variant)
        segmenter = self._evaluations.get(self.held_out_stage(number - 1, variant))
        supervision = self._evaluations.get(taught)
        if segmenter is None or supervision is None:
            raise CannotRunError(
                f"cycles.update: if_better has no scores of {taught} on split {held_out!r}"
            )
        chosen = self.session.stage(
            f"choose_masks-{variant.round(number)}",
            section_hash(segmenter.result, supervision.result, choose_masks.CODE_VERSION),
            lambda folder: choose_masks.run(
                folder,
                segmenter=segmenter,
                supervision=supervision,
                split=held_out,
                space=self.session.manifest.label_space,
            ),
        )
        summary = _summary(chosen)
        better = bool(summary.details["update"])
        scores = summary.metrics
        self.session.progress.message(
            f"{chosen.stage}: pixel labels used ({held_out}, {summary.images} images): segmenter "
            f"{scores['segmenter'] * 100:.1f}, its supervision {scores['supervision'] * 100:.1f} "
            f"mIoU %: {'the masks are replaced' if better else 'the masks stay, the cycle ends'}"
        )
        return better

    def held_out_stage(self, number: int, variant: Variant) -> str:
        """The stage that masks the held-out split with a round's segmenter."""
        return f"predict_masks-{variant.round(number)}-{self.config.data.held_out_split}"

    def _settled(
        self, earlier: StageFolder, later: StageFolder, number: int, variant: Variant
    ) -> bool:
        """Compare a round's masks with those before; whether they agree enough to end the cycle."""
        from pmm_ray.stages import compare_masks

        before, after = read_index(earlier.uri), read_index(later.uri)
        both = after.select(before.image_ids)
        compared = self.session.stage(
            f"compare_masks-{variant.round(number)}",
            section_hash(
                earlier.stage, earlier.hash, later.stage, later.hash, compare_masks.CODE_VERSION
            ),
            lambda folder: compare_masks.run(
                self.session.context(),
                folder,
                earlier=before,
                later=both,
                images=self._images,
                stages=(earlier.stage, later.stage),
            ),
            input_rows=len(both),
        )
        agreement = _summary(compared).metrics["agreement"]
        self._agreement[variant.round(number)] = agreement
        limit = self.config.cycles.stop_when
        stops = limit is not None and agreement > limit
        self.session.progress.message(
            f"{compared.stage}: {agreement * 100:.1f} % of the pixels keep their class"
            + (f", more than cycles.stop_when {limit}: the cycle ends" if stops else "")
        )
        return stops

    def _predict(
        self,
        name: str,
        segmenter: StageFolder,
        images: TableIndex,
        number: int,
        variant: Variant,
    ) -> StageFolder:
        from pmm_ray.stages import predict_masks

        config = _with(self.config.predict, variant.predict)
        return self.session.stage(
            name,
            section_hash(config, self._manifest_hash, segmenter.result, predict_masks.CODE_VERSION),
            lambda folder: predict_masks.run(
                config,
                self.session.context(),
                folder,
                images=images,
                checkpoint_uri=segmenter.path("model.pt"),
                round_number=number,
            ),
            input_rows=len(images),
        )

    def _evaluate(self, name: str, title: str, masks: StageFolder, split: str) -> None:
        """Score the masks of a split's images that have ground truth, if there are any."""
        from pmm_ray.stages import evaluate

        index = read_index(masks.uri).select(self._with_truth(split))
        if not len(index):
            return
        scored = self.session.stage(
            name,
            section_hash(
                masks.stage, masks.hash, self._manifest_hash, *self._truth, evaluate.CODE_VERSION
            ),
            lambda folder: evaluate.run(
                self.session.context(),
                folder,
                masks=index,
                images=self._images,
                title=title,
                split=split,
                masks_stage=masks.stage,
            ),
            input_rows=len(index),
        )
        if split == self.config.data.held_out_split:
            self._evaluations[masks.stage] = scored


def _with(section: S, fields: Mapping[str, Any]) -> S:
    """The section with some fields replaced, checked."""
    return type(section).model_validate(section.model_dump() | dict(fields)) if fields else section


def _summary(folder: StageFolder) -> Summary:
    summary = folder.summary()
    assert summary is not None, f"{folder.stage} has just been finished"
    return summary
