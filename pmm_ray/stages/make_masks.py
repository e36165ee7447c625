"""Pseudo-masks from CAMs on every CPU: CVS, per-class CRF, PPMG (Alg. 1) -> the masks table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from latticecrf import CrfParameters
from pmm_ray.config import BaseConfig, MasksConfig
from pmm_ray.method.masks import MaskParameters, argmax_mask, proportional_mask
from pmm_ray.runtime.cluster.placement import mask_memory
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import TableIndex
from pmm_ray.runtime.core.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.mapping.stream import (
    CONSUMER_CPUS,
    PRODUCER_CPUS,
    InputRow,
    Pool,
    Producer,
    Worker,
    row_by_row,
)
from pmm_ray.runtime.mapping.table_stage import auto_batch, run_table_stage
from pmm_ray.runtime.rows.cams import ReadCam, cam_at, table_cam
from pmm_ray.runtime.rows.masks import MaskOutput, crf_parameters
from pmm_ray.runtime.rows.photographs import Photographs, large_image

STAGE = "make_masks"
CODE_VERSION = 1

# A mask of a VOC photograph, on one core: measured by benchmarks/masks_pipeline.py.
IMAGE_SECONDS = 0.06

Method = Literal["proportional", "cam_argmax", "crf_argmax"]


def mask_parameters(config: MasksConfig, method: Method) -> MaskParameters:
    """The method's parameters; the argmax rows of Tab. 2 take the CAM as it is, CRF row A."""
    if config.alpha == "auto":
        raise CannotRunError("masks.alpha: auto is resolved by `pmm run` only: give a number here")
    if method != "proportional":
        return MaskParameters(
            alpha=config.alpha, smoothing=0.0, zero_below_threshold=False, crf=CrfParameters.seam()
        )
    variant = MaskParameters.paper() if config.semantics == "paper" else MaskParameters()
    return MaskParameters(
        alpha=config.alpha,
        smoothing=config.smoothing,
        threshold=config.threshold,
        crf=crf_parameters(config.crf),
        zero_below_threshold=variant.zero_below_threshold,
        foreground_threshold=variant.foreground_threshold,
        proportion_offset=variant.proportion_offset,
    )


def mask_worker(
    method: Method,
    parameters: MaskParameters,
    backend: Literal["lattice", "pydensecrf"],
    photographs: Photographs,
    stage: str,
    read_cam: ReadCam = table_cam,
    png_folder: str | None = None,
) -> Worker:
    """Makes the worker of one task.

    With `png_folder` each mask is also written there as `<image_id>.png`.
    """

    output = MaskOutput(photographs.label_space, png_folder=png_folder)

    def make(row: InputRow) -> dict[str, Any]:
        manifest = row["manifest"]
        image = photographs.image(manifest)
        labels, cam = cam_at(image.shape[:2], row, read_cam)
        if method == "proportional":
            mask = proportional_mask(image, cam, labels, parameters, backend)
        else:
            use_crf = method == "crf_argmax"
            mask = argmax_mask(image, cam, labels, parameters, backend, use_crf)
        return output(manifest, mask)

    return photographs.reading_ahead(row_by_row(stage, make))


def run(
    config: MasksConfig,
    context: RunContext,
    folder: StageFolder,
    *,
    cams: TableIndex,
    images: TableIndex,
    method: Method = "proportional",
    read_cam: ReadCam = table_cam,
    png_folder: str | None = None,
) -> Summary:
    """Masks of every image of `cams` (an index of a table whose rows `read_cam` reads)."""
    pool = mask_pool(config, context)
    batch = config.batch_size
    if batch == "auto":
        batch = auto_batch(len(cams), pool.size, IMAGE_SECONDS)
    return run_table_stage(
        context,
        folder,
        inputs={"cams": cams, "manifest": images},
        primary="cams",
        factory=mask_factory(config, context, folder.stage, method, read_cam, png_folder),
        schema=tables.MASKS,
        pool=pool,
        batch_size=batch,
    )


def run_fused(
    config: MasksConfig,
    context: RunContext,
    folder: StageFolder,
    *,
    images: TableIndex,
    checkpoint_uri: str,
    method: Method = "proportional",
) -> Summary:
    """Masks of every image of `images`, whose CAMs go from actor to task without touching disk.

    A row is what `make_cams` would have stored, so the masks are the same bytes. Error rows of
    both steps are rows of this stage's errors table.

    Args:
        config: the mask section.
        context: the run.
        folder: the stage's folder.
        images: index of the manifest.
        checkpoint_uri: the classifier.
        method: from CAM to mask.
    """
    from pmm_ray.stages import make_cams  # torch, which a process of the other pool never imports

    pool = replace(mask_pool(config, context), cpus=CONSUMER_CPUS)
    first = make_cams.cam_pool(context.config.cams, context)
    if first.gpus == 0:
        first = replace(first, cpus=PRODUCER_CPUS, labels=pool.labels)
    batch = config.batch_size
    if batch == "auto":
        batch = make_cams.cam_batch(context.config.cams, context)
    return run_table_stage(
        context,
        folder,
        inputs={"manifest": images},
        primary="manifest",
        factory=mask_factory(config, context, folder.stage, method),
        schema=tables.MASKS,
        pool=pool,
        batch_size=batch,
        producer=Producer(
            "cams",
            make_cams.cam_factory(context.config.cams, context, checkpoint_uri),
            tables.CAMS,
            first,
        ),
    )


def mask_pool(config: MasksConfig | BaseConfig, context: RunContext) -> Pool:
    """Tasks on every CPU where stages without a GPU run."""
    cluster = context.cluster
    return Pool(
        cluster.default_tasks() if config.tasks == "auto" else config.tasks,
        memory=mask_memory(large_image(context.manifest.uri), cluster.node_memory),
        labels=cluster.cpu_stage_labels,
    )


def mask_factory(
    config: MasksConfig,
    context: RunContext,
    stage: str,
    method: Method,
    read_cam: ReadCam = table_cam,
    png_folder: str | None = None,
) -> Callable[[], Worker]:
    """What makes the worker of one task; see `mask_worker`."""
    return partial(
        mask_worker,
        method,
        mask_parameters(config, method),
        config.backend,
        Photographs.of(context),
        stage,
        read_cam,
        png_folder,
    )
