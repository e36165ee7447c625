"""What an affinity network learns from: pixels of which two CRF strengths agree (Tab. 2 and 3)."""

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
    """Hard labels where the pixel's class does not depend on how strong the background is.

    With a low exponent the background score is high: what still becomes a class is confident
    foreground. With a high one it is low: what still becomes background is confident background.
    The rest is ignored, and so is what claims to be both.

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
        [H, W] of 0, label ids and `ignore`; uint8, or uint16 where an id or `ignore` needs it.
        All `ignore` without a class.

    Raises:
        ValueError: a shape, dtype, label or value does not fit, or the exponents are not in order.

    Source: AffinityNet 3.2; SEAM's and PMM's released code use its two files of CRF results.
    """
    check_number("alpha_low", alpha_low, 0.0, low_open=True)
    check_number("alpha_high", alpha_high, alpha_low, low_open=True)
    image, cam, label_ids = check_cams(image_HW3, cam_KHW, labels)
    dtype = np.uint16 if max(ignore, *label_ids.tolist(), 0) > 255 else np.uint8
    out_HW: Mask = np.full(image.shape[:2], ignore, dtype)
    if len(cam) == 0:
        return out_HW
    solver = DenseCrf(image, crf if crf is not None else CrfParameters.seam(), backend)
    low_HW, high_HW = (
        solver.joint(with_background(cam, label_ids, alpha)).argmax(axis=0)
        for alpha in (alpha_low, alpha_high)
    )
    ids = np.concatenate([[0], np.sort(label_ids)]).astype(dtype)
    object_HW, background_HW = low_HW > 0, high_HW == 0
    np.copyto(out_HW, ids[low_HW], where=object_HW & ~background_HW)
    np.copyto(out_HW, dtype(0), where=background_HW & ~object_HW)
    return out_HW
