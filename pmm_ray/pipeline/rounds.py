"""The last steps: pseudo-masks -> segmenter -> better pseudo-masks -> a fresh one (3.4, 3.5).

masks of round 0 -> train_segmenter-r0 -> predict_masks-r1 -> train_segmenter-r1 -> ...
                         |                     |
             masks of the held-out split   compared with the masks before
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from pmm_ray.config import ConfigError, RunConfig, SegmenterConfig
from pmm_ray.pipeline.run import Run, Step
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import read_index
from pmm_ray.runtime.core.stage import Stage


@dataclass(frozen=True)
class Variant:
    """A segmenter and its rounds: the run's own, or one beside it, a row of a table.

    Attributes:
        name: part of its stages' names; empty: the run's own segmenter.
        segmenter: fields of the section that differ.
        rounds: cyclic rounds; None: the recipe's.
        masks: the step whose masks the first round learns from.
    """

    name: str = ""
    segmenter: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | None = None
    masks: str = "make_masks"

    def round(self, number: int) -> str:
        """What a round is called in the names of its stages."""
        return f"{self.name}-r{number}" if self.name else f"r{number}"

    def title(self, what: str, number: int) -> str:
        """How a round's masks are called in the report."""
        return ", ".join(filter(None, (what, self.name, f"round {number}")))

    def count(self, config: RunConfig) -> int:
        return config.cycles.rounds if self.rounds is None else self.rounds

    def training_masks(self, number: int) -> str:
        """The step whose masks a round's segmenter learns from."""
        return f"predict_masks-{self.round(number)}" if number else self.masks

    def held_out_masks(self, number: int, config: RunConfig) -> str:
        """The step that masks the held-out split with a round's segmenter."""
        return f"predict_masks-{self.round(number)}-{config.data.held_out_split}"


def rounds(config: RunConfig, variant: Variant | None = None) -> list[Step]:
    """The steps of all rounds. `stop_when` and `if_better` may end them early.

    Args:
        variant: default the run's own segmenter.
    """
    variant = variant or Variant()
    found: list[Step] = []
    for number in range(variant.count(config) + 1):
        if number and config.cycles.update == "if_better":
            found.append(_choose(variant, number))
        if number:
            found += [_relabel(variant, number), _compare(variant, number)]
        if number and config.evaluate.train_masks:
            found.append(_score_cyclic(variant, number, config))
        found += [_train(variant, number), _predict_held_out(variant, number, config)]
        found.append(_score_held_out(variant, number, config))
    return found


def evaluation(name: str, title: str | Callable[[Run], str], masks: str, split: str) -> Step:
    """The scores of a step's masks, on the images of a split that have truth, if there are any."""

    def make(run: Run) -> Stage | None:
        from pmm_ray.stages import evaluate

        if masks not in run.folders:
            return None
        among = read_index(run[masks].uri).select(run.data.with_truth(split))
        if not len(among):
            return None
        text = title if isinstance(title, str) else title(run)
        return evaluate.stage(run.data, run[masks], among, title=text, split=split, name=name)

    return Step(name, make, measures=True)


def _train(variant: Variant, number: int) -> Step:
    """(v) Pseudo-masks -> a fresh segmenter; under-fitting is pretended in round 0 only."""
    name = f"train_segmenter-{variant.round(number)}"

    def make(run: Run) -> Stage:
        from pmm_ray.stages import train_segmenter

        config, masks = section(run.config), run[variant.training_masks(number)]
        return train_segmenter.stage(config, run.config, run.data, masks, round=number, name=name)

    def section(config: RunConfig) -> SegmenterConfig:
        return _with(config.segmenter, variant.segmenter)

    return Step(name, make, section=section, cycle=_cycle(variant))


def _predict_held_out(variant: Variant, number: int, config: RunConfig) -> Step:
    return _predict(
        variant, number, number, variant.held_out_masks(number, config), config.data.held_out_split
    )


def _relabel(variant: Variant, number: int) -> Step:
    """(vi) Segmenter -> the next round's masks of the training split (paper 3.5)."""
    return _predict(variant, number - 1, number, variant.training_masks(number), None)


