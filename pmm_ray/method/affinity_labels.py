"""What an affinity network learns from: where two CRF strengths agree (Tab. 2 and 3)."""

# K: present classes; H, W: image.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from latticecrf import CrfParameters, DenseCrf
from latticecrf.checks import FloatArray
from latticecrf.dense_crf import Backend
from latticecrf.ranges import check_number
from pmm_ray.method.masks import Mask, check_cams, with_background

CELL = 8
"""Input px per feature px of the affinity network."""


def confident_labels(
    image_HW3: npt.NDArray[np.uint8],
    cam_KHW: FloatArray,
    labels: Sequence[int],
    *,
    alpha_low: float = 4.0,
    alpha_high: float = 24.0,
    ignore: int = 255,
    crf: CrfParameters | None = None,
    backend: Backend = "lattice",
) -> Mask:
    """Hard labels of cells whose class does not depend on how strong the background is.

    Both posteriors are averaged over cells of `CELL` px. With a low exponent the background
    score is high: what is a class all the same is confident foreground. With a high one it is low:
    what is background all the same is confident background, whatever the low one says. The rest is
    ignored.

    Args:
        image_HW3: RGB image, uint8 [H, W, 3].
        cam_KHW: normalized CAM at the image's size, floating [K, H, W], 0..1.
        labels: K different label ids, 1..65534.
        alpha_low: the low exponent of the background score, > 0 (released SEAM code: 4).
        alpha_high: the high one, above it (released SEAM code: 24).
        ignore: value of pixels that are neither.
        crf: kernels and iterations of both joint CRFs; `CrfParameters.seam()` when None.
        backend: CRF backend, see `DenseCrf`.

    Returns:
        [H, W] of 0, label ids and `ignore`, alike within a cell; uint8, or uint16 where an id or
        `ignore` needs it. All `ignore` without a class.

    Raises:
        ValueError: a shape, dtype, label or value does not fit, or the exponents are not in order.

    Source: AffinityNet 3.2; released code of AffinityNet, SEAM and PMM, which averages the two
    posteriors over 8 x 8 px after cropping, wherever the crop begins.
    """
    check_number("alpha_low", alpha_low, 0.0, low_open=True)
    check_number("alpha_high", alpha_high, alpha_low, low_open=True)
    image, cam, label_ids = check_cams(image_HW3, cam_KHW, labels)
    dtype = np.min_scalar_type(max([ignore, *labels]))
    if len(cam) == 0:
        return np.full(image.shape[:2], ignore, dtype)
    solver = DenseCrf(image, crf if crf is not None else CrfParameters.seam(), backend)
    low_hw, high_hw = (
        _cell_sums(solver.joint(with_background(cam, label_ids, alpha))).argmax(axis=0)
        for alpha in (alpha_low, alpha_high)
    )
    labels_hw = np.concatenate([[ignore], np.sort(label_ids)]).astype(dtype)[low_hw]
    labels_hw[high_hw == 0] = 0
    whole = labels_hw.repeat(CELL, axis=0).repeat(CELL, axis=1)
    return whole[: image.shape[0], : image.shape[1]]


def _cell_sums(planes_MHW: FloatArray) -> FloatArray:
    """Sums over cells from the upper left corner; the last of an axis may be narrower."""
    height, width = planes_MHW.shape[1:]
    rows = np.add.reduceat(planes_MHW, np.arange(0, height, CELL), axis=1)
    return np.add.reduceat(rows, np.arange(0, width, CELL), axis=2)
