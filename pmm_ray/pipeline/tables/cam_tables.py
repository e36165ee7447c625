"""The parts of Tab. 1-3: classifiers, their held-out CAMs, and scored ways to masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from pmm_ray.config import (
    AnyClassifierConfig,
    CamsConfig,
    ClassifierConfig,
    MulticropConfig,
    RunConfig,
)
from pmm_ray.pipeline.run import Run, Step
from pmm_ray.pipeline.steps import train_classifier, train_multicrop
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.stage import Stage
from pmm_ray.stages.make_masks import WALK
from pmm_ray.stages.sweep_masks import CAM_ALPHAS, grid, sample

_Section = TypeVar("_Section", bound=AnyClassifierConfig)


@dataclass(frozen=True)
class Score:
    """A cell of a table."""

    mean_iou: float
    alpha: float | None
    """The background exponent that gave it."""
    images: int
    split: str

    @property
    def exponent(self) -> str | None:
        """As it is shown."""
        return None if self.alpha is None else f"{self.alpha:g}"


def whole_cams(config: RunConfig) -> CamsConfig:
    """Maps of whole images: the recipe's, or those that its base masks come from."""
    return config.cams if config.cams.kind == "multi_scale" else config.base.cams


def window_cams(config: RunConfig) -> CamsConfig:
    """Maps of windows: the recipe's, or of the windows that it would train on."""
    if config.cams.kind == "multi_crop":
        return config.cams
    update = {"kind": "multi_crop", "crops": config.multicrop.crops}
    return config.cams.model_copy(update=update)


def classifier(backbone: str, config: RunConfig) -> Step:
    """The recipe's first classifier on another backbone."""

    def make(run: Run, section: ClassifierConfig, name: str) -> Stage:
        from pmm_ray.stages import train_classifier

        return train_classifier.stage(section, run.config, run.data, name)

    return _on_backbone(train_classifier(), "classifier", make, backbone, config)


def multicrop(backbone: str, config: RunConfig) -> Step:
    """The recipe's second classifier on another backbone, trained on the recipe's windows."""

    def make(run: Run, section: MulticropConfig, name: str) -> Stage:
        from pmm_ray.stages import train_multicrop

        return train_multicrop.stage(section, run.config, run["make_base_masks"], name)

    return _on_backbone(train_multicrop(), "multicrop", make, backbone, config)


def _on_backbone(
    own: Step, key: str, make: Callable[..., Stage], backbone: str, config: RunConfig
) -> Step:
    """A training of the recipe on another backbone; `own` where that is the recipe's."""
    if backbone == getattr(config, key).network:
        return own
    name = f"{own.name}-{backbone}"

    def section(config: RunConfig) -> AnyClassifierConfig:
        return with_backbone(getattr(config, key), backbone, config)

    return Step(
        name,
        lambda run: make(run, section(run.config), name),
        check=partial(check_backbone, backbone),
        section=section,
    )


def held_out_cams(
    name: str, maps: Callable[[RunConfig], CamsConfig], network: str, images: int | None
) -> Step:
    """Maps of the scored images alone, by the classifier that a step trained."""
    stage_name = f"make_cams-{name}"

    def make(run: Run) -> Stage:
        from pmm_ray.stages import make_cams

        chosen = run.data.images.select(scored(run, images))
        ids, config = chosen.image_ids, maps(run.config)
        return make_cams.stage(
            config, run.data, run[network], chosen, chosen_by=ids, name=stage_name
        )

    return Step(stage_name, make, pool="cams.actors")


def score_step(name: str, cams: str, method: str, images: int | None) -> Step:
    """One way from the CAMs of a step to masks, under every exponent of the table."""
    stage_name = score_name(name, method)

    def make(run: Run) -> Stage:
        from pmm_ray.stages import sweep_masks

        combinations = grid({} if method == WALK else {"alpha": exponents(method, run.config)})
        # the exponents of the table take the place of the recipe's
        masks = run.config.masks.model_copy(update={"alpha": 1.0})
        return sweep_masks.stage(
            run.config.model_copy(update={"masks": masks}),
            run.data,
            run[cams],
            combinations,
            among=scored(run, images),
            method=method,
            name=stage_name,
        )

    def check(run: Run) -> None:
        read_score(run, name, method)

    return Step(stage_name, make, after=check, pool="masks.tasks")


def exponents(method: str, config: RunConfig) -> Sequence[float]:
    """Those that a way to masks is scored under; CAM argmax costs little, and has all."""
    return CAM_ALPHAS if method == "cam_argmax" else config.ablate.alphas


def score_name(name: str, method: str) -> str:
    return f"sweep_masks-{name}-{method}"


def read_score(run: Run, name: str, method: str) -> Score:
    """The best of what `score_step` found.

    Raises:
        CannotRunError: no image could be scored.
    """
    summary = run[score_name(name, method)].finished()
    details = summary.details
    if "not_scored" in details:
        raise CannotRunError(f"{summary.stage}: {details['not_scored']}: the table would be empty")
    return Score(
        summary.metrics["mean_iou"],
        details["chosen"].get("alpha"),
        summary.images,
        details["split"],
    )


def scored(run: Run, images: int | None) -> list[str]:
    """Ids of the images that a table is scored on: the same ones in every row."""
    return sample(run.data.scorable(run.config.data.held_out_split), images, run.config.seed)


def table_backbones(config: RunConfig) -> tuple[str, ...]:
    """The networks of Tab. 1."""
    own = (config.classifier.network, config.multicrop.network)
    return config.ablate.backbones or tuple(dict.fromkeys(own))


def with_backbone(section: _Section, backbone: str, config: RunConfig) -> _Section:
    """A classifier's section with another backbone and that one's weights.

    They are those of `ablate.weights`, else the recipe's for this backbone, else `imagenet`.
    """
    own = {
        part.network: {name: getattr(part, name) for name in ("model", "backbone", "weights")}
        for part in (config.multicrop, config.classifier)
    }
    update = own.get(backbone, {"model": None, "backbone": backbone, "weights": "imagenet"})
    if backbone in config.ablate.weights:
        update["weights"] = config.ablate.weights[backbone]
    return section.model_copy(update=update)


def check_backbone(backbone: str, config: RunConfig) -> None:
    """Refuse a table if some of its weights are missing, before it trains anything.

    Raises:
        CannotRunError: they are not where they should be.
    """
    from pmm_ray.nets.weight_files import pretrained_file

    try:
        uri = pretrained_file(with_backbone(config.classifier, backbone, config))
        if uri is not None and not storage.exists(uri):
            raise CannotRunError(f"there is no file {uri}")
    except CannotRunError as error:
        raise CannotRunError(
            f"{error}; table 1 takes them from ablate.weights.{backbone}, and its networks "
            "from ablate.backbones"
        ) from error


def measured_on(scores: Sequence[Score], config: RunConfig) -> str:
    """What a table was measured on."""
    images, split = min(score.images for score in scores), scores[0].split
    alphas = ", ".join(f"{alpha:g}" for alpha in config.ablate.alphas)
    return (
        f"mIoU in % on {images} images of {split}, with their pixel labels; best background "
        f"exponent of {alphas}; of CAM alone the best of {max(CAM_ALPHAS):g} to "
        f"{min(CAM_ALPHAS):g} (thresholds 0.02 to 0.6). The paper's column is VOC 2012 val."
    )
