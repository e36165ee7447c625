"""Search the mask parameters: every combination of a grid scored in one pass over a sample.

The combinations are further channels of the same lattice, so they cost little more than one, and
each gives the masks that `make_masks` would.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from pmm_ray.config import MasksConfig, section_hash
from pmm_ray.method.cams import upsample_cam
from pmm_ray.method.confusion import confusion_matrices, to_sparse
from pmm_ray.method.crf.dense_crf import Backend
from pmm_ray.method.masks import MaskParameters, proportional_masks
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.index import TableIndex, read_index
from pmm_ray.runtime.core.session import Session
from pmm_ray.runtime.core.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.mapping.stream import InputRow, Worker, row_by_row
from pmm_ray.runtime.mapping.table_stage import auto_batch, run_table_stage
from pmm_ray.runtime.rows.cams import decode_cam
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.stages import make_masks
from pmm_ray.stages.evaluate import scores
from pmm_ray.stages.make_masks import mask_parameters

STAGE = "sweep"
CODE_VERSION = 1

SWEEPABLE = ("alpha", "smoothing", "threshold")
# `masks.alpha: auto`: the paper searched 0..20 by hand; low values suit CAMs that are compact
AUTO_ALPHAS = (1.0, 2.0, 3.0, 5.0, 8.0, 11.0, 16.0, 24.0)
AUTO_IMAGES = 100

Combination = dict[str, float]  # field of MasksConfig -> value

_lists = pa.list_(pa.list_(pa.int64()))
# one row per image; cells[i], counts[i] are its sparse confusion matrix under combination i
SWEEP = pa.schema([("image_id", pa.string()), ("cells", _lists), ("counts", _lists)])


def grid(values: Mapping[str, Sequence[float]]) -> list[Combination]:
    """Every combination of the values, the last field varying fastest."""
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def sample(image_ids: Sequence[str], images: int, seed: int) -> list[str]:
    """At most so many of the ids, the same ones wherever and however often it is asked."""

    def draw(image_id: str) -> bytes:
        return hashlib.sha256(f"{seed}-sweep-{image_id}".encode()).digest()

    return sorted(sorted(image_ids, key=draw)[:images])


def combined(config: MasksConfig, combination: Combination) -> MaskParameters:
    """The method's parameters with the fields of a combination in place of the configured ones.

    Raises:
        ValueError: a value is out of its range (pydantic names it).
    """
    changed = MasksConfig.model_validate(config.model_dump() | combination)
    return mask_parameters(changed, "proportional")


def sweep_worker(
    combinations: Sequence[MaskParameters], backend: Backend, photographs: Photographs, stage: str
) -> Worker:
    """Makes the worker of one task."""
    space = photographs.label_space

    def score(row: InputRow) -> dict[str, Any]:
        manifest, cams = row["manifest"], row["cams"]
        image = photographs.image(manifest)
        truth = photographs.truth(manifest)
        stored = decode_cam(cams)
        if not np.isfinite(stored).all():
            raise RowError("nonfinite", "the CAM holds NaN or infinity")
        if truth.shape != image.shape[:2]:
            raise RowError(
                "label", f"the image is {image.shape[:2]} px, its ground truth {truth.shape}"
            )
        cam = upsample_cam(stored, *image.shape[:2])
        masks = proportional_masks(image, cam, cams["labels"], combinations, backend)
        found = [
            to_sparse(matrix)
            for matrix in confusion_matrices(truth, masks, space.num_classes, space.ignore)
        ]
        return {
            "image_id": manifest["image_id"],
            "cells": [cells.tolist() for cells, _ in found],
            "counts": [counts.tolist() for _, counts in found],
        }

    return photographs.reading_ahead(row_by_row(stage, score))


def run(
    config: MasksConfig,
    context: RunContext,
    folder: StageFolder,
    *,
    cams: TableIndex,
    images: TableIndex,
    combinations: Sequence[Combination],
    split: str,
) -> Summary:
    """Score every combination on every image of `cams`; writes `sweep.parquet` and `sweep.json`.

    Args:
        config: the mask section; a combination replaces some of its fields.
        context: the run.
        folder: the stage's folder.
        cams: index of the cams table, restricted to the sample: held-out images with truth.
        images: index of the manifest.
        combinations: from `grid`.
        split: whose images these are.
    """
    context.progress.message(f"{folder.stage}: pixel labels used ({split}, {len(cams)} images)")
    pool = make_masks.mask_pool(config, context)
    parameters = [combined(config, combination) for combination in combinations]
    summary = run_table_stage(
        context,
        folder,
        inputs={"cams": cams, "manifest": images},
        primary="cams",
        factory=partial(
            sweep_worker, parameters, config.backend, Photographs.of(context), folder.stage
        ),
        schema=SWEEP,
        pool=pool,
        batch_size=auto_batch(len(cams), pool.size),
    )
    table = [
        combination | metrics
        for combination, metrics in zip(
            combinations, _scores(folder, context, len(combinations)), strict=True
        )
    ]
    best = max(table, key=lambda row: row["mean_iou"])  # of equals the first
    fields = list(combinations[0])
    details = {
        "split": split,
        "fields": fields,
        "combinations": table,
        "chosen": {name: best[name] for name in fields},
    }
    storage.write_bytes(folder.path("sweep.parquet"), tables.to_bytes(pa.Table.from_pylist(table)))
    storage.write_bytes(folder.path("sweep.json"), json.dumps(details, indent=1).encode())
    return summary.model_copy(
        update={
            "metrics": {"mean_iou": best["mean_iou"]},
            "details": summary.details | details,
            "pixel_labels_used": True,
        }
    )


def _scores(folder: StageFolder, context: RunContext, count: int) -> list[dict[str, float]]:
    """Metrics of each combination; one part of the table in memory at a time."""
    totals: list[dict[int, int]] = [{} for _ in range(count)]
    for part in read_index(folder.uri).parts:
        for row in tables.read_table(part, ["cells", "counts"]).to_pylist():
            for total, cells, counts in zip(totals, row["cells"], row["counts"], strict=True):
                for cell, number in zip(cells, counts, strict=True):
                    total[cell] = total.get(cell, 0) + number
    space = context.manifest.label_space
    found = [scores(list(t), list(t.values()), space) for t in totals]
    for _, details in found:
        if "not_scored" in details:
            raise CannotRunError(
                f"{folder.stage}: no combination can be chosen: {details['not_scored']}; "
                "set masks.alpha to a number"
            )
    return [metrics for metrics, _ in found]


def search(
    session: Session,
    name: str,
    *,
    cams: StageFolder,
    images: TableIndex,
    with_truth: Sequence[str],
    data_hash: Sequence[str],
    combinations: Sequence[Combination],
    limit: int,
) -> Summary:
    """Run a sweep as a stage of a session.

    Args:
        session: the run.
        name: of the stage.
        cams: the finished cams stage.
        images: index of the manifest.
        with_truth: ids of the held-out images that have a ground-truth mask.
        data_hash: of the manifest and the masks drawn for it.
        combinations: from `grid`.
        limit: images in the sample at most.

    Raises:
        CannotRunError: no held-out image has both a CAM and a ground-truth mask.
    """
    config, split = session.config.masks, session.config.data.held_out_split
    index = read_index(cams.uri).select(with_truth)
    chosen = sample(index.image_ids, limit, session.config.seed)
    if not chosen:
        raise CannotRunError(
            f"{name}: no image of split {split!r} has a ground-truth mask to score against; "
            "set masks.alpha to a number"
        )
    stage_hash = section_hash(
        *(combined(config, combination) for combination in combinations),
        chosen,
        cams.hash,
        list(data_hash),
        make_masks.CODE_VERSION,
        CODE_VERSION,
    )
    folder = session.stage(
        name,
        stage_hash,
        lambda folder: run(
            config,
            session.context(),
            folder,
            cams=index.select(chosen),
            images=images,
            combinations=combinations,
            split=split,
        ),
        input_rows=len(chosen),
    )
    summary = folder.summary()
    assert summary is not None, "a stage writes its summary last"
    return summary
