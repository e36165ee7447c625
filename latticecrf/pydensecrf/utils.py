"""`pydensecrf.utils`: unary energies of scores and labels, and features of images."""

# N: pixels; M: labels; d: feature dimensions.

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from latticecrf.checks import Float32Array


def unary_from_softmax(sm: Any, scale: float | None = None, clip: float | None = 1e-5) -> Any:
    """The energies `-log(score)` of class scores.

    Args:
        sm: Scores, floating [M, ...].
        scale: Trust in them, above 0 up to 1: what is left of it is spread evenly. None: all.
        clip: Lowest score; None leaves scores as they are.

    Returns:
        float32 [M, N].

    Raises:
        ValueError: There are no scores, or the scale does not fit.
    """
    scores = np.asarray(sm)
    if scores.ndim == 0 or len(scores) == 0:
        raise ValueError(f"sm has shape {scores.shape}: scores of at least one class are needed")
    if scale is not None:
        if not 0.0 < scale <= 1.0:
            raise ValueError(f"scale = {scale} is not in (0, 1]")
        scores = scale * scores + (1.0 - scale) / len(scores)
    if clip is not None:
        scores = np.clip(scores, clip, 1.0)
    with np.errstate(divide="ignore"):
        return -np.log(scores).reshape(len(scores), -1).astype(np.float32)


def unary_from_labels(
    labels: Any, n_labels: int, gt_prob: float, zero_unsure: bool = True
) -> Float32Array:
    """The energies of a label map that is right with some probability.

    Args:
        labels: Integers, any shape.
        n_labels: M; without the 0 that means unsure.
        gt_prob: How probable it is that a label is right, within 0..1.
        zero_unsure: Whether 0 means unsure: then every label is equally probable there, and the
            others count from 1.

    Returns:
        float32 [M, N].

    Raises:
        ValueError: A label is out of range, or another argument.
    """
    flat = np.asarray(labels).ravel()
    if flat.dtype.kind not in "iub":
        raise ValueError(f"labels have dtype {flat.dtype}: they must be integers")
    if not 0.0 < gt_prob < 1.0:
        raise ValueError(f"gt_prob = {gt_prob} is not in (0, 1)")
    least = 2 if not zero_unsure else 1
    if n_labels < least:
        raise ValueError(f"n_labels = {n_labels} is below {least}")
    which = flat.astype(np.int64) - (1 if zero_unsure else 0)
    lowest = -1 if zero_unsure else -n_labels
    if flat.size and not (lowest <= which.min() and which.max() < n_labels):
        raise ValueError(
            f"labels reach from {flat.min()} to {flat.max()}, beyond n_labels = {n_labels}"
        )
    wrong = -math.log((1.0 - gt_prob) / (n_labels - 1)) if n_labels > 1 else math.inf
    energies = np.full((n_labels, flat.size), wrong, np.float32)
    energies[which, np.arange(flat.size)] = -math.log(gt_prob)
    if zero_unsure:
        energies[:, flat == 0] = math.log(n_labels)
    return energies


def compute_unary(labels: Any, M: int, GT_PROB: float = 0.5) -> Float32Array:
    """The older name of `unary_from_labels`, where 0 means unsure."""
    return unary_from_labels(labels, M, GT_PROB)


def softmax_to_unary(sm: Any, GT_PROB: float = 1) -> Any:
    """The older name of `unary_from_softmax`, which never clips: the energy of 0 is infinite."""
    return unary_from_softmax(sm, None if GT_PROB == 1 else GT_PROB, clip=None)


def create_pairwise_gaussian(sdims: Sequence[float], shape: Sequence[int]) -> Float32Array:
    """The places of a grid's pixels over their standard deviations, float32 [d, N].

    Args:
        sdims: Standard deviation along each axis.
        shape: The grid's lengths.

    Raises:
        ValueError: There is not one deviation for each axis.
    """
    if len(sdims) != len(shape):
        raise ValueError(f"sdims = {sdims!r}: {len(shape)} numbers are needed")
    return _scaled(_places(shape), sdims, "sdims").reshape(len(shape), -1)


def create_pairwise_bilateral(
    sdims: Sequence[float], schan: float | Sequence[float], img: Any, chdim: int = -1
) -> Float32Array:
    """Places and channels of an image's pixels over their standard deviations, float32 [d, N].

    Args:
        sdims: Standard deviation along each axis but the channels'.
        schan: Standard deviation of all channels, or of each. Axes and channels that `sdims` and
            `schan` are too short for stay as they are, as in pydensecrf.
        img: Any number of axes.
        chdim: The channels' axis; -1 if there is none.

    Raises:
        ValueError: There are more deviations than axes or channels, or one is not above 0.
    """
    image = np.asarray(img)
    channels = image[None] if chdim == -1 else np.moveaxis(image, chdim, 0)
    deviations = [schan] * len(channels) if np.ndim(schan) == 0 else schan
    places = _scaled(_places(channels.shape[1:]), sdims, "sdims")
    colors = _scaled(channels.astype(np.float32), deviations, "schan")
    return np.concatenate([places, colors]).reshape(len(places) + len(colors), -1)


def _places(shape: Sequence[int]) -> Float32Array:
    return np.indices(tuple(shape), dtype=np.float32)


def _scaled(planes: Float32Array, deviations: Any, name: str) -> Float32Array:
    sigmas = np.asarray(deviations, dtype=np.float64)
    if sigmas.ndim != 1 or len(sigmas) > len(planes):
        raise ValueError(f"{name} = {deviations!r}: {len(planes)} numbers are needed")
    if not (sigmas > 0).all():
        raise ValueError(f"{name} = {deviations!r}: standard deviations are above 0")
    divisors = np.ones(len(planes), np.float32)
    divisors[: len(sigmas)] = sigmas
    return planes / divisors.reshape(-1, *[1] * (planes.ndim - 1))
