"""Class activation maps of present classes (Eq. 1) -> the cams table.

Of whole images at several scales, or of windows (see `nets/scale_cams.py`, `nets/crop_cams.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from pmm_ray.config import CamsConfig
from pmm_ray.nets.crop_cams import CropCams, Photograph, stored_map
from pmm_ray.nets.inference import for_inference
from pmm_ray.nets.registry import load_classifier
from pmm_ray.nets.scale_cams import ScaleCams, ScaledImage, stored_size
from pmm_ray.nets.transfer import OnTheWay
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import TableIndex
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.mapping.overlap import Overlapped
from pmm_ray.runtime.mapping.table_stage import actor_pool, network_batch, run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Worker
from pmm_ray.runtime.rows.cams import cam_row
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.rows.photographs import Photographs, with_long_side

STAGE = "make_cams"
CODE_VERSION = 2

# What an image takes a fast GPU at least, and may take a core (EfficientNet-lite0: 2 s measured).
_IMAGE_SECONDS = {"multi_scale": (0.03, 4.0), "multi_crop": (0.5, 60.0)}


def cam_worker(
    checkpoint_uri: str,
    config: CamsConfig,
    photographs: Photographs,
    use_gpu: bool,
    stage: str = STAGE,
) -> Worker:
    """Makes the worker of one pool process; loads the model once.

    Args:
        checkpoint_uri: the classifier.
        use_gpu: where the model goes.
    """
    device = torch.device("cuda" if use_gpu else "cpu")
    model, _ = load_classifier(checkpoint_uri)
    model = for_inference(model, "cam_scores", config, device)
    if config.kind == "multi_crop":
        return crop_worker(CropCams(model, config, device), photographs, stage)
    return scale_worker(ScaleCams(model, config, device), photographs, stage)


def scale_worker(cams: ScaleCams, photographs: Photographs, stage: str = STAGE) -> Worker:
    """Multi-scale CAMs of a chunk's images, views of one size batched together."""

    def prepare(row: InputRow) -> ScaledImage:
        manifest = row["manifest"]
        labels = photographs.labels(manifest)
        return cams.prepare(photographs.image(manifest), labels)

    def finish(row: InputRow, on_the_way: OnTheWay) -> dict[str, Any]:
        manifest = row["manifest"]
        size = stored_size(manifest["height"], manifest["width"], cams.config.stride)
        (scores_KHW,) = on_the_way.arrays()
        return cam_row(manifest, cams.stored(scores_KHW, size))

    return Overlapped(stage, prepare, cams.scores, finish, cams.batches)


def crop_worker(cams: CropCams, photographs: Photographs, stage: str = STAGE) -> Worker:
    """Multi-crop CAMs of a chunk's images, their windows batched together."""
    max_long = cams.config.max_long

    def prepare(row: InputRow) -> Photograph:
        manifest = row["manifest"]
        labels = photographs.labels(manifest)
        image = photographs.image(manifest)
        if max(image.shape) > max_long:
            image = with_long_side(image, max_long)
        size = stored_size(manifest["height"], manifest["width"], cams.config.stride)
        return Photograph(None, image, labels, size)

    def see(
        images: Iterable[tuple[int, Photograph]],
    ) -> Iterator[tuple[int, tuple[Photograph, OnTheWay]]]:
        numbered = (photograph._replace(key=number) for number, photograph in images)
        for photograph, mean_KHW in cams.merged(numbered):
            yield photograph.key, (photograph, OnTheWay(mean_KHW))

    def finish(row: InputRow, seen: tuple[Photograph, OnTheWay]) -> dict[str, Any]:
        photograph, on_the_way = seen
        (mean_KHW,) = on_the_way.arrays()
        return cam_row(row["manifest"], stored_map(photograph, mean_KHW))

    return Overlapped(stage, prepare, see, finish, cams.batches)


def run(
    config: CamsConfig,
    context: RunContext,
    folder: StageFolder,
    *,
    images: TableIndex,
    checkpoint_uri: str,
) -> Summary:
    """CAMs of every image of `images`, an index of the manifest."""
    return run_table_stage(
        context,
        folder,
        inputs={"manifest": images},
        factory=cam_factory(config, context, checkpoint_uri, folder.stage),
        schema=tables.CAMS,
        pool=actor_pool(context, config),
        batch_size=cam_batch(config, context, len(images)),
    )


def cam_batch(config: CamsConfig, context: RunContext, images: int) -> int:
    """Images per task: on a CPU the windows of a single image may take minutes."""
    if config.batch_size != "auto":
        return config.batch_size
    return network_batch(images, actor_pool(context, config), *_IMAGE_SECONDS[config.kind])


def cam_factory(
    config: CamsConfig, context: RunContext, checkpoint_uri: str, stage: str = STAGE
) -> Callable[[], Worker]:
    """What makes the worker of one actor; see `cam_worker`."""
    use_gpu = context.cluster.gpus >= 1
    return partial(cam_worker, checkpoint_uri, config, Photographs.of(context), use_gpu, stage)


def stage(
    config: CamsConfig,
    data: DataSet,
    classifier: StageFolder,
    images: TableIndex,
    *,
    chosen_by: Sequence[str],
    name: str = STAGE,
) -> Stage:
    """The maps of some images by a trained classifier.

    Args:
        classifier: finished.
        images: rows of the manifest.
        chosen_by: the splits or the ids that say which images these are.
    """
    return Stage(
        name,
        (config, data.hash, list(chosen_by), classifier.result, CODE_VERSION),
        partial(run, config, images=images, checkpoint_uri=classifier.path("model.pt")),
        images=images.ids,
    )
