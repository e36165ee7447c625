"""Pseudo-masks from CAMs: argmax with a joint CRF (Eq. 2-4), proportional masks (Eq. 7-9)."""

# K: present classes; H, W: image.

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from latticecrf import CrfParameters, DenseCrf
from latticecrf.checks import Float32Array, FloatArray, check_array, check_image
from latticecrf.dense_crf import Backend
from latticecrf.ranges import check_number
from pmm_ray.method.cams import check_cam, smooth

Mask = npt.NDArray[np.unsignedinteger[Any]]  # uint8 or uint16

# CRF problems solved together: what the widest row of the filter holds.
_TOGETHER = 16


@dataclass(frozen=True)
class MaskParameters:
    """How CAMs become a mask. Defaults are the released code's; `paper()` reads it literally.

    Attributes:
        alpha: Exponent of the background score (Eq. 2), > 0. The best value depends on the
            CAMs; the paper found 11 by grid search.
        smoothing: Scale s of coefficient-of-variation smoothing (Eq. 6), >= 0; with 0 scores are
            only dropped, see `zero_below_threshold`.
        threshold: Foreground threshold t of the smoothing (Eq. 5), 0..1.
        crf: Kernels and iterations of the CRF.
        zero_below_threshold: Drop scores below `threshold` before smoothing (released code;
            Eq. 6 does not).
        foreground_threshold: A pixel is foreground of a class where its posterior exceeds this
            (Eq. 7), 0..1. Released code: 0.5; the paper says t = 0.05, which floods the image.
        proportion_offset: Added to the denominator of Eq. 8, >= 0 (released code 1, paper 0).

    Raises:
        ValueError: A value is out of its range.
    """

    alpha: float = 11.0
    smoothing: float = 0.3
    threshold: float = 0.05
    crf: CrfParameters = field(default_factory=CrfParameters.ppmg)
    zero_below_threshold: bool = True
    foreground_threshold: float = 0.5
    proportion_offset: float = 1.0

    def __post_init__(self) -> None:
        check_number("alpha", self.alpha, 0.0, low_open=True)
        check_number("smoothing", self.smoothing, 0.0)
        check_number("threshold", self.threshold, 0.0, 1.0)
        check_number("foreground_threshold", self.foreground_threshold, 0.0, 1.0)
        check_number("proportion_offset", self.proportion_offset, 0.0)

    @classmethod
    def paper(cls) -> MaskParameters:
        """The paper to the letter, where the released code differs (Eq. 6, 7 and 8)."""
        return cls(zero_below_threshold=False, foreground_threshold=0.05, proportion_offset=0.0)


def background_score(cam_KHW: FloatArray, alpha: float) -> Float32Array:
    """Background score of each pixel, `(1 - max over classes) ** alpha` (Eq. 2).

    Args:
        cam_KHW: Normalized CAM, floating [K, H, W], 0..1. For the class's own background of
            Eq. 7 pass one class at a time.
        alpha: Exponent, > 0.

    Returns:
        float32 [H, W], 0..1; all 1 when K = 0.

    Raises:
        ValueError: Wrong shape, dtype, alpha, or values.
    """
    cam = check_cam(cam_KHW)
    check_number("alpha", alpha, 0.0, low_open=True)
    strongest_HW = cam.max(axis=0, initial=0.0)
    return np.asarray((1.0 - strongest_HW) ** np.float32(alpha), dtype=np.float32)


def exponent_of(threshold: float) -> float:
    """The exponent whose argmax against the background is a threshold on the strongest score.

    (1 - v) ** a = v at v = b where a = ln b / ln(1 - b): 0.05 is 58, 0.19 is 7.9, 0.5 is 1.

    Args:
        threshold: the paper's and SEAM's fixed background score b, in (0, 1).

    Raises:
        ValueError: out of its range.
    """
    check_number("threshold", threshold, 0.0, 1.0, low_open=True)
    if threshold == 1.0:
        raise ValueError("threshold must be below 1")
    return math.log(threshold) / math.log1p(-threshold)


