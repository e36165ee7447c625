"""What tables 4, 5 and 6 share: segmenters trained on the run's pseudo-masks, scored held out."""

from __future__ import annotations

from pmm_ray.config import RunConfig
from pmm_ray.pipeline.rounds import Variant, evaluation
from pmm_ray.pipeline.run import Run, Step
from pmm_ray.pipeline.steps import choose_alpha, mask_steps, masks_of, steps_to_cams, walk_steps
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.stage import Stage

WALKED = "make_masks-walked"
"""The step whose masks are the argmax of the scores after a random walk."""


def steps_to_masks(number: int, config: RunConfig, images: int | None) -> list[Step]:
    """What every row begins with: CAMs and pseudo-masks, as the recipe makes them.

    Raises:
        CannotRunError: a choice of images, of which such a table makes none.
    """
    if images is not None:
        raise CannotRunError(
            f"table {number} trains on the whole training split: --images does not apply; make "
            "data or segmenter.iterations smaller with --set"
        )
    return [
        *steps_to_cams(config, f"table {number}"),
        *(walk_steps() if config.affinity.enabled else []),
        *([choose_alpha(config)] if config.masks.alpha == "auto" else []),
        *mask_steps(config),
    ]


def walked_masks(config: RunConfig) -> list[Step]:
    """The class with the largest score after a random walk (the baseline of Tab. 4 and 6)."""

    def make(run: Run) -> Stage:
        from pmm_ray.stages.make_masks import WALK

        return masks_of(run, run["walk_cams"], WALK, WALKED)

    title, split = "CAM and random walk", config.data.held_out_split
    scored = evaluation("evaluate-walked", title, WALKED, split)
    return [*walk_steps(), Step(WALKED, make, pool="masks.tasks"), scored]


def variant_of(
    config: RunConfig, kind: str, name: str | None = None, masks: str = "make_masks"
) -> Variant:
    """A segmenter whose under-fitting is of some kind, without cyclic rounds.

    Args:
        kind: of `segmenter.underfitting`.
        name: see `Variant`; default the kind.
        masks: see `Variant`.
    """
    underfitting = config.segmenter.underfitting.model_dump() | {"kind": kind}
    return Variant(name or kind, {"underfitting": underfitting}, rounds=0, masks=masks)


def trained_on(config: RunConfig, text: str) -> str:
    """What a reader of the table must know."""
    return (
        f"mIoU of split {config.data.held_out_split!r} with its ground truth (pixel labels used), "
        f"{config.segmenter.iterations} iterations, seed {config.seed}; {text}."
    )
