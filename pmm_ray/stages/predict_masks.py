"""Masks from the segmenter: multi-scale, flip, softmax mean, dense CRF -> a masks table.

On the training split this is the cyclic relabel (paper 3.5); on unlabelled photographs it is what
`pmm predict` does.
"""

# C: classes with the background; H, W: image; h, w: a view of it.

from __future__ import annotations

from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pmm_ray.config import PredictConfig
from pmm_ray.method.crf import DenseCrf
from pmm_ray.nets.segmenter import describe, load_segmenter, predict_logits
from pmm_ray.nets.views import normalise_views
from pmm_ray.runtime import storage, tables
from pmm_ray.runtime.errors import RowError
from pmm_ray.runtime.index import TableIndex
from pmm_ray.runtime.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.stream import InputRow, Pool, Worker, row_by_row
from pmm_ray.runtime.table_stage import run_table_stage
from pmm_ray.stages.make_masks import crf_parameters, mask_row
from pmm_ray.stages.photographs import Photographs

CODE_VERSION = 1


def view_size(height: int, width: int, base: tuple[int, int], ratio: float) -> tuple[int, int]:
    """(rows, columns) of a view: the largest that fits `base` (long, short) times `ratio`."""
    long, short = max(base) * ratio, min(base) * ratio
    scale = min(long / max(height, width), short / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


@torch.inference_mode()
def mean_probabilities(
    image_HW3: NDArray[np.uint8],
    model: torch.nn.Module,
    config: PredictConfig,
    device: torch.device,
) -> NDArray[np.float32]:
    """Mean of the softmax over scales and mirror images.

    Args:
        image_HW3: RGB, uint8.
        model: from `load_segmenter`, in eval mode.
        config: ratios, flip, base size.
        device: where the model is.

    Returns:
        float32 [C, H, W]; sums to 1 over C.

    Raises:
        RowError: `nonfinite` when the network's output is not finite.

    Source: released code's test pipeline, section 4 of the paper: logits are resized to the image
    before the softmax; whole-image mode.
    """
    height, width = image_HW3.shape[:2]
    about = describe(model)
    total: torch.Tensor | None = None
    views = 0
    for ratio in config.ratios:
        rows, columns = view_size(height, width, config.resize_base, ratio)
        view = cv2.resize(image_HW3, (columns, rows), interpolation=cv2.INTER_LINEAR)
        pixels = torch.from_numpy(view).to(device).permute(2, 0, 1)
        for flip in (False, True) if config.flip else (False,):
            batch = (pixels.flip(-1) if flip else pixels)[None]
            logits = predict_logits(
                model, normalise_views(batch, about.input_mean, about.input_std)
            )
            logits = functional.interpolate(
                logits.flip(-1) if flip else logits,
                (height, width),
                mode="bilinear",
                align_corners=False,
            )
            probabilities = logits[0].softmax(0)
            total = probabilities if total is None else total.add_(probabilities)
            views += 1
    assert total is not None
    mean: NDArray[np.float32] = (total / views).cpu().numpy()
    if not np.isfinite(mean).all():
        raise RowError("nonfinite", "the segmenter's output is not finite")
    return mean


def predict_worker(
    checkpoint_uri: str,
    config: PredictConfig,
    photographs: Photographs,
    stage: str,
    round_number: int,
    use_gpu: bool,
    png_folder: str | None = None,
) -> Worker:
    """Makes the worker of one pool process; loads the model once.

    With `png_folder` each mask is also written there as `<image_id>.png`.
    """
    device = torch.device("cuda" if use_gpu else "cpu")
    model, _ = load_segmenter(checkpoint_uri)
    model = model.to(device).eval()

    def predict(row: InputRow) -> dict[str, Any]:
        manifest = row["manifest"]
        image = photographs.image(manifest)
        scores_CHW = mean_probabilities(image, model, config, device)
        allowed = np.arange(len(scores_CHW))
        if config.use_image_labels:
            allowed = np.array([0, *photographs.labels(manifest)])
        scores_MHW = np.ascontiguousarray(scores_CHW[allowed])
        if config.use_crf and len(allowed) > 1:
            crf = DenseCrf(image, crf_parameters(config.crf), config.backend)
            scores_MHW = crf.joint(scores_MHW)
        space = photographs.label_space
        mask = allowed.astype(space.mask_dtype)[scores_MHW.argmax(0)]
        out = mask_row(manifest, mask, space, round_number)
        if png_folder is not None:
            name = f"{tables.check_image_id(manifest['image_id'])}.png"
            storage.write_bytes(storage.join(png_folder, name), out["mask_png"])
        return out

    return row_by_row(stage, predict)


def run(
    config: PredictConfig,
    context: RunContext,
    folder: StageFolder,
    *,
    images: TableIndex,
    checkpoint_uri: str,
    round_number: int,
    png_folder: str | None = None,
) -> Summary:
    """Masks of every image of `images` (an index of the manifest) with a segmenter checkpoint."""
    cluster = context.cluster
    use_gpu = cluster.gpus >= 1
    actors = cluster.default_actors() if config.actors == "auto" else config.actors
    factory = partial(
        predict_worker,
        checkpoint_uri,
        config,
        Photographs.of(context),
        folder.stage,
        round_number,
        use_gpu,
        png_folder,
    )
    return run_table_stage(
        context,
        folder,
        inputs={"manifest": images},
        primary="manifest",
        factory=factory,
        schema=tables.MASKS,
        pool=Pool(actors, actors=True, cpus=1.0, gpus=1.0 if use_gpu else 0.0),
        batch_size=config.batch_size,
    )