def proportional_masks(
    image_HW3: npt.NDArray[np.uint8],
    cam_KHW: FloatArray,
    labels: Sequence[int],
    combinations: Sequence[MaskParameters],
    backend: Backend = "lattice",
) -> list[Mask]:
    """Proportional pseudo-mask generation with smoothing (Eq. 5-9, Alg. 1 lines 2-6).

    Every class is segmented on its own against its own background; where classes overlap, a
    pixel goes to the class of whose total score it holds the larger proportion. Ties go to the
    background, then to the lowest label id. Every (combination, class) is one more independent
    problem of the same CRF, and filtering many channels costs little more than filtering one.

    Args:
        image_HW3: RGB image, uint8 [H, W, 3].
        cam_KHW: Normalized CAM at the image's size (`upsample_cam`), floating [K, H, W], 0..1.
        labels: K different label ids, 1..65534; row i of the CAM belongs to `labels[i]`.
        combinations: S parameters, at least one, that differ in anything but `crf`.
        backend: CRF backend, see `DenseCrf`.

    Returns:
        S masks [H, W] of 0 (background) and label ids; uint8, or uint16 when an id is over 254.
        K = 0, or a CAM that is zero everywhere, gives background everywhere.

    Raises:
        ValueError: A shape, dtype, label or value does not fit, or the combinations need
            different lattices.
    """
    image, cam, label_ids = check_cams(image_HW3, cam_KHW, labels)
    crf = _shared_crf(combinations)
    if len(cam) == 0:
        return [np.zeros(image.shape[:2], _mask_dtype(label_ids)) for _ in combinations]
    inside_SKHW = _inside(DenseCrf(image, crf, backend), cam, combinations)
    wide_KHW = cam.astype(np.float64)
    return [
        _largest_proportion(wide_KHW, label_ids, inside_KHW, parameters.proportion_offset)
        for inside_KHW, parameters in zip(inside_SKHW, combinations, strict=True)
    ]


def _inside(
    crf: DenseCrf, cam_KHW: Float32Array, combinations: Sequence[MaskParameters]
) -> npt.NDArray[np.bool_]:
    """Where each combination segments each class (Eq. 7), bool [S, K, H, W]."""
    smooth_SKHW = _smoothed(cam_KHW, combinations)
    problems = [(s, k) for s in range(len(combinations)) for k in range(len(cam_KHW))]
    inside_SKHW = np.empty((len(combinations), *cam_KHW.shape), np.bool_)
    # In groups: the memory does not grow with the number of combinations.
    for first in range(0, len(problems), _TOGETHER):
        group = problems[first : first + _TOGETHER]
        foreground = np.empty((len(group), *cam_KHW.shape[1:]), np.float32)
        background = np.empty_like(foreground)
        for i, (s, k) in enumerate(group):
            foreground[i] = smooth_SKHW[s][k]
            background[i] = (1.0 - foreground[i]) ** np.float32(combinations[s].alpha)
        for (s, k), posterior_HW in zip(group, crf.binary(foreground, background), strict=True):
            np.greater(posterior_HW, combinations[s].foreground_threshold, out=inside_SKHW[s, k])
    return inside_SKHW


