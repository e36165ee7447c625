"""Scores of a way from CAMs to masks under many parameters, all in one pass over some images.

The combinations are further channels of the same lattice, so they cost little more than one, and
each gives the masks that `make_masks` would. Nothing but scores is stored: the masks of a grid
would take more room than the CAMs. A row of Tab. 1-3 is such a stage; so is `masks.alpha: auto`.
"""

# S: combinations of parameters; H, W: image.

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from latticecrf.dense_crf import Backend
from pmm_ray.config import MasksConfig, RunConfig
from pmm_ray.method.confusion import confusion_matrices, from_sparse, to_sparse
from pmm_ray.method.mask_methods import MakeMasks
from pmm_ray.method.masks import MaskParameters, exponent_of
from pmm_ray.runtime.cluster.placement import mask_memory
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.index import TableIndex, read_index
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.mapping.table_stage import cpu_pool, run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Worker
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.rows.masks import mask_parameters
from pmm_ray.runtime.rows.photographs import Photographs, large_image
from pmm_ray.stages import make_masks
from pmm_ray.stages.evaluate import none_scored, scores

STAGE = "sweep_masks"
CODE_VERSION = 2

# `masks.alpha: auto`: the paper searched 0..20 by hand; low values suit CAMs that are compact
AUTO_ALPHAS = (1.0, 2.0, 3.0, 5.0, 8.0, 11.0, 16.0, 24.0)
SAMPLE_IMAGES = 100
"""Held-out images that are scored by a search, unless the user says otherwise; tables score all."""
_THRESHOLDS = (
    *(hundredths / 100 for hundredths in range(2, 20)),
    *(twentieths / 20 for twentieths in range(4, 13)),
)
CAM_ALPHAS = tuple(float(f"{exponent_of(threshold):.4g}") for threshold in _THRESHOLDS)
"""Exponents of CAM argmax: its best thresholds, 0.02 to 0.6, are far apart for different CAMs. The
released code scans 0.05 to 0.19, SEAM's 0 to 0.59."""

Combination = dict[str, float]
"""Field of the mask section -> value."""

_lists = pa.list_(pa.list_(pa.int64()))
# one row per image; cells[i], counts[i] are its sparse confusion matrix under combination i
SCORED = pa.schema([("image_id", pa.string()), ("cells", _lists), ("counts", _lists)])


def grid(values: Mapping[str, Sequence[float]]) -> list[Combination]:
    """Every combination of the values, the last field varying fastest."""
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


def sample(image_ids: Sequence[str], images: int | None, seed: int) -> list[str]:
    """At most so many of the ids, None: all; the same in every call and on every machine."""

    def place(image_id: str) -> bytes:
        return hashlib.sha256(f"{seed}-sweep-{image_id}".encode()).digest()

    return sorted(sorted(image_ids, key=place)[:images])


def combined(config: MasksConfig, combination: Combination) -> MasksConfig:
    """The section with the fields of a combination in place of its own.

    Raises:
        ValueError: a value is out of its range (pydantic names it).
    """
    # `auto` is no number. Where alpha is not swept any will do: `walk` does not use it.
    alpha = {"alpha": 1.0} if config.alpha == "auto" else {}
    return MasksConfig.model_validate(config.model_dump() | alpha | combination)


def sweep_worker(
    way: MakeMasks | None,
    combinations: Sequence[MaskParameters],
    backend: Backend,
    photographs: Photographs,
    stage: str,
) -> Worker:
    """Makes the worker of one task; of `way` see `make_masks.way_to_masks`."""
    space = photographs.label_space

    def score(row: InputRow, image: NDArray[np.uint8]) -> dict[str, Any]:
        manifest = row["manifest"]
        truth = photographs.truth(manifest)
        if truth.shape != image.shape[:2]:
            raise RowError(
                "label", f"the image is {image.shape[:2]} px, its ground truth {truth.shape}"
            )
        masks = make_masks.masks_of_row(way, image, row, combinations, backend)
        found = [
            to_sparse(matrix)
            for matrix in confusion_matrices(truth, masks, space.num_classes, space.ignore)
        ]
        return {
            "image_id": manifest["image_id"],
            "cells": [cells.tolist() for cells, _ in found],
            "counts": [counts.tolist() for _, counts in found],
        }

    return photographs.row_by_row(stage, score)


