"""A row of Tab. 1-3: one way from CAM to mask, scored under a grid of background exponents.

Nothing but scores is stored: the masks of a grid would take more room than the CAMs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmm_ray.config import MasksConfig
from pmm_ray.method.cams import upsample_cam
from pmm_ray.method.confusion import confusion_matrix, to_sparse
from pmm_ray.method.masks import argmax_masks, proportional_masks
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.core.index import TableIndex, read_index
from pmm_ray.runtime.core.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.mapping.stream import InputRow, Pool, Worker, row_by_row
from pmm_ray.runtime.mapping.table_stage import auto_batch, run_table_stage
from pmm_ray.runtime.rows.cams import table_cam
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.stages.evaluate import scores
from pmm_ray.stages.make_masks import mask_parameters

STAGE = "score_cams"
CODE_VERSION = 1

Way = Literal["cam", "crf", "crf_cvs", "ppmg_no_cvs", "ppmg", "walk"]
"""From CAM to mask: argmax; after a joint CRF; after CVS and a joint CRF; PPMG with and without
CVS; the class with the largest score after a random walk, which has no exponent."""

_lists = pa.list_(pa.list_(pa.int64()))
# one row per image; cells[i], counts[i] are its sparse confusion matrix under exponent i
SCORES = pa.schema([("image_id", pa.string()), ("cells", _lists), ("counts", _lists)])


def masks_of(
    way: Way,
    row: InputRow,
    image_HW3: NDArray[np.uint8],
    config: MasksConfig,
    alphas: Sequence[float],
) -> Iterator[NDArray[Any]]:
    """The mask under every exponent, ids [H, W].

    Args:
        way: from CAM to mask.
        row: with `cams`, a row of a cams table; of a walked one for `walk`.
        image_HW3: RGB, uint8.
        config: CVS and CRF of PPMG; joint CRFs have SEAM's parameters (released code).
        alphas: exponents of the background score.
    """
    if way == "walk":
        from pmm_ray.stages.walk_cams import walked_mask

        yield walked_mask(row["cams"], *image_HW3.shape[:2])
        return
    labels, stored = table_cam(row)
    cam_KHW = upsample_cam(stored, *image_HW3.shape[:2])
    smoothing = {"smoothing": 0.0} if way == "ppmg_no_cvs" else {}
    configs = [config.model_copy(update={"alpha": alpha, **smoothing}) for alpha in alphas]
    if way in ("ppmg", "ppmg_no_cvs"):
        combinations = [mask_parameters(c, "proportional") for c in configs]
        yield from proportional_masks(image_HW3, cam_KHW, labels, combinations, config.backend)
        return
    combinations = [mask_parameters(c, "crf_argmax") for c in configs]
    if way == "crf_cvs":
        zero = mask_parameters(configs[0], "proportional").zero_below_threshold
        combinations = [
            replace(
                p,
                smoothing=config.smoothing,
                threshold=config.threshold,
                zero_below_threshold=zero,
            )
            for p in combinations
        ]
    yield from argmax_masks(
        image_HW3, cam_KHW, labels, combinations, config.backend, use_crf=way != "cam"
    )


def score_worker(
    way: Way, config: MasksConfig, alphas: Sequence[float], photographs: Photographs, stage: str
) -> Worker:
    """Makes the worker of one task."""
    space = photographs.label_space

    def score(row: InputRow) -> dict[str, Any]:
        manifest = row["manifest"]
        image, truth = photographs.image(manifest), photographs.truth(manifest)
        if not np.isfinite(table_cam(row)[1]).all():
            raise RowError("nonfinite", "the CAM holds NaN or infinity")
        if truth.shape != image.shape[:2]:
            raise RowError(
                "label", f"the image is {image.shape[:2]} px, its ground truth {truth.shape}"
            )
        found = [
            to_sparse(confusion_matrix(truth, mask, space.num_classes, space.ignore))
            for mask in masks_of(way, row, image, config, alphas)
        ]
        return {
            "image_id": manifest["image_id"],
            "cells": [cells.tolist() for cells, _ in found],
            "counts": [counts.tolist() for _, counts in found],
        }

    return row_by_row(stage, score)


def run(
    config: MasksConfig,
    context: RunContext,
    folder: StageFolder,
    *,
    cams: TableIndex,
    images: TableIndex,
    way: Way,
    alphas: Sequence[float],
    split: str,
) -> Summary:
    """Score one way from CAM to mask on every image of `cams`.

    Args:
        config: the mask section.
        context: the run.
        folder: the stage's folder.
        cams: index of a cams table, restricted to held-out images with truth.
        images: index of the manifest.
        way: from CAM to mask.
        alphas: exponents; `walk` has none.
        split: whose images these are.

    Returns:
        A summary whose `mean_iou` is that of the best exponent, `details["alpha"]`;
        `details["mean_iou_by_alpha"]` has all of them.
    """
    context.progress.message(f"{folder.stage}: pixel labels used ({split}, {len(cams)} images)")
    cluster = context.cluster
    tasks = cluster.default_tasks()
    summary = run_table_stage(
        context,
        folder,
        inputs={"cams": cams, "manifest": images},
        primary="cams",
        factory=partial(
            score_worker, way, config, list(alphas), Photographs.of(context), folder.stage
        ),
        schema=SCORES,
        pool=Pool(tasks, labels=cluster.cpu_stage_labels),
        batch_size=auto_batch(len(cams), tasks),
    )
    count = 1 if way == "walk" else len(alphas)
    found = _scores(folder, context, count)
    best = int(np.nanargmax(found)) if np.isfinite(found).any() else 0
    by_alpha = {} if way == "walk" else dict(zip(map(str, alphas), found, strict=True))
    details = {
        "split": split,
        "alpha": None if way == "walk" else alphas[best],
        "mean_iou_by_alpha": by_alpha,
    }
    return summary.model_copy(
        update={
            "metrics": {"mean_iou": found[best]},
            "details": summary.details | details,
            "pixel_labels_used": True,
        }
    )


def _scores(folder: StageFolder, context: RunContext, count: int) -> list[float]:
    """mIoU under each exponent; one part of the table in memory at a time."""
    totals: list[dict[int, int]] = [{} for _ in range(count)]
    for part in read_index(folder.uri).parts:
        for row in tables.read_table(part, ["cells", "counts"]).to_pylist():
            for total, cells, counts in zip(totals, row["cells"], row["counts"], strict=True):
                for cell, number in zip(cells, counts, strict=True):
                    total[cell] = total.get(cell, 0) + number
    space = context.manifest.label_space
    found = (scores(list(t), list(t.values()), space)[0] for t in totals)
    return [metrics.get("mean_iou", float("nan")) for metrics in found]
