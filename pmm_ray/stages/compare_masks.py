"""How one round's masks differ from those before: agreement, and what each class lost and gained.

No ground truth is read: both tables are predictions.
"""

# C: classes with the background; rows of a confusion matrix are the earlier masks.

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pmm_ray.labels import LabelSpace
from pmm_ray.method.confusion import mean_iou
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.core.index import TableIndex, read_all, read_index
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.mapping.table_stage import run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Worker, row_by_row
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.stages.evaluate import confusion_row, total_confusion

CODE_VERSION = 1


def compare_worker(space: LabelSpace, stage: str) -> Worker:
    """Makes the worker of one task."""

    def compare(row: InputRow) -> dict[str, Any]:
        earlier = decode_mask(row["earlier"]["mask_png"])
        later = decode_mask(row["later"]["mask_png"])
        if earlier.shape != later.shape:
            raise RowError("label", f"masks of {earlier.shape} and {later.shape} px (h, w)")
        return confusion_row(row["manifest"], earlier, later, space)

    return row_by_row(stage, compare)


def churn(table: pa.Table, space: LabelSpace) -> tuple[dict[str, float], dict[str, Any]]:
    """(metrics, details) of the rows of a comparison.

    Args:
        table: with `cells` and `counts` of each image.
        space: names of the classes.

    Returns:
        Metrics, 0..1: `agreement`, the share of pixels that keep their class; `mean_iou`, between
        the two masks, over the classes of the earlier ones; `foreground_before`,
        `foreground_after`. Details: `churn`, by class name: `before` and `after`, its share of all
        pixels; `lost`, the share of its earlier pixels that are another class now; `gained`, the
        share of its pixels that were another class; `images_lost` and `images_gained`, how many
        images it left and came into. Classes without a pixel in either are left out.
    """
    total = total_confusion(table, space)
    before_C, after_C, kept_C = total.sum(1), total.sum(0), np.diag(total)
    pixels = int(total.sum())
    left_C, came_C = _images_changed(table, space.num_classes)
    by_class = {
        name: {
            "before": _share(before_C[c], pixels),
            "after": _share(after_C[c], pixels),
            "lost": _share(before_C[c] - kept_C[c], before_C[c]),
            "gained": _share(after_C[c] - kept_C[c], after_C[c]),
            "images_lost": int(left_C[c]),
            "images_gained": int(came_C[c]),
        }
        for c, name in enumerate(space.names)
        if before_C[c] or after_C[c]
    }
    metrics = {
        "agreement": _share(kept_C.sum(), pixels),
        "mean_iou": round(mean_iou(total)[0], 6) if pixels else 0.0,
        "foreground_before": _share(before_C[1:].sum(), pixels),
        "foreground_after": _share(after_C[1:].sum(), pixels),
    }
    return metrics, {"churn": by_class}


def _images_changed(table: pa.Table, classes: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """In how many images each class stood before and no longer does, and the other way round."""
    left_C, came_C = np.zeros(classes, np.int64), np.zeros(classes, np.int64)
    for chunk in table["cells"].chunks:
        cells, image = chunk.flatten().to_numpy(), pc.list_parent_indices(chunk).to_numpy()
        # one number for each class of each image
        before, after = (np.unique(image * classes + c) for c in np.divmod(cells, classes))
        for count_C, was, other in ((left_C, before, after), (came_C, after, before)):
            gone = np.setdiff1d(was, other, assume_unique=True)
            count_C += np.bincount(gone % classes, minlength=classes)
    return left_C, came_C


def _share(part: Any, whole: Any) -> float:
    return round(float(part) / float(whole), 6) if whole else 0.0


def run(
    context: RunContext,
    folder: StageFolder,
    *,
    earlier: TableIndex,
    later: TableIndex,
    stages: tuple[str, str],
) -> Summary:
    """Compare two masks tables image by image.

    Args:
        earlier: index of the masks before.
        later: index of the masks after. Its images are compared; each must be in `earlier`.
        stages: names of the stages that made them.
    """
    summary = run_table_stage(
        context,
        folder,
        inputs={"later": later, "earlier": earlier},
        factory=partial(compare_worker, context.manifest.label_space, folder.stage),
        schema=tables.EVALUATION,
    )
    metrics, details = churn(read_all(folder.uri), context.manifest.label_space)
    about = {"earlier": stages[0], "later": stages[1]}
    return summary.extended(about | details, metrics)


def stage(earlier: StageFolder, later: StageFolder, name: str) -> Stage:
    """The comparison of two finished masks tables, on the images of both."""
    before, after = read_index(earlier.uri), read_index(later.uri)
    both = after.select(before.ids)
    stages = (earlier.stage, later.stage)
    return Stage(
        name,
        (earlier.stage, earlier.hash, later.stage, later.hash, CODE_VERSION),
        partial(run, earlier=before, later=both, stages=stages),
        images=both.ids,
    )
