"""The classifier's training augmentation: resize, mirror, colour jitter, normalise, crop.

Legend: H, W = image px, S = side of the crop. Order and ranges: released code (SEAM's); the jitter
is applied to the crop instead of the whole image, which only its contrast's mean can tell.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pmm_ray.runtime.rows.photographs import with_long_side

Image = NDArray[Any]
# hue's share of the jitter strength: the released code pairs 0.3 with 0.1
_HUE_SHARE = 1 / 3
_GREY = np.array((0.299, 0.587, 0.114), np.float32)


def augment(
    image_HW3: NDArray[np.uint8],
    rng: np.random.Generator,
    *,
    crop_size: int,
    color_jitter: float,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    resize_long: tuple[int, int] | None = None,
) -> Image:
    """One random training view.

    Args:
        image_HW3: uint8 RGB.
        rng: the only source of randomness.
        crop_size: S, px. Where the resized image is smaller, it is pasted at a random place into
            zeros, which stand for the mean colour.
        color_jitter: brightness, contrast and saturation factors are random in 1 +- this, the
            hue shift from +- a third of it (1 = the whole circle).
        mean, std: normalisation of RGB in 0..1.
        resize_long: the long side is a random number of this closed range, px; None: as it is.

    Returns:
        float32 [3, S, S].
    """
    if resize_long is not None:
        image_HW3 = with_long_side(image_HW3, int(rng.integers(resize_long[0], resize_long[1] + 1)))
    if rng.random() < 0.5:
        image_HW3 = image_HW3[:, ::-1]
    height, width = image_HW3.shape[:2]
    rows, top = window(height, crop_size, rng)
    columns, left = window(width, crop_size, rng)
    crop = np.ascontiguousarray(image_HW3[rows, columns], np.float32) / np.float32(255)
    crop = (jitter(crop, rng, color_jitter) - np.array(mean, np.float32)) / np.array(
        std, np.float32
    )
    out = np.zeros((3, crop_size, crop_size), np.float32)
    out[:, top : top + crop.shape[0], left : left + crop.shape[1]] = crop.transpose(2, 0, 1)
    return out


def jitter(image_HW3: Image, rng: np.random.Generator, strength: float) -> Image:
    """Brightness, contrast, saturation and hue changed in random order.

    Args:
        image_HW3: float32 RGB, 0..1.
        rng: the only source of randomness.
        strength: see `augment`; 0 returns the image as it is.
    """
    if strength == 0:
        return image_HW3
    factors = rng.uniform(1 - strength, 1 + strength, 3).astype(np.float32)
    shift = rng.uniform(-strength * _HUE_SHARE, strength * _HUE_SHARE)
    out = image_HW3
    for change in rng.permutation(4):
        if change == 0:
            out = out * factors[0]
        elif change == 1:
            out = out * factors[1] + (1 - factors[1]) * (out @ _GREY).mean()
        elif change == 2:
            out = out * factors[2] + (1 - factors[2]) * (out @ _GREY)[..., None]
        else:
            hsv = cv2.cvtColor(np.ascontiguousarray(out, np.float32), cv2.COLOR_RGB2HSV)
            hsv[..., 0] = (hsv[..., 0] + 360 * shift) % 360
            out = cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)
        out = np.clip(out, 0, 1, dtype=np.float32)
    return out


def window(side: int, crop: int, rng: np.random.Generator) -> tuple[slice, int]:
    """(what to cut from an axis, where it goes in the crop)."""
    if side >= crop:
        start = int(rng.integers(0, side - crop + 1))
        return slice(start, start + crop), 0
    return slice(0, side), int(rng.integers(0, crop - side + 1))
