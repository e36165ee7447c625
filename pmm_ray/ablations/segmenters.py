"""What tables 4, 5 and 6 share: segmenters trained on the run's pseudo-masks, scored held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pmm_ray.ablations import Ablation, open_session
from pmm_ray.ablations.table import PaperTable, keep_table, table_stage
from pmm_ray.config import RunConfig, load_recipe
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.guard import guarded
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.walk_pipeline import WALK_STAGES

if TYPE_CHECKING:
    from pmm_ray.cycle_pipeline import Variant
    from pmm_ray.pipeline import Pipeline
    from pmm_ray.runtime.core.stage import StageFolder

Rows = Callable[["Pipeline", "StageFolder", "StageFolder"], PaperTable]
"""Makes a table from the CAMs and the pseudo-masks."""
CAM_STAGES = ("make_masks-cam_argmax", "evaluate-cam_argmax")
WALKED_STAGES = (*WALK_STAGES, "make_masks-walked", "evaluate-walked")


def make_table(
    request: Ablation,
    number: int,
    variants: Sequence[Variant],
    rows: Rows,
    more: Sequence[str] = (),
) -> int:
    """Run what every row begins with, then the rows, and keep the table.

    Args:
        request: what the user asked for.
        number: of the table.
        variants: segmenters that the rows train.
        rows: trains and scores them.
        more: stages beside the recipe's and the variants'.

    Returns:
        The exit code, as of `run_recipe`.
    """

    def body(progress: Progress) -> None:
        if request.images is not None:
            raise CannotRunError(
                f"table {number} trains on the whole training split: --images does not apply; make "
                "data or segmenter.iterations smaller with --set"
            )
        stages = _planned(load_recipe(request.recipe, request.settings), variants, more)
        with open_session(request, (*stages, table_stage(number)), progress) as (session, pipeline):
            session.hold()
            pipeline.check_files()
            pipeline.compares = f"table {number}"
            cams = pipeline.up_to_cams()
            used = pipeline.walk(cams) if session.config.affinity.enabled else cams
            pipeline.choose_alpha(used)
            keep_table(session, rows(pipeline, cams, pipeline.make_masks(used)))

    return guarded(body)


def _planned(
    config: RunConfig, variants: Sequence[Variant], more: Sequence[str]
) -> tuple[str, ...]:
    """The stages after the CAMs, up to the table's own."""
    from pmm_ray.cycle_pipeline import planned_rounds
    from pmm_ray.pipeline import planned_stages

    planned = planned_stages(config)
    begin, end = planned.index("make_cams") + 1, planned.index("train_segmenter-r0")
    stages = [*planned[begin:end], *more]
    for variant in variants:
        stages += planned_rounds(config, variant)
    return tuple(dict.fromkeys(stages))


def variant_of(config: RunConfig, kind: str, name: str | None = None) -> Variant:
    """A segmenter whose under-fitting is of some kind, without cyclic rounds.

    Args:
        config: the recipe.
        kind: of `segmenter.underfitting`.
        name: see `Variant`; default the kind.
    """
    from pmm_ray.cycle_pipeline import Variant

    underfitting = config.segmenter.underfitting.model_dump() | {"kind": kind}
    return Variant(name or kind, {"underfitting": underfitting}, rounds=0)


def note(config: RunConfig, text: str) -> str:
    """What a reader of the table must know."""
    return (
        f"mIoU of split {config.data.held_out_split!r} with its ground truth (pixel labels used), "
        f"{config.segmenter.iterations} iterations, seed {config.seed}; {text}."
    )