def _largest_proportion(
    cam_KHW: npt.NDArray[np.float64],
    label_ids: npt.NDArray[np.int64],
    inside_KHW: npt.NDArray[np.bool_],
    offset: float,
) -> Mask:
    """A pixel goes to the class of whose total score it holds the largest proportion (Eq. 8-9)."""
    dtype = _mask_dtype(label_ids)
    if len(cam_KHW) == 1:  # no other class to share with
        return np.asarray((inside_KHW[0] & (cam_KHW[0] > 0.0)) * dtype(label_ids[0]))
    best_HW = np.zeros(cam_KHW.shape[1:], np.float64)
    mask_HW = np.zeros(cam_KHW.shape[1:], dtype)
    # Ascending ids and a strict comparison: first maximum wins, as argmax over
    # [background, classes ascending] does.
    for k in np.argsort(label_ids):
        total = float(cam_KHW[k].sum(where=inside_KHW[k])) + offset
        if total == 0.0:
            continue
        proportion_HW = cam_KHW[k] / total  # Eq. 8
        wins_HW = inside_KHW[k] & (proportion_HW > best_HW)  # Eq. 9
        np.copyto(best_HW, proportion_HW, where=wins_HW)
        np.copyto(mask_HW, mask_HW.dtype.type(label_ids[k]), where=wins_HW)
    return mask_HW


def argmax_masks(
    image_HW3: npt.NDArray[np.uint8],
    cam_KHW: FloatArray,
    labels: Sequence[int],
    combinations: Sequence[MaskParameters],
    backend: Backend = "lattice",
    use_crf: bool = True,
) -> list[Mask]:
    """The usual pseudo-mask: background score, joint CRF, argmax (Eq. 2-4).

    Args:
        image_HW3, cam_KHW, labels, backend: see `proportional_masks`.
        combinations: S parameters, of which `alpha`, the smoothing fields and `crf` are used;
            they share their `crf`.
        use_crf: False takes the argmax of background and smoothed scores.

    Returns:
        S masks like those of `proportional_masks`. Ties go to the background, then to the lowest
        id. A CAM that is zero everywhere gives background everywhere.

    Raises:
        ValueError: see `proportional_masks`.
    """
    image, cam, label_ids = check_cams(image_HW3, cam_KHW, labels)
    crf = _shared_crf(combinations)
    solver = DenseCrf(image, crf, backend) if use_crf and len(cam) else None
    ids_M = np.concatenate([[0], np.sort(label_ids)]).astype(_mask_dtype(label_ids))
    masks = []
    for parameters, smooth_KHW in zip(combinations, _smoothed(cam, combinations), strict=True):
        scores_MHW = with_background(smooth_KHW, label_ids, parameters.alpha)
        posterior_MHW = scores_MHW if solver is None else solver.joint(scores_MHW)
        masks.append(np.asarray(ids_M[posterior_MHW.argmax(axis=0)]))
    return masks


def _of(
    make: Callable[..., list[Mask]], change: Callable[[MaskParameters], MaskParameters]
) -> Callable[..., list[Mask]]:
    """The same way to masks, with other parameters."""

    def masks(image: Any, cam: Any, labels: Any, combinations: Any, *rest: Any) -> list[Mask]:
        return make(image, cam, labels, list(map(change, combinations)), *rest)

    return masks


def _as_it_is(parameters: MaskParameters) -> MaskParameters:
    """Of the CAM as it is, with SEAM's joint CRF (released code)."""
    return replace(parameters, smoothing=0.0, zero_below_threshold=False, crf=CrfParameters.seam())


proportional_masks_without_cvs = _of(proportional_masks, lambda p: replace(p, smoothing=0.0))
"""`proportional_masks` with s = 0 (Tab. 2, "PPMG w/o CVS"): low scores are dropped as with CVS."""
crf_argmax_masks = _of(argmax_masks, _as_it_is)
"""`argmax_masks` of the CAM as it is (Tab. 2, "CRF")."""
crf_argmax_masks_with_cvs = _of(argmax_masks, lambda p: replace(p, crf=CrfParameters.seam()))
"""`argmax_masks` of the smoothed CAM (Tab. 2, "CRF & CVS")."""
cam_argmax_masks = _of(partial(argmax_masks, use_crf=False), _as_it_is)
"""The argmax of background and CAM scores as they are, without a CRF (Tab. 2, "CAM")."""


