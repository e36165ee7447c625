"""Score masks against ground truth: one sparse confusion matrix per image, added up exactly."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pmm_ray.labels import LabelSpace
from pmm_ray.method.confusion import (
    NO_CLASS,
    Confusion,
    confusion_matrix,
    from_sparse,
    iou,
    mean_score,
    to_sparse,
)
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.core.index import TableIndex, read_all
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.mapping.table_stage import run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Worker, row_by_row
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.runtime.rows.photographs import Photographs

CODE_VERSION = 1


def evaluation_worker(photographs: Photographs, stage: str) -> Worker:
    """Makes the worker of one task."""
    space = photographs.label_space

    def score(row: InputRow) -> dict[str, Any]:
        manifest, masks = row["manifest"], row["masks"]
        truth = photographs.truth(manifest)
        mask = decode_mask(masks["mask_png"])
        if truth.shape != mask.shape:
            raise RowError("label", f"the mask is {mask.shape} px, its ground truth {truth.shape}")
        return confusion_row(manifest, truth, mask, space)

    return row_by_row(stage, score)


def confusion_row(
    manifest: Mapping[str, Any], truth: NDArray[Any], mask: NDArray[Any], space: LabelSpace
) -> dict[str, Any]:
    """A row of `tables.EVALUATION` from masks of one size."""
    cells, counts = to_sparse(confusion_matrix(truth, mask, space.num_classes, space.ignore))
    return {
        "image_id": manifest["image_id"],
        "split": manifest["split"],
        "cells": cells.tolist(),
        "counts": counts.tolist(),
    }


def total_confusion(table: pa.Table, space: LabelSpace) -> Confusion:
    """The sum of the matrices of rows of `tables.EVALUATION`, int64 [C, C]."""
    cells, counts = (pc.list_flatten(table[name]).to_numpy() for name in ("cells", "counts"))
    return from_sparse(cells, counts, space.num_classes)


def scores(total: Confusion, space: LabelSpace) -> tuple[dict[str, float], dict[str, Any]]:
    """(metrics, details) of a confusion matrix: mIoU over the classes that have truth.

    Where no class but the background has truth there is no score, and `not_scored` says why.
    """
    mean = mean_score(total)
    if mean is None:
        return {}, {"not_scored": NO_CLASS, "class_iou": {}, "excluded": list(space.names)}
    accuracy = float(np.trace(total) / total.sum())
    per_class = {
        name: None if np.isnan(value) else round(float(value), 6)
        for name, value in zip(space.names, iou(total), strict=True)
    }
    metrics = {"mean_iou": round(mean, 6), "pixel_accuracy": round(accuracy, 6)}
    excluded = [name for name, value in per_class.items() if value is None]
    return metrics, {"class_iou": per_class, "excluded": excluded}


def none_scored(folder: StageFolder) -> str:
    """Why a stage all images of which became error rows has no score."""
    first = tables.read_errors(folder.errors_uri)[0]
    return f"not one image could be scored, see errors/, such as {first.image_id}: {first.message}"


def run(
    context: RunContext,
    folder: StageFolder,
    *,
    masks: TableIndex,
    title: str,
    split: str,
    masks_stage: str,
) -> Summary:
    """Score a masks table on the images of one split that have ground truth.

    Truth that cannot be used costs the score of its image, and not the run.

    Args:
        masks: index of the masks, restricted to images that have truth.
        title, split: see `stage`.
        masks_stage: name of the stage that made them.
    """
    context.progress.message(f"{folder.stage}: pixel labels used ({split}, {len(masks)} images)")
    summary = run_table_stage(
        context,
        folder,
        inputs={"masks": masks},
        factory=partial(evaluation_worker, Photographs.of(context), folder.stage),
        schema=tables.EVALUATION,
        measures=True,
    )
    table = read_all(folder.uri)
    space = context.manifest.label_space
    metrics, details = scores(total_confusion(table, space), space)
    if not table.num_rows:
        details["not_scored"] = none_scored(folder)
    if "not_scored" in details:
        context.progress.message(f"{folder.stage}: no score: {details['not_scored']}")
    about = {"title": title, "split": split, "masks_stage": masks_stage}
    return summary.extended(about | details, metrics, pixel_labels_used=True)


def stage(
    data: DataSet, masks: StageFolder, among: TableIndex, *, title: str, split: str, name: str
) -> Stage:
    """The scores of finished masks.

    Args:
        masks: whose scores.
        among: those of them that have ground truth, of one split.
        title: what the masks are, for people.
        split: whose images these are.
    """
    body = partial(run, masks=among, title=title, split=split, masks_stage=masks.stage)
    identity = (masks.stage, masks.hash, data.hash, *data.truth, CODE_VERSION)
    return Stage(name, identity, body, images=among.ids)
