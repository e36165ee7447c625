"""Class activation maps of present classes (Eq. 1) -> the cams table.

Of whole images at several scales, or of windows (see `crop_cams`).
"""

# K: present classes; H, W: image; h, w: the stored CAM.

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from pmm_ray.config import CamsConfig
from pmm_ray.method.cams import normalize
from pmm_ray.nets.cam_network import CamNetwork
from pmm_ray.nets.crop_cams import CropCams, Photograph
from pmm_ray.nets.halving import in_halves
from pmm_ray.nets.registry import load_classifier
from pmm_ray.nets.views import normalise_views
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import ErrorRow, RowError
from pmm_ray.runtime.core.index import TableIndex
from pmm_ray.runtime.core.machine import MachineError
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.mapping.chunks import InputRow, Pool, Worker, not_an_images, row_by_row
from pmm_ray.runtime.mapping.read_ahead import AHEAD, READER_CPUS, read_ahead
from pmm_ray.runtime.mapping.table_stage import actor_pool, network_batch, run_table_stage
from pmm_ray.runtime.rows.cams import cam_row
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.rows.photographs import Photographs, with_long_side

STAGE = "make_cams"
CODE_VERSION = 2

# What an image takes a fast GPU at least, and may take a core (EfficientNet-lite0: 2 s measured).
_IMAGE_SECONDS = {"multi_scale": (0.03, 4.0), "multi_crop": (0.5, 60.0)}


