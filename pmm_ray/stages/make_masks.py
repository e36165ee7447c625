"""Pseudo-masks from CAMs on every CPU: CVS, per-class CRF, PPMG (Alg. 1) -> the masks table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pmm_ray.config import BaseConfig, CrfConfig, MasksConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.method.cams import upsample_cam
from pmm_ray.method.crf import CrfParameters
from pmm_ray.method.masks import MaskParameters, argmax_mask, proportional_mask
from pmm_ray.runtime import storage, tables
from pmm_ray.runtime.errors import CannotRunError, RowError
from pmm_ray.runtime.images import encode_mask
from pmm_ray.runtime.index import TableIndex
from pmm_ray.runtime.placement import mask_memory
from pmm_ray.runtime.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.stream import (
    CONSUMER_CPUS,
    PRODUCER_CPUS,
    InputRow,
    Pool,
    Producer,
    Worker,
    row_by_row,
)
from pmm_ray.runtime.table_stage import auto_batch, run_table_stage
from pmm_ray.stages.photographs import Photographs, large_image

STAGE = "make_masks"
CODE_VERSION = 1

# A mask of a VOC photograph, on one core: measured by benchmarks/masks_pipeline.py.
IMAGE_SECONDS = 0.06

Method = Literal["proportional", "cam_argmax", "crf_argmax"]
# (labels, floating [K, h, w]) of a row; how `pmm masks` reads the CAMs that others made
CamReader = Callable[[InputRow], tuple[list[int], NDArray[Any]]]


def crf_parameters(config: CrfConfig) -> CrfParameters:
    """The method's parameters of a configuration section."""
    return CrfParameters(**config.model_dump())


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


def mask_row(
    manifest_row: dict[str, Any], mask_HW: NDArray[Any], label_space: LabelSpace, round_number: int
) -> dict[str, Any]:
    """A row of the masks table."""
    counts = np.bincount(mask_HW.ravel(), minlength=label_space.num_classes)
    present = counts[1 : label_space.num_classes]
    return {
        "image_id": manifest_row["image_id"],
        "height": mask_HW.shape[0],
        "width": mask_HW.shape[1],
        "mask_png": encode_mask(mask_HW, label_space),
        "foreground": float(present.sum() / mask_HW.size),
        "labels": [int(label) + 1 for label in np.flatnonzero(present)],
        "round": round_number,
    }


def decode_cam(row: dict[str, Any]) -> NDArray[np.float16]:
    """The float16 [K, h, w] array of a cams row."""
    shape = (len(row["labels"]), row["cam_height"], row["cam_width"])
    return np.frombuffer(row["cam"], "<f2").reshape(shape)


def table_cam(row: InputRow) -> tuple[list[int], NDArray[Any]]:
    """Labels and CAM of a row of our own cams table."""
    return row["cams"]["labels"], decode_cam(row["cams"])


def mask_worker(
    method: Method,
    parameters: MaskParameters,
    backend: Literal["lattice", "pydensecrf"],
    photographs: Photographs,
    stage: str,
    read_cam: CamReader = table_cam,
    png_folder: str | None = None,
) -> Worker:
    """Makes the worker of one task.

    With `png_folder` each mask is also written there as `<image_id>.png`.
    """

    def make(row: InputRow) -> dict[str, Any]:
        manifest = row["manifest"]
        image = photographs.image(manifest)
        labels, stored = read_cam(row)
        if not np.isfinite(stored).all():
            raise RowError("nonfinite", "the CAM holds NaN or infinity")
        cam = upsample_cam(stored, *image.shape[:2])
        if method == "proportional":
            mask = proportional_mask(image, cam, labels, parameters, backend)
        else:
            use_crf = method == "crf_argmax"
            mask = argmax_mask(image, cam, labels, parameters, backend, use_crf)
        out = mask_row(manifest, mask, photographs.label_space, round_number=0)
        if png_folder is not None:
            name = f"{tables.check_image_id(manifest['image_id'])}.png"
            storage.write_bytes(storage.join(png_folder, name), out["mask_png"])
        return out

    return photographs.reading_ahead(row_by_row(stage, make))


def run(
    config: MasksConfig,
    context: RunContext,
    folder: StageFolder,
    *,
    cams: TableIndex,
    images: TableIndex,
    method: Method = "proportional",
    read_cam: CamReader = table_cam,
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
    read_cam: CamReader = table_cam,
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