def base_mask(
    image_HW3: npt.NDArray[np.uint8],
    cam_KHW: FloatArray,
    labels: Sequence[int],
    alpha: float = 24.0,
    threshold: float = 0.9,
    crf: CrfParameters | None = None,
    backend: Backend = "lattice",
) -> Mask:
    """The confident mask that relabels multi-crop windows (paper 3.5; released code).

    Args:
        image_HW3: RGB image, uint8 [H, W, 3].
        cam_KHW: Normalized multi-scale CAM at the image's size, floating [K, H, W], 0..1.
        labels: K different label ids, 1..65534.
        alpha: Background exponent (released code: 24), > 0.
        threshold: A pixel holds the class whose joint posterior exceeds this, 0.5..1; from 0.5
            on at most one can.
        crf: Kernels and iterations; `CrfParameters.base_mask()` when None.
        backend: CRF backend, see `DenseCrf`.

    Returns:
        [H, W] like `proportional_masks`; 0 where no class is confident.

    Raises:
        ValueError: A shape, dtype, label or value does not fit.
    """
    image, cam, label_ids = check_cams(image_HW3, cam_KHW, labels)
    check_number("threshold", threshold, 0.5, 1.0)
    mask_HW = np.zeros(image.shape[:2], _mask_dtype(label_ids))
    if len(cam) == 0:
        return mask_HW
    scores_MHW = with_background(cam, label_ids, alpha)
    solver = DenseCrf(image, crf if crf is not None else CrfParameters.base_mask(), backend)
    posterior_MHW = solver.joint(scores_MHW)
    for label, posterior_HW in zip(np.sort(label_ids), posterior_MHW[1:], strict=True):
        mask_HW[posterior_HW > threshold] = label
    return mask_HW


def check_cams(
    image_HW3: object, cam_KHW: object, labels: Sequence[int]
) -> tuple[npt.NDArray[np.uint8], Float32Array, npt.NDArray[np.int64]]:
    """An image, its CAMs and their label ids (int64 [K]), checked as `proportional_masks` says.

    Raises:
        ValueError: A shape, dtype, label or value does not fit.
    """
    image = check_image(image_HW3)
    cam = check_cam(cam_KHW, *image.shape[:2])
    label_ids = np.asarray(labels)
    if label_ids.size == 0:
        label_ids = label_ids.astype(np.int64)
    check_array("labels", label_ids, "K", (len(cam),), kinds="iu")
    if label_ids.size and (label_ids.min() < 1 or label_ids.max() > 65534):
        raise ValueError(f"label ids must be within 1..65534, got {list(labels)}")
    if len(np.unique(label_ids)) != len(label_ids):
        raise ValueError(f"label ids repeat: {list(labels)}")
    return image, cam, label_ids.astype(np.int64)


def _shared_crf(combinations: Sequence[MaskParameters]) -> CrfParameters:
    if len({p.crf for p in combinations}) != 1:
        raise ValueError("the combinations must share one set of CRF parameters")
    return combinations[0].crf


def _smoothed(cam_KHW: Float32Array, combinations: Sequence[MaskParameters]) -> list[Float32Array]:
    """The smoothed map of each combination; those that smooth alike share one."""
    once = cache(partial(smooth, cam_KHW))
    return [once(p.smoothing, p.threshold, p.zero_below_threshold) for p in combinations]


def with_background(
    cam_KHW: Float32Array, label_ids: npt.NDArray[np.int64], alpha: float
) -> Float32Array:
    """Eq. 3: the background score and the classes in ascending order of their ids."""
    background_1HW = background_score(cam_KHW, alpha)[None]
    return np.concatenate([background_1HW, cam_KHW[np.argsort(label_ids)]])


def _mask_dtype(label_ids: npt.NDArray[np.int64]) -> type[np.unsignedinteger[Any]]:
    # 255 is the ignore value of 8-bit masks, so 254 is the last id they can hold.
    return np.uint16 if label_ids.size and label_ids.max() > 254 else np.uint8
