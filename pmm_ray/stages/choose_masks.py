"""Whether a segmenter is better than the masks it learnt from (`cycles.update: if_better`).

Both were scored image by image on the held-out split; only images that both have are compared.
This uses their pixel labels.
"""

from __future__ import annotations

from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from pmm_ray.labels import LabelSpace
from pmm_ray.method.confusion import mean_iou
from pmm_ray.runtime.core.index import read_all
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.stages.evaluate import total_confusion

CODE_VERSION = 1


def run(
    context: RunContext,
    folder: StageFolder,
    *,
    segmenter: StageFolder,
    supervision: StageFolder,
    split: str,
) -> Summary:
    """Compare two evaluations on the images they share.

    Args:
        segmenter: evaluation of what the segmenter predicts.
        supervision: evaluation of masks made like those that it learnt from.
        split: the held-out split, whose pixel labels both used.

    Returns:
        Its metrics are both mIoU, 0..1; `details["update"]` says whether the segmenter's is higher.
    """
    space = context.manifest.label_space
    tables = [read_all(place.uri) for place in (segmenter, supervision)]
    first, second = (table["image_id"] for table in tables)
    common = first.filter(pc.is_in(first, second))
    scores = [
        _mean_iou(table.filter(pc.is_in(table["image_id"], common)), space) for table in tables
    ]
    return Summary(
        stage=folder.stage,
        hash=folder.hash,
        images=len(common),
        metrics={"segmenter": round(scores[0], 6), "supervision": round(scores[1], 6)},
        details={
            "update": bool(scores[0] > scores[1]),
            "split": split,
            "segmenter": segmenter.stage,
            "supervision": supervision.stage,
        },
        pixel_labels_used=True,
    )


def _mean_iou(table: pa.Table, space: LabelSpace) -> float:
    total = total_confusion(table, space)
    return mean_iou(total)[0] if total.any() else 0.0


def stage(segmenter: StageFolder, supervision: StageFolder, split: str, name: str) -> Stage:
    """The choice between two finished evaluations, see `run`."""
    body = partial(run, segmenter=segmenter, supervision=supervision, split=split)
    return Stage(name, (segmenter.result, supervision.result, CODE_VERSION), body)
