"""CAMs -> what an affinity network learns from: labels on which two CRF strengths agree."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.config import AffinityConfig
from pmm_ray.method.affinity_labels import confident_labels
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import TableIndex, read_index
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.mapping.table_stage import run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Worker
from pmm_ray.runtime.rows.cams import cam_at
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.rows.masks import crf_parameters, mask_row
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.stages.make_masks import mask_pool

STAGE = "make_affinity_labels"
CODE_VERSION = 2


def label_worker(config: AffinityConfig, photographs: Photographs) -> Worker:
    """Makes the worker of one task."""
    space = photographs.label_space

    def make(row: InputRow, image: NDArray[np.uint8]) -> dict[str, Any]:
        labels, cam = cam_at(image.shape[:2], row)
        found = confident_labels(
            image,
            cam,
            labels,
            alpha_low=config.alpha_low,
            alpha_high=config.alpha_high,
            ignore=space.ignore,
            crf=crf_parameters(config.crf),
            backend=config.backend,
        )
        return mask_row(row["manifest"], found.astype(space.mask_dtype), space, round_number=0)

    return photographs.row_by_row(STAGE, make)


def run(
    config: AffinityConfig, context: RunContext, folder: StageFolder, *, cams: TableIndex
) -> Summary:
    """Labels of every image of `cams`, an index of a cams table: a masks table with ignored px."""
    return run_table_stage(
        context,
        folder,
        inputs={"cams": cams},
        factory=partial(label_worker, config, Photographs.of(context)),
        schema=tables.MASKS,
        pool=mask_pool(context),
    )


def stage(config: AffinityConfig, data: DataSet, cams: StageFolder, split: str) -> Stage:
    """The labels of a split's images, from finished maps."""
    index = read_index(cams.uri).select(data.split(split).ids)
    # in folders that were made before it is not named
    backend = [] if config.backend == "lattice" else [config.backend]
    alphas = [config.alpha_low, config.alpha_high]
    return Stage(
        STAGE,
        (alphas, config.crf, *backend, cams.hash, split, CODE_VERSION),
        partial(run, config, cams=index),
        images=index.ids,
    )
