"""Pseudo-masks from CAMs on every CPU: CVS, per-class CRF, PPMG (Alg. 1) -> the masks table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latticecrf.dense_crf import Backend
from pmm_ray.config import MasksConfig
from pmm_ray.method.mask_methods import MASK_METHODS, MakeMasks
from pmm_ray.method.masks import MaskParameters
from pmm_ray.runtime.cluster.placement import mask_memory
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.resources import Pool
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.mapping.table_stage import actor_pool, auto_batch, cpu_pool, run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Producer, Worker
from pmm_ray.runtime.rows.cams import Cams, ReadCam, cam_at, table_cam, walked_mask
from pmm_ray.runtime.rows.masks import MaskOutput, mask_parameters
from pmm_ray.runtime.rows.photographs import Photographs, large_image

STAGE = "make_masks"
CODE_VERSION = 1

WALK = "walk"
"""Beside the names of `MASK_METHODS`: the class with the largest score after a random walk. Only a
walked table has these scores, and they have no exponent (released code; row RW of Tab. 2-4, 6)."""

# A mask of a VOC photograph, on one core: measured by benchmarks/masks_pipeline.py.
IMAGE_SECONDS = 0.06


def way_to_masks(method: str) -> MakeMasks | None:
    """What makes the masks; None for `WALK`, whose scores are masks already."""
    return None if method == WALK else MASK_METHODS[method].load()


def masks_of_row(
    make: MakeMasks | None,
    image: NDArray[np.uint8],
    row: InputRow,
    combinations: Sequence[MaskParameters],
    backend: Backend,
    read_cam: ReadCam = table_cam,
) -> Sequence[NDArray[Any]]:
    """The masks of a row's CAM: ids, integers [H, W], one for each set of parameters.

    Args:
        make: see `way_to_masks`; without one there is one mask.
        image: RGB, uint8 [H, W, 3].
        row: with the CAM.
        combinations, backend: see `MakeMasks`.
        read_cam: how the CAM is read.

    Raises:
        RowError: `nonfinite`.
    """
    labels, cam = cam_at(image.shape[:2], row, read_cam)
    if make is None:
        return [walked_mask(row["cams"], *image.shape[:2])]
    return make(image, cam, labels, combinations, backend)


def mask_worker(
    way: MakeMasks | None,
    parameters: MaskParameters,
    backend: Backend,
    photographs: Photographs,
    stage: str,
    read_cam: ReadCam = table_cam,
    png_folder: str | None = None,
) -> Worker:
    """Makes the worker of one task; of `way` see `way_to_masks`, of `png_folder` `MaskOutput`."""
    output = MaskOutput(photographs.label_space, png_folder=png_folder)

    def make(row: InputRow, image: NDArray[np.uint8]) -> dict[str, Any]:
        (mask,) = masks_of_row(way, image, row, [parameters], backend, read_cam)
        return output(row["manifest"], mask)

    return photographs.row_by_row(stage, make)


def run(
    config: MasksConfig,
    context: RunContext,
    folder: StageFolder,
    *,
    cams: Cams,
    method: str = "ppmg",
    png_folder: str | None = None,
) -> Summary:
    """Masks of every image of `cams`.

    Streamed CAMs go from actor to task without touching disk. A row is what `make_cams` would have
    stored, so the masks are the same bytes; error rows of both steps are rows of this stage's
    errors table.

    Args:
        cams: stored or streamed.
        method: a name of `MASK_METHODS`, or `WALK`.
        png_folder: see `MaskOutput`.
    """
    shape: dict[str, Any] = {
        "factory": mask_factory(config, context, folder.stage, method, cams.read, png_folder),
        "schema": tables.MASKS,
        "pool": (pool := mask_pool(context, config.tasks)),
    }
    batch = config.batch_size
    if cams.streamed_from is None:
        if batch == "auto":
            batch = auto_batch(len(cams.index), pool.size, IMAGE_SECONDS)
        return run_table_stage(
            context, folder, inputs={"cams": cams.index}, batch_size=batch, **shape
        )
    from pmm_ray.stages import make_cams  # torch, which a process of the other pool never imports

    maps = context.config.cams
    if batch == "auto":
        batch = make_cams.cam_batch(maps, context, len(cams.index))
    maker = make_cams.cam_factory(maps, context, cams.streamed_from)
    return run_table_stage(
        context,
        folder,
        inputs={"manifest": cams.index},
        batch_size=batch,
        producer=Producer("cams", maker, tables.CAMS, actor_pool(context, maps)),
        **shape,
    )


def mask_pool(context: RunContext, tasks: int | str = "auto", more_per_pixel: float = 0.0) -> Pool:
    """Tasks on every CPU where stages without a GPU run, with memory for a large image.

    Args:
        tasks: so many of them instead.
        more_per_pixel: bytes that a task needs beside those of a CRF.
    """
    pixels, node = large_image(context.manifest.uri), context.cluster.node_memory
    return cpu_pool(context, tasks, mask_memory(pixels, node, more_per_pixel))


def mask_factory(
    config: MasksConfig,
    context: RunContext,
    stage: str,
    method: str,
    read_cam: ReadCam = table_cam,
    png_folder: str | None = None,
) -> Callable[[], Worker]:
    """What makes the worker of one task; see `mask_worker`."""
    return partial(
        mask_worker,
        way_to_masks(method),
        mask_parameters(config),
        config.backend,
        Photographs.of(context),
        stage,
        read_cam,
        png_folder,
    )


def stage(
    config: MasksConfig,
    cams: Cams,
    *,
    method: str | None = None,
    name: str = STAGE,
    png_folder: str | None = None,
) -> Stage:
    """The masks of some CAMs.

    Args:
        cams: stored or streamed.
        method: in place of the section's; a name of `MASK_METHODS`, or `WALK`.
        png_folder: see `MaskOutput`.
    """
    method = method or config.method
    known_as = "proportional" if method == "ppmg" else method  # in folders that were made before
    decides = [] if method == WALK else [config]
    return Stage(
        name,
        (*decides, known_as, cams.hash, CODE_VERSION),
        partial(run, config, cams=cams, method=method, png_folder=png_folder),
        images=cams.index.ids,
    )
