"""Whether a segmenter is better than the masks it learnt from (`cycles.update: if_better`).

Both were scored image by image on the held-out split; only images that both have are compared.
This uses their pixel labels.
"""

from __future__ import annotations

from functools import partial

import pyarrow.compute as pc

from pmm_ray.method.confusion import NO_CLASS, mean_score
from pmm_ray.runtime.core.errors import CannotRunError
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

    Raises:
        CannotRunError: they share no image, or the truth of these holds no class.
    """
    space = context.manifest.label_space
    tables = [read_all(place.uri) for place in (segmenter, supervision)]
    first, second = (table["image_id"] for table in tables)
    common = first.filter(pc.is_in(first, second))
    ours, theirs = (
        mean_score(total_confusion(table.filter(pc.is_in(table["image_id"], common)), space))
        for table in tables
    )
    if ours is None or theirs is None:
        why = NO_CLASS if len(common) else f"see errors/ of {segmenter.stage}, {supervision.stage}"
        raise CannotRunError(
            f"{folder.stage}: cycles.update: if_better has no scores of split {split!r} to compare "
            f"({len(common)} images): {why}. Set cycles.update: always"
        )
    return Summary(
        stage=folder.stage,
        hash=folder.hash,
        images=len(common),
        metrics={"segmenter": round(ours, 6), "supervision": round(theirs, 6)},
        details={
            "update": ours > theirs,
            "split": split,
            "segmenter": segmenter.stage,
            "supervision": supervision.stage,
        },
        pixel_labels_used=True,
    )


def stage(segmenter: StageFolder, supervision: StageFolder, split: str, name: str) -> Stage:
    """The choice between two finished evaluations, see `run`."""
    body = partial(run, segmenter=segmenter, supervision=supervision, split=split)
    return Stage(name, (segmenter.result, supervision.result, CODE_VERSION), body)
