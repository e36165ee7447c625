"""Class activation maps: normalization (Eq. 1) and coefficient-of-variation smoothing (Eq. 5-6)."""

# K: present classes; H, W: image; h, w: the stored, smaller CAM.

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from latticecrf.checks import Float32Array, FloatArray, check_array
from latticecrf.ranges import check_number

Normalization = Literal["paper", "multi_crop", "multi_scale"]

# Released code: the margin of the minimum and of the denominator.
_EPSILON = 1e-5


def normalize(cam_KHW: FloatArray, variant: Normalization = "paper") -> Float32Array:
    """Stretch each class's map to 0..1 over the whole image (Eq. 1, Alg. 1 line 1).

    Args:
        cam_KHW: Raw scores, floating [K, H, W], finite.
        variant: `"paper"` is Eq. 1, with a constant map becoming zero. `"multi_crop"` and
            `"multi_scale"` are the released code's formulas for the two kinds of CAM: scores
            within 1e-5 of the minimum become 0 and the denominator gains 1e-5; multi-scale also
            drops negative scores first and subtracts 1e-5 more. The pixels of the minimum are 0
            here; the released code leaves them slightly negative, or high where the minimum is
            below 0, which SEAM's maps never are.

    Returns:
        float32 [K, H, W] in 0..1.

    Raises:
        ValueError: Wrong shape, dtype, variant, or non-finite values.
    """
    cam = check_array("cam_KHW", cam_KHW, "KHW").astype(np.float64)
    if variant not in ("paper", "multi_crop", "multi_scale"):
        raise ValueError(f"unknown normalization {variant!r}")
    if cam.size == 0:
        return cam.astype(np.float32)
    if variant == "multi_scale":
        cam = np.maximum(cam, 0.0)
    low = cam.min(axis=(1, 2), keepdims=True)
    high = cam.max(axis=(1, 2), keepdims=True)
    if variant == "paper":
        spread = high - low
        normal = (cam - low) / np.where(spread > 0.0, spread, 1.0)
    else:
        offset = _EPSILON if variant == "multi_scale" else 0.0
        normal = (cam - low - offset) / (high - low + _EPSILON)
        # The released code sets them to 0 before: far above a minimum below 0.
        normal[cam < low + _EPSILON] = 0.0
    return np.clip(normal, 0.0, 1.0).astype(np.float32)


def coefficient_of_variation(
    cam_KHW: FloatArray, threshold: float = 0.05
) -> npt.NDArray[np.float64]:
    """Relative spread of each class's foreground scores (Eq. 5, Alg. 1 line 2).

    Args:
        cam_KHW: Normalized CAM, floating [K, H, W]. float16 is safe: statistics are float64
            (in half precision the sums overflow and a class floods the image).
        threshold: Scores strictly above it count as foreground, 0..1.

    Returns:
        float64 [K]: population standard deviation / mean of the foreground scores; 0 where a
        class has none.

    Raises:
        ValueError: Wrong shape, dtype or threshold, or non-finite values.
    """
    cam = check_array("cam_KHW", cam_KHW, "KHW")
    check_number("threshold", threshold, 0.0, 1.0)
    variation_K = np.zeros(len(cam))
    for k, map_HW in enumerate(cam):
        foreground = map_HW[map_HW > threshold].astype(np.float64)
        if foreground.size:
            # Released code: 1e-8 keeps the mean positive.
            variation_K[k] = foreground.std() / (foreground + 1e-8).mean()
    return variation_K


def smooth(
    cam_KHW: FloatArray,
    smoothing: float = 0.3,
    threshold: float = 0.05,
    zero_below_threshold: bool = True,
) -> Float32Array:
    """Raise each class's map to the power `1 - smoothing * cv` (Eq. 6, Alg. 1 line 3).

    Args:
        cam_KHW: Normalized CAM, floating [K, H, W], 0..1.
        smoothing: The paper's s, >= 0; 0 raises no score.
        threshold: The paper's t, 0..1: see `coefficient_of_variation`.
        zero_below_threshold: Set scores below `threshold` to 0 first, as the released code
            does; False is Eq. 6 to the letter, which amplifies weak responses too.

    Returns:
        float32 [K, H, W], 0..1. A score of 0 stays 0; the power never falls below 0.

    Raises:
        ValueError: Wrong shape, dtype or parameter, non-finite values, or scores outside 0..1.
    """
    cam = check_cam(cam_KHW)
    check_number("smoothing", smoothing, 0.0)
    variation_K = coefficient_of_variation(cam, threshold)
    power_K = np.maximum(1.0 - smoothing * variation_K, 0.0).astype(np.float32)
    smooth_KHW = cam.copy()
    if zero_below_threshold:
        smooth_KHW[smooth_KHW < threshold] = 0.0
    # 0 ** 0 is 1: a class whose power reaches 0 must not turn its empty area into foreground.
    np.power(smooth_KHW, power_K[:, None, None], out=smooth_KHW, where=smooth_KHW > 0.0)
    return smooth_KHW


def upsample_cam(cam_Khw: FloatArray, height: int, width: int) -> Float32Array:
    """Resize a stored CAM to the image by OpenCV's bilinear interpolation, clipped to 0..1.

    Args:
        cam_Khw: Normalized CAM, floating [K, h, w], finite, h and w at least 1.
        height: Rows of the result, pixels, at least 1.
        width: Columns of the result, pixels, at least 1.

    Returns:
        float32 [K, height, width], 0..1.

    Raises:
        ValueError: Wrong shape, dtype or size, or non-finite values.
    """
    cam = check_array("cam_Khw", cam_Khw, "Khw")
    if cam.shape[1] == 0 or cam.shape[2] == 0 or height < 1 or width < 1:
        raise ValueError(f"cannot resize a CAM of shape {cam.shape} to {height} x {width}")
    cam_KHW = np.empty((len(cam), height, width), np.float32)
    for k, map_hw in enumerate(cam):
        source_hw = np.ascontiguousarray(map_hw, dtype=np.float32)
        cam_KHW[k] = cv2.resize(source_hw, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.clip(cam_KHW, 0.0, 1.0, out=cam_KHW)


def check_cam(cam_KHW: object, height: int | None = None, width: int | None = None) -> Float32Array:
    """Return a normalized CAM as float32 with negative scores set to 0.

    The released code stores slightly negative scores at a map's minimum; they mean "nothing".
    Scores above 1 mean that the CAM was not normalized.

    Raises:
        ValueError: Wrong shape or dtype, non-finite values, or scores above 1.
    """
    cam = np.asarray(check_array("cam_KHW", cam_KHW, "KHW", (None, height, width)), np.float32)
    highest = float(cam.max(initial=0.0))
    if highest > 1.0 + 1e-3:
        raise ValueError(f"cam_KHW has scores up to {highest:g}: normalize it to 0..1 first")
    return np.clip(cam, 0.0, 1.0)
