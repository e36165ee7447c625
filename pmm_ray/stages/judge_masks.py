"""How well masks under many parameters fit their classes, where there is no ground truth.

The run's own classifier looks at the objects of each mask and at the rest (`method.evidence`). A
few of the images keep their masks, small: the report lays them over the photographs, so that people
can choose by eye.
"""

# K: present classes; S: combinations of parameters; N: pairs of an image and a class.

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from latticecrf.dense_crf import Backend
from pmm_ray.config import MasksConfig, RunConfig
from pmm_ray.method.evidence import lift
from pmm_ray.method.mask_methods import MASK_METHODS, MakeMasks
from pmm_ray.method.masks import MaskParameters
from pmm_ray.nets.evidence import evidence
from pmm_ray.nets.registry import load_classifier
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.index import TableIndex, read_all, read_index
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.core.tables import BYTES, FLOAT, TEXT, columns
from pmm_ray.runtime.mapping.table_stage import actor_pool, run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Worker
from pmm_ray.runtime.rows.cams import cam_at
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.rows.images import encode_mask
from pmm_ray.runtime.rows.masks import mask_parameters
from pmm_ray.runtime.rows.photographs import Photographs, with_long_side
from pmm_ray.stages import make_masks
from pmm_ray.stages.sweep_masks import (
    SAMPLE_IMAGES,
    Combination,
    combined,
    grid_memory,
    sample,
    write_grid,
)

STAGE = "judge_masks"
CODE_VERSION = 1

LONG_SIDE = 224
"""Of the images that the classifier sees, px; smaller ones stay as they are."""
SHEET_IMAGES = 10
"""Images that keep their masks."""

# one row per image: `Evidence`, its K rows one after another; masks, small, of the sheet's images
_EVIDENCE = ("whole", "hidden", "object", "rest", "area")
JUDGED = columns(
    image_id=TEXT,
    **dict.fromkeys(_EVIDENCE, pa.list_(FLOAT)),
    masks=pa.list_(BYTES),
)


def judge_worker(
    checkpoint_uri: str,
    make: MakeMasks,
    combinations: Sequence[MaskParameters],
    backend: Backend,
    photographs: Photographs,
    sheet: Collection[str],
    use_gpu: bool,
    stage: str,
) -> Worker:
    """Makes the worker of one pool process; loads the classifier once.

    Args:
        checkpoint_uri: the classifier.
        sheet: ids of the images that keep their masks.
        use_gpu: where the classifier goes.
    """
    device = torch.device("cuda" if use_gpu else "cpu")
    network, _ = load_classifier(checkpoint_uri)
    network = network.to(device)
    space = photographs.label_space

    def judge(row: InputRow, image: NDArray[np.uint8]) -> dict[str, Any]:
        image_id = row["manifest"]["image_id"]
        labels, cam = cam_at(image.shape[:2], row)
        masks = make(image, cam, labels, combinations, backend)
        small = with_long_side(image, min(LONG_SIDE, max(image.shape[:2])))
        size = small.shape[1::-1]
        masks = [cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) for mask in masks]
        found = evidence(small, masks, labels, network, device)
        if not all(np.isfinite(values).all() for values in vars(found).values()):
            raise RowError("nonfinite", "the classifier's scores are not finite")
        kept = masks if image_id in sheet else []
        return {
            "image_id": image_id,
            **{name: values.ravel().tolist() for name, values in vars(found).items()},
            "masks": [encode_mask(mask.astype(space.mask_dtype), space) for mask in kept],
        }

    return photographs.row_by_row(stage, judge)


def run(
    config: MasksConfig,
    context: RunContext,
    folder: StageFolder,
    *,
    cams: TableIndex,
    checkpoint_uri: str,
    method: str,
    combinations: Sequence[Combination],
    sheet: Sequence[str],
) -> Summary:
    """Judge every combination on every image of `cams`; writes `sweep.parquet` and `sweep.json`.

    Args:
        config: the mask section; a combination replaces some of its fields.
        cams: index of the cams table, restricted to the images.
        checkpoint_uri, sheet: see `judge_worker`.
        method, combinations: see `stage`.

    Returns:
        A summary whose `lift` is that of the best combination, `details["chosen"]`. If the
        classifier sees no class in any image, it has neither.
    """
    pool = actor_pool(context, context.config.cams)
    memory = grid_memory(context, cams, len(combinations))
    summary = run_table_stage(
        context,
        folder,
        inputs={"cams": cams},
        factory=partial(
            judge_worker,
            checkpoint_uri,
            MASK_METHODS[method].load(),
            [mask_parameters(combined(config, c)) for c in combinations],
            config.backend,
            Photographs.of(context),
            frozenset(sheet),
            context.cluster.gpus >= 1,
            folder.stage,
        ),
        schema=JUDGED,
        # its worker does not overlap
        pool=replace(pool, memory=memory, overlap=1),
    )
    lift_S, area_S = judged(folder, len(combinations))
    seen = bool(np.isfinite(lift_S).all())
    table: list[dict[str, Any]] = [
        c | {"lift": round(float(of), 6) if seen else None, "area": round(float(area), 6)}
        for c, of, area in zip(combinations, lift_S, area_S, strict=True)
    ]
    best = table[int(lift_S.argmax())]  # of equals the first
    fields = list(combinations[0])
    details = {
        "split": "all splits",
        "method": method,
        "fields": fields,
        "combinations": table,
        "chosen": {name: best[name] for name in fields} if seen else {},
        "sheet": list(sheet),
    }
    write_grid(folder, details)
    return summary.extended(details, {"lift": best["lift"]} if seen else {})


def judged(folder: StageFolder, count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(lift, mean masked share) of each of `count` combinations, float64 [S].

    Raises:
        CannotRunError: not one image could be judged.
    """
    table = read_all(folder.uri)
    if not table.num_rows:
        raise CannotRunError(f"{folder.stage}: not one image could be judged, see errors/")
    whole, hidden, inside, rest, area = (
        table.column(name).combine_chunks().flatten().to_numpy() for name in _EVIDENCE
    )
    inside_NS, rest_NS, area_NS = (values.reshape(-1, count) for values in (inside, rest, area))
    return lift(whole, hidden, inside_NS, rest_NS, area_NS), area_NS.mean(axis=0, dtype=np.float64)


def stage(
    recipe: RunConfig,
    data: DataSet,
    cams: StageFolder,
    classifier: StageFolder,
    combinations: Sequence[Combination],
    *,
    images: int = SAMPLE_IMAGES,
    method: str = "ppmg",
    name: str = STAGE,
) -> Stage:
    """How well masks of some finished CAMs fit under each combination, by the classifier.

    The images are of both splits: none needs more than its image-level labels.

    Args:
        recipe: for the mask section and the seed.
        cams: finished.
        classifier: finished.
        combinations: from `grid`.
        images: so many are judged at most.
        method: a name of `MASK_METHODS`.
    """
    config = recipe.masks
    index = read_index(cams.uri)
    chosen = sample(index.image_ids, images, recipe.seed)
    body = partial(
        run,
        config,
        cams=index.select(chosen),
        checkpoint_uri=classifier.path("model.pt"),
        method=method,
        combinations=combinations,
        sheet=sample(chosen, SHEET_IMAGES, recipe.seed),
    )
    identity = (
        method,
        *(combined(config, combination) for combination in combinations),
        chosen,
        cams.hash,
        data.hash,
        classifier.result,
        make_masks.CODE_VERSION,
        CODE_VERSION,
    )
    return Stage(name, identity, body, images=chosen)
