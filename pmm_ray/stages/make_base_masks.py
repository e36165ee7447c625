"""Base masks: where the first classifier is sure of a class (joint CRF; paper 3.5).

A px holds the class whose posterior exceeds the threshold, else 0; posteriors are not stored.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.config import BaseConfig
from pmm_ray.method.masks import base_mask
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import TableIndex, read_index
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.mapping.table_stage import run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Worker
from pmm_ray.runtime.rows.cams import cam_at
from pmm_ray.runtime.rows.masks import crf_parameters, mask_row
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.stages.make_masks import mask_pool

STAGE = "make_base_masks"
CODE_VERSION = 1


def base_worker(config: BaseConfig, photographs: Photographs) -> Worker:
    """Makes the worker of one task."""
    parameters = crf_parameters(config.crf)

    def make(row: InputRow, image: NDArray[np.uint8]) -> dict[str, Any]:
        labels, cam = cam_at(image.shape[:2], row)
        mask = base_mask(
            image, cam, labels, config.alpha, config.threshold, parameters, config.backend
        )
        return mask_row(row["manifest"], mask, photographs.label_space, round_number=0)

    return photographs.row_by_row(STAGE, make)


def run(
    config: BaseConfig, context: RunContext, folder: StageFolder, *, cams: TableIndex
) -> Summary:
    """Base masks of every image of `cams` (an index of a cams table)."""
    return run_table_stage(
        context,
        folder,
        inputs={"cams": cams},
        factory=partial(base_worker, config, Photographs.of(context)),
        schema=tables.MASKS,
        pool=mask_pool(context, config.tasks),
        batch_size=None if config.batch_size == "auto" else config.batch_size,
    )


def stage(config: BaseConfig, cams: StageFolder) -> Stage:
    """The base masks of finished maps."""
    index = read_index(cams.uri)
    return Stage(
        STAGE,
        (config, cams.hash, CODE_VERSION),
        partial(run, config, cams=index),
        images=index.ids,
    )