def run(
    config: MasksConfig,
    context: RunContext,
    folder: StageFolder,
    *,
    cams: TableIndex,
    method: str,
    combinations: Sequence[Combination],
    split: str,
) -> Summary:
    """Score every combination on every image of `cams`; writes `sweep.parquet` and `sweep.json`.

    An image that cannot be scored costs its score, and not the run.

    Args:
        config: the mask section; a combination replaces some of its fields.
        cams: index of the cams table, restricted to held-out images with truth.
        method, combinations: see `stage`.
        split: whose images these are.

    Returns:
        A summary whose `mean_iou` is that of the best combination, `details["chosen"]`. Without a
        score there is neither, and `details["not_scored"]` says why.
    """
    context.progress.message(f"{folder.stage}: pixel labels used ({split}, {len(cams)} images)")
    summary = run_table_stage(
        context,
        folder,
        inputs={"cams": cams},
        factory=partial(
            sweep_worker,
            make_masks.way_to_masks(method),
            [mask_parameters(combined(config, c)) for c in combinations],
            config.backend,
            Photographs.of(context),
            folder.stage,
        ),
        schema=SCORED,
        pool=cpu_pool(context, config.tasks, grid_memory(context, cams, len(combinations))),
        measures=True,
    )
    found, not_scored = _scores(folder, context, len(combinations))
    details: dict[str, Any] = {"split": split, "method": method, "fields": list(combinations[0])}
    if not_scored:
        context.progress.message(f"{folder.stage}: no score: {not_scored}")
        details |= {"combinations": [], "chosen": {}, "not_scored": not_scored}
        return summary.extended(details, pixel_labels_used=True)
    table = [c | metrics for c, metrics in zip(combinations, found, strict=True)]
    best = max(table, key=itemgetter("mean_iou"))  # of equals the first
    details["combinations"] = table
    details["chosen"] = {name: best[name] for name in details["fields"]}
    write_grid(folder, details)
    return summary.extended(details, {"mean_iou": best["mean_iou"]}, pixel_labels_used=True)


def write_grid(folder: StageFolder, details: Mapping[str, Any]) -> None:
    """`sweep.json`, what is found of every combination, and `sweep.parquet`, its table."""
    table = pa.Table.from_pylist(details["combinations"])
    storage.write_bytes(folder.path("sweep.parquet"), tables.to_bytes(table))
    storage.write_bytes(folder.path("sweep.json"), json.dumps(details, indent=1).encode())


def grid_memory(context: RunContext, cams: TableIndex, combinations: int) -> int:
    """Bytes that a task reserves: a mask of each combination, and of each of its classes."""
    table = tables.read_table(context.manifest.uri, ["image_id", "labels"])
    ids = pa.array(cams.image_ids, pa.string())
    labels = table.filter(pc.is_in(table.column("image_id"), value_set=ids)).column("labels")
    classes = pc.max(pc.list_value_length(labels)).as_py() or 0
    return mask_memory(
        large_image(context.manifest.uri),
        context.cluster.node_memory,
        more_per_pixel=combinations * (1 + classes),
    )


def _scores(
    folder: StageFolder, context: RunContext, count: int
) -> tuple[list[dict[str, float]], str]:
    """Metrics of each combination, or why there are none.

    One part of the table is in memory at a time.
    """
    totals: list[dict[int, int]] = [{} for _ in range(count)]
    index = read_index(folder.uri)
    if not len(index):
        return [], none_scored(folder)
    for part in index.parts:
        for row in tables.read_finished(part, ["cells", "counts"]).to_pylist():
            for total, cells, counts in zip(totals, row["cells"], row["counts"], strict=True):
                for cell, number in zip(cells, counts, strict=True):
                    total[cell] = total.get(cell, 0) + number
    space = context.manifest.label_space
    matrices = (
        from_sparse(np.fromiter(t, np.int64), np.fromiter(t.values(), np.int64), space.num_classes)
        for t in totals
    )
    found = [scores(matrix, space) for matrix in matrices]
    # all have the same truth: none has a score, or each
    return [metrics for metrics, _ in found], found[0][1].get("not_scored", "")


def stage(
    recipe: RunConfig,
    data: DataSet,
    cams: StageFolder,
    combinations: Sequence[Combination],
    *,
    images: int | None = SAMPLE_IMAGES,
    among: Sequence[str] | None = None,
    method: str = "ppmg",
    name: str = STAGE,
) -> Stage:
    """The scores of a way from finished CAMs to masks.

    Args:
        recipe: for the mask section, the seed and the held-out split.
        cams: finished.
        combinations: from `grid`; `make_masks.WALK` has one without a field.
        images: so many are scored at most; None: all.
        among: ids of which those with a CAM are scored; None: a sample of all with both.
        method: a name of `MASK_METHODS`, or `make_masks.WALK`.

    Raises:
        CannotRunError: no held-out image has both a CAM and a ground-truth mask.
    """
    config, split = recipe.masks, recipe.data.held_out_split
    index = read_index(cams.uri).select(data.with_truth(split))
    known = index.image_ids
    if among is None:
        chosen = sample(known, images, recipe.seed)
    else:
        chosen = sorted(set(among) & set(known))
    if not chosen:
        raise CannotRunError(
            f"{name}: no image of split {split!r} has a CAM and a ground-truth mask to score it by"
        )
    body = partial(
        run,
        config,
        cams=index.select(chosen),
        method=method,
        combinations=combinations,
        split=split,
    )
    identity = (
        method,
        *(combined(config, combination) for combination in combinations),
        chosen,
        cams.hash,
        data.hash,
        *data.truth,
        make_masks.CODE_VERSION,
        CODE_VERSION,
    )
    return Stage(name, identity, body, images=chosen)
