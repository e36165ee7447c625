"""What Tab. 1-3 are made of: classifiers, their held-out CAMs, and scored ways to masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pmm_ray.config import AnyClassifierConfig, CamsConfig, RunConfig, section_hash
from pmm_ray.pipeline import Pipeline
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import index_file, read_index
from pmm_ray.runtime.core.stage import StageFolder, Summary

if TYPE_CHECKING:
    from pmm_ray.stages.score_cams import Way

BASE_STAGES = ("make_base_cams", "make_base_masks")
IMAGES = 100
"""Held-out images scored, unless `--images` says otherwise."""
_Section = TypeVar("_Section", bound=AnyClassifierConfig)


@dataclass(frozen=True)
class Score:
    """A cell of a table."""

    mean_iou: float
    alpha: float | None
    """The background exponent that gave it."""
    images: int
    split: str


class TablePipeline(Pipeline):
    """The stages of a table; every one is named by what it is, and shared by the tables."""

    images = IMAGES

    def import_data(self) -> None:
        """The manifest, refused before anything is trained where nothing could be scored."""
        super().import_data()
        self._scored()

    @property
    def whole_cams(self) -> CamsConfig:
        """Maps of whole images: the recipe's, or those that its base masks come from."""
        cams = self.config.cams
        return cams if cams.kind == "multi_scale" else self.config.base.cams

    @property
    def window_cams(self) -> CamsConfig:
        """Maps of windows: the recipe's, or of the windows that it would train on."""
        cams = self.config.cams
        if cams.kind == "multi_crop":
            return cams
        update = {"kind": "multi_crop", "crops": self.config.multicrop.crops}
        return cams.model_copy(update=update)

    def classifier(self, backbone: str) -> StageFolder:
        """The recipe's first classifier on another backbone."""
        own = self.config.classifier
        if backbone == own.backbone:
            return self.train_classifier()
        from pmm_ray.stages import train_classifier

        config = with_backbone(own, backbone, self.config)
        return self._stage_of_training(
            f"train_classifier-{backbone}",
            config,
            [train_classifier.CODE_VERSION],
            lambda folder: train_classifier.run(config, self.session.context(), folder),
        )

    def base_masks(self) -> StageFolder:
        """Base masks of the recipe's first classifier, whatever the backbone of the second."""
        return self.make_base_masks(self.make_base_cams(self.train_classifier()))

    def multicrop(self, backbone: str, base_masks: StageFolder) -> StageFolder:
        """The recipe's second classifier on another backbone, trained on windows."""
        own = self.config.multicrop
        if backbone == own.backbone:
            return self.train_multicrop(base_masks)
        from pmm_ray.stages import train_multicrop

        config = with_backbone(own, backbone, self.config)
        return self._stage_of_training(
            f"train_multicrop-{backbone}",
            config,
            [base_masks.hash, len(read_index(base_masks.uri)), train_multicrop.CODE_VERSION],
            lambda folder: train_multicrop.run(
                config, self.session.context(), folder, masks_uri=base_masks.uri
            ),
        )

    def _stage_of_training(
        self, name: str, config: AnyClassifierConfig, more: Sequence[Any], body: Any
    ) -> StageFolder:
        from pmm_ray.cam_pipeline import weights_hash

        stage_hash = section_hash(
            config,
            weights_hash(config.weights, config.backbone),
            self.config.seed,
            self._manifest_hash,
            self.config.data.train_split,
            *more,
        )
        return self.session.stage(name, stage_hash, body)

    def held_out_cams(self, name: str, config: CamsConfig, classifier: StageFolder) -> StageFolder:
        """Maps of the scored images alone."""
        from pmm_ray.stages import make_cams

        images = index_file(self.session.manifest.uri).select(self._scored())
        return self.session.stage(
            f"make_cams-{name}",
            section_hash(
                config,
                self._manifest_hash,
                images.image_ids,
                classifier.result,
                make_cams.CODE_VERSION,
            ),
            lambda folder: make_cams.run(
                config,
                self.session.context(),
                folder,
                images=images,
                checkpoint_uri=classifier.path("model.pt"),
            ),
            input_rows=len(images),
        )

    def score(self, name: str, cams: StageFolder, way: Way) -> Score:
        """One way from these CAMs to masks, under the best background exponent."""
        from pmm_ray.stages import score_cams

        masks, split = self.config.masks, self.config.data.held_out_split
        # the exponents of the table take the place of the recipe's
        masks = masks.model_copy(update={"alpha": 1.0})
        alphas = self.config.ablate.alphas
        index = read_index(cams.uri).select(self._scored())

        def run(folder: StageFolder) -> Summary:
            return score_cams.run(
                masks,
                self.session.context(),
                folder,
                cams=index,
                images=self._images,
                way=way,
                alphas=alphas,
                split=split,
            )

        folder = self.session.stage(
            f"score_cams-{name}-{way}",
            section_hash(
                masks,
                list(alphas),
                cams.hash,
                self._manifest_hash,
                *self._truth,
                self._scored(),
                score_cams.CODE_VERSION,
            ),
            run,
            input_rows=len(index),
        )
        summary = folder.summary()
        assert summary is not None, "a stage writes its summary last"
        details = summary.details
        return Score(summary.metrics["mean_iou"], details["alpha"], summary.images, split)

    def _scored(self) -> list[str]:
        """Ids of the images that a table is scored on: the same ones in every row."""
        from pmm_ray.stages.sweep_masks import sample

        split = self.config.data.held_out_split
        chosen = sample(self._with_truth(split), self.images, self.config.seed)
        if not chosen:
            raise CannotRunError(
                f"no image of split {split!r} has a ground-truth mask to score a table against"
            )
        return chosen


def table_backbones(config: RunConfig) -> tuple[str, ...]:
    """The networks of Tab. 1."""
    own = (config.classifier.backbone, config.multicrop.backbone)
    return config.ablate.backbones or tuple(dict.fromkeys(own))


def with_backbone(section: _Section, backbone: str, config: RunConfig) -> _Section:
    """A classifier's section with another backbone and that one's weights.

    They are those of `ablate.weights`, else the recipe's for this backbone, else `imagenet`.
    """
    weights: dict[str, str] = {
        part.backbone: part.weights for part in (config.multicrop, config.classifier)
    }
    weights |= {str(name): file for name, file in config.ablate.weights.items()}
    return section.model_copy(
        update={"backbone": backbone, "weights": weights.get(backbone, "imagenet")}
    )


def check_backbones(config: RunConfig) -> None:
    """Refuse a table of which some weights are missing, before anything is trained.

    Raises:
        CannotRunError: they are not where they should be.
    """
    from pmm_ray.nets.weight_files import find_weights

    for backbone in table_backbones(config):
        section = with_backbone(config.classifier, backbone, config)
        try:
            find_weights(section.weights, backbone)
        except CannotRunError as error:
            raise CannotRunError(
                f"{error}; table 1 takes them from ablate.weights.{backbone}, and its networks "
                "from ablate.backbones"
            ) from error


def note(scores: Sequence[Score], config: RunConfig) -> str:
    """What a table was measured on."""
    images, split = min(score.images for score in scores), scores[0].split
    alphas = ", ".join(f"{alpha:g}" for alpha in config.ablate.alphas)
    return (
        f"mIoU in % on {images} images of {split}, with their pixel labels; best background "
        f"exponent of {alphas}. The paper's column is VOC 2012 val."
    )