def stored_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """Rows and columns of the stored CAM: the image's, divided by `stride` and rounded up."""
    return -(-height // stride), -(-width // stride)


def view_sizes(height: int, width: int, config: CamsConfig) -> list[tuple[int, int]]:
    """(rows, columns) of each scale's view, px, after `max_long` has shrunk large images."""
    shrink = min(1.0, config.max_long / max(height, width))
    return [
        (max(1, round(height * shrink * scale)), max(1, round(width * shrink * scale)))
        for scale in config.scales
    ]


@torch.inference_mode()
def multi_scale_cam(
    image_HW3: NDArray[np.uint8],
    labels: list[int],
    model: CamNetwork,
    config: CamsConfig,
    device: torch.device,
) -> NDArray[np.float16]:
    """Sum of the class score maps over scales and mirror images, normalised (Eq. 1).

    Args:
        image_HW3: RGB, uint8.
        labels: present classes, contiguous ids from 1.
        model: scores class maps, [B, C, h, w].
        config: scales, flip, storage stride.
        device: where the model is.

    Returns:
        float16 [K, h, w], 0..1, at storage size.

    Raises:
        RowError: `nonfinite` when the model's scores are not finite.

    Source: SEAM's multi-scale CAM (PIL bicubic views; maps brought to the view's size as the
    network does it, then to the image's; summed, negatives dropped, min-max with a margin of
    1e-5). The result is then stored smaller; images above `max_long` have that size here.
    """
    height, width = image_HW3.shape[:2]
    size = stored_size(height, width, config.stride)
    ((full_height, full_width),) = view_sizes(
        height, width, config.model_copy(update={"scales": (1.0,)})
    )
    full = full_height, full_width
    rows = torch.tensor([label - 1 for label in labels], device=device)
    present_1C = torch.zeros((1, model.num_foreground), device=device)
    present_1C[:, rows] = 1.0
    total_KHW = torch.zeros((len(labels), *full), device=device)
    for view_height, view_width in view_sizes(height, width, config):
        view = Image.fromarray(image_HW3).resize(
            (view_width, view_height), Image.Resampling.BICUBIC
        )
        pixels_3HW = torch.from_numpy(np.array(view)).to(device).permute(2, 0, 1)
        batch = torch.stack([pixels_3HW, pixels_3HW.flip(-1)] if config.flip else [pixels_3HW])
        views = normalise_views(batch, model.input_mean, model.input_std)
        present_BC = present_1C.expand(len(views), -1)
        maps = in_halves(model.cam_scores, views, present_BC)[:, rows]
        maps = functional.interpolate(
            maps.float(), views.shape[2:], mode="bilinear", align_corners=model.align_corners
        )
        maps = functional.interpolate(maps, full, mode="bilinear", align_corners=False)
        total_KHW += maps[0] + maps[1].flip(-1) if config.flip else maps[0]
    scores = total_KHW.cpu().numpy()
    if not np.isfinite(scores).all():
        raise RowError("nonfinite", "the classifier's scores are not finite")
    # before storing: extremes of fewer px would stretch the map otherwise
    normal_1KHW = torch.from_numpy(normalize(scores, "multi_scale"))[None]
    stored = functional.interpolate(normal_1KHW, size, mode="bilinear", align_corners=False)
    return stored[0].numpy().astype(np.float16)


def cam_worker(
    checkpoint_uri: str,
    config: CamsConfig,
    photographs: Photographs,
    use_gpu: bool,
    stage: str = STAGE,
    ahead: int = AHEAD,
) -> Worker:
    """Makes the worker of one pool process; loads the model once.

    Args:
        checkpoint_uri: the classifier.
        config: kind and parameters of the maps.
        photographs: how images are read.
        use_gpu: where the model goes.
        ahead: images that tasks of their own read before windows are cut, see `read_ahead`.
    """
    device = torch.device("cuda" if use_gpu else "cpu")
    model, _ = load_classifier(checkpoint_uri)
    model = model.to(device).eval()
    if config.kind == "multi_crop":
        return crop_worker(CropCams(model, config, device), photographs, stage, ahead)

    def make(row: InputRow, image: NDArray[np.uint8]) -> dict[str, Any]:
        manifest = row["manifest"]
        labels = photographs.labels(manifest)
        return cam_row(manifest, multi_scale_cam(image, labels, model, config, device))

    return photographs.row_by_row(stage, make)


def crop_worker(
    cams: CropCams, photographs: Photographs, stage: str = STAGE, ahead: int = AHEAD
) -> Worker:
    """Multi-crop CAMs of a chunk's images, their windows batched together."""
    read = partial(_read, photographs, cams.config.max_long)

    def photograph(key: int, row: InputRow, pixels: NDArray[np.uint8]) -> Photograph:
        size = row["manifest"]["height"], row["manifest"]["width"]
        labels = photographs.labels(row["manifest"])
        return Photograph(key, pixels, labels, stored_size(*size, cams.config.stride))

    def readable(rows: Sequence[InputRow], failed: dict[int, RowError]) -> Iterator[Photograph]:
        images = read_ahead([row["manifest"] for row in rows], read, ahead)
        for key, (row, pixels) in enumerate(zip(rows, images, strict=True)):
            if isinstance(pixels, RowError):
                failed[key] = pixels
            else:
                yield photograph(key, row, pixels)

    def make(row: InputRow) -> dict[str, Any]:
        ((_, cam),) = cams([photograph(0, row, read(row["manifest"]))])
        if isinstance(cam, RowError):
            raise cam
        return cam_row(row["manifest"], cam)

    alone = row_by_row(stage, make)

    def worker(rows: Sequence[InputRow]) -> Iterator[dict[str, Any] | ErrorRow]:
        failed: dict[int, RowError] = {}
        made: dict[int, dict[str, Any]] = {}
        # one image may fail its whole batch: each is tried again alone, and gets its own error row
        fault: MachineError | None = None
        try:
            for key, cam in cams(readable(rows, failed)):
                if isinstance(cam, RowError):
                    failed[key] = cam
                else:
                    made[key] = cam_row(rows[key]["manifest"], cam)
        except Exception as failure:
            try:
                not_an_images(failure)
            except MachineError as of_machine:
                fault = of_machine
        yield from made.values()
        for key, error in failed.items():
            manifest = rows[key]["manifest"]
            uri = error.uri or manifest.get("uri") or ""
            yield ErrorRow(manifest["image_id"], stage, error.kind, error.message, uri)
        if fault is not None:
            raise fault
        yield from alone([row for key, row in enumerate(rows) if key not in {*made, *failed}])

    return worker


def _read(
    photographs: Photographs, max_long: int, manifest: Mapping[str, Any]
) -> NDArray[np.uint8]:
    """A labelled photograph, its long side at most `max_long` px."""
    photographs.labels(manifest)
    image = photographs.image(manifest)
    return with_long_side(image, max_long) if max(image.shape) > max_long else image


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
        pool=cam_pool(config, context),
        batch_size=cam_batch(config, context, len(images)),
    )


def cam_batch(config: CamsConfig, context: RunContext, images: int) -> int:
    """Images per task: on a CPU the windows of a single image may take minutes."""
    if config.batch_size != "auto":
        return config.batch_size
    return network_batch(images, cam_pool(config, context), *_IMAGE_SECONDS[config.kind])


def cam_pool(config: CamsConfig, context: RunContext) -> Pool:
    """Actors that hold the classifier; on CPUs each leaves room for the tasks that read for it."""
    return actor_pool(context, config.actors, cpus=1.0 - 2 * READER_CPUS)


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
        rows=len(images),
    )
