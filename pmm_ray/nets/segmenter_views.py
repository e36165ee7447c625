"""The segmenter on one photograph at test time: scales, mirror images, windows, softmax mean."""

# B: a view and its mirror image; C: classes with the background; H, W: the view or its window.

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from pmm_ray.config import PredictConfig
from pmm_ray.nets.halving import in_halves
from pmm_ray.nets.segmenter import describe, predict_logits
from pmm_ray.nets.transfer import staged
from pmm_ray.nets.views import normalise_views
from pmm_ray.runtime.core.errors import RowError


def view_size(height: int, width: int, base: tuple[int, int], ratio: float) -> tuple[int, int]:
    """(rows, columns) of a view: the largest that fits `base` (long, short) times `ratio`."""
    long, short = max(base) * ratio, min(base) * ratio
    scale = min(long / max(height, width), short / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Where the windows along one side begin: every `stride`, the last one ending with the side."""
    steps = max(0, -(-(length - crop) // stride))
    return [max(0, min(step * stride, length - crop)) for step in range(steps + 1)]


def view_logits(
    model: torch.nn.Module, views_B3HW: torch.Tensor, config: PredictConfig
) -> torch.Tensor:
    """Logits of views of one size, at that size, float32 [B, C, H, W].

    Args:
        model: from `load_segmenter`, in eval mode.
        views_B3HW: float32, normalised.
        config: mode, window, stride, windows at once.

    In mode `slide` a view is cut into square windows, clipped where a side is shorter, and the
    logits of windows that overlap are averaged (released code: mmsegmentation's slide inference).
    """
    height, width = views_B3HW.shape[2:]
    crop = (height, width)
    tops, lefts = [0], [0]
    if config.mode == "slide":
        crop = (min(config.crop_size, height), min(config.crop_size, width))
        tops = window_starts(height, config.crop_size, config.stride)
        lefts = window_starts(width, config.crop_size, config.stride)
    places = [(b, y, x) for y in tops for x in lefts for b in range(len(views_B3HW))]
    total_BCHW = torch.empty(0)
    count_HW = torch.zeros((height, width), device=views_B3HW.device)
    for first in range(0, len(places), config.windows_at_once):
        some = places[first : first + config.windows_at_once]
        windows = [views_B3HW[b, :, y : y + crop[0], x : x + crop[1]] for b, y, x in some]
        logits_NChw = in_halves(partial(predict_logits, model), torch.stack(windows))
        if first == 0:
            shape = (len(views_B3HW), logits_NChw.shape[1], height, width)
            total_BCHW = logits_NChw.new_zeros(shape)
        for (b, y, x), logits_Chw in zip(some, logits_NChw, strict=True):
            total_BCHW[b, :, y : y + crop[0], x : x + crop[1]] += logits_Chw
            count_HW[y : y + crop[0], x : x + crop[1]] += b == 0
    return total_BCHW / count_HW


def make_views(
    image_HW3: NDArray[np.uint8], config: PredictConfig, device: torch.device
) -> list[torch.Tensor]:
    """A photograph at each ratio of the base size, uint8 [rows, columns, 3], on the CPU.

    Args:
        image_HW3: RGB, uint8.
        config: ratios, base size.
        device: where the views will go, see `staged`.
    """
    height, width = image_HW3.shape[:2]
    sizes = [view_size(height, width, config.resize_base, ratio) for ratio in config.ratios]
    return [
        staged(cv2.resize(image_HW3, size[::-1], interpolation=cv2.INTER_LINEAR), device)
        for size in sizes
    ]


@torch.inference_mode()
def view_probabilities(
    views: Sequence[torch.Tensor],
    size: tuple[int, int],
    model: torch.nn.Module,
    config: PredictConfig,
    device: torch.device,
) -> torch.Tensor:
    """Mean of the softmax over views and their mirror images, on the device; waits for nothing.

    Args:
        views: from `make_views`.
        size: of the photograph, rows and columns.
        model: from `load_segmenter`, in eval mode.
        config: flip, mode.
        device: where the model is.

    Returns:
        float32 [C, H, W]; sums to 1 over C. NaN where the network's output is not finite.

    Source: released code's test pipeline, section 4 of the paper: logits are resized to the image
    before the softmax.
    """
    about = describe(model)
    total_CHW: torch.Tensor | None = None
    for view in views:
        pixels_3HW = view.to(device, non_blocking=True).permute(2, 0, 1)
        both = torch.stack([pixels_3HW, pixels_3HW.flip(-1)] if config.flip else [pixels_3HW])
        inputs = normalise_views(both, about.input_mean, about.input_std)
        logits = view_logits(model, inputs, config)
        logits = functional.interpolate(logits, size, mode="bilinear", align_corners=False)
        probabilities = logits.softmax(1)
        if config.flip:
            probabilities[1] = probabilities[1].flip(-1)
        summed = probabilities.sum(0)
        total_CHW = summed if total_CHW is None else total_CHW.add_(summed)
    assert total_CHW is not None
    return total_CHW.div_(len(views) * (1 + config.flip))


def mean_probabilities(
    image_HW3: NDArray[np.uint8],
    model: torch.nn.Module,
    config: PredictConfig,
    device: torch.device,
) -> NDArray[np.float32]:
    """See `view_probabilities`, of one photograph, on the CPU.

    Raises:
        RowError: `nonfinite` when the network's output is not finite.
    """
    views = make_views(image_HW3, config, device)
    mean_CHW = view_probabilities(views, image_HW3.shape[:2], model, config, device)
    found: NDArray[np.float32] = mean_CHW.cpu().numpy()
    return checked(found)


def checked(mean_CHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities as they are.

    Raises:
        RowError: `nonfinite`.
    """
    # a sum needs no array of flags; what is not finite stays in it
    if not np.isfinite(mean_CHW.sum()):
        raise RowError("nonfinite", "the segmenter's output is not finite")
    return mean_CHW