def _predict(
    variant: Variant, segmenter: int, number: int, name: str, held_out: str | None
) -> Step:
    def make(run: Run) -> Stage | None:
        from pmm_ray.stages import predict_masks

        images = run.data.split(held_out or run.config.data.train_split)
        if held_out and not len(images):
            return None
        model = predict_masks.Model.of(run[f"train_segmenter-{variant.round(segmenter)}"])
        config = run.config.predict
        if held_out:  # with the images' labels the score would not be the segmenter's
            config = config.model_copy(update={"use_image_labels": False})
        return predict_masks.stage(config, run.data, model, images, round=number, name=name)

    return Step(name, make, pool="predict.actors", cycle=_cycle(variant))


def _score_held_out(variant: Variant, number: int, config: RunConfig) -> Step:
    masks, title = variant.held_out_masks(number, config), variant.title("Segmenter", number)
    name = f"evaluate-segmenter-{variant.round(number)}"
    return evaluation(name, title, masks, config.data.held_out_split)


def _score_cyclic(variant: Variant, number: int, config: RunConfig) -> Step:
    """A round's masks, where the training split has ground truth and the recipe asks."""
    masks, title = variant.training_masks(number), variant.title("Cyclic masks", number)
    name = f"evaluate-cyclic-{variant.round(number)}"
    return evaluation(name, title, masks, config.data.train_split)


def _choose(variant: Variant, number: int) -> Step:
    """Whether the last segmenter may replace the masks that it learnt from (`if_better`)."""
    name = f"choose_masks-{variant.round(number)}"

    def make(run: Run) -> Stage:
        from pmm_ray.stages import choose_masks

        split = run.config.data.held_out_split
        taught = variant.masks if number == 1 else variant.held_out_masks(number - 2, run.config)
        segmenter = run.evaluation(variant.held_out_masks(number - 1, run.config))
        supervision = run.evaluation(taught)
        if segmenter is None or supervision is None:
            raise CannotRunError(
                f"cycles.update: if_better has no scores of {taught} on split {split!r}"
            )
        return choose_masks.stage(segmenter, supervision, split, name)

    def refused(run: Run) -> bool:
        summary = run[name].finished()
        better, scores = bool(summary.details["update"]), summary.metrics
        run.say(
            f"{name}: pixel labels used ({run.config.data.held_out_split}, {summary.images} "
            f"images): segmenter {scores['segmenter'] * 100:.1f}, its supervision "
            f"{scores['supervision'] * 100:.1f} mIoU %: "
            f"{'the masks are replaced' if better else 'the masks stay, the cycle ends'}"
        )
        return not better

    return Step(name, make, after=refused, cycle=_cycle(variant))


def _compare(variant: Variant, number: int) -> Step:
    """A round's masks beside those before; where they agree enough, the cycle ends."""
    name = f"compare_masks-{variant.round(number)}"

    def make(run: Run) -> Stage:
        from pmm_ray.stages import compare_masks

        earlier, later = (run[variant.training_masks(n)] for n in (number - 1, number))
        return compare_masks.stage(earlier, later, name)

    def settled(run: Run) -> bool:
        agreement, limit = run[name].finished().metrics["agreement"], run.config.cycles.stop_when
        stops = limit is not None and agreement > limit
        run.say(
            f"{name}: {agreement * 100:.1f} % of the pixels keep their class"
            + (f", more than cycles.stop_when {limit}: the cycle ends" if stops else "")
        )
        return stops

    return Step(name, make, after=settled, measures=True, cycle=_cycle(variant))


def _cycle(variant: Variant) -> str:
    return f"rounds of {variant.name or 'the run'}"


def _with(section: SegmenterConfig, fields: Mapping[str, Any]) -> SegmenterConfig:
    """The section with some fields replaced. Raises ConfigError where they do not fit it."""
    if not fields:
        return section
    try:
        return SegmenterConfig.model_validate(section.model_dump() | dict(fields))
    except ValidationError as error:
        reasons = "; ".join(item["msg"].removeprefix("Value error, ") for item in error.errors())
        values = ", ".join(f"{name} = {value}" for name, value in fields.items())
        raise ConfigError(f"a row of the table needs {values}: {reasons}") from error
