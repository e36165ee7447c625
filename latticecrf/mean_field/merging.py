"""Fewer labels for the joint CRF: those that can hardly matter become one.

A network's softmax gives every class some probability at every pixel; of 81 classes all but a few
are next to nothing everywhere. Added up they are one label, whose message is at least each of
theirs and never negative. Rule 1 of `joint` bounds what its message can do: with q the largest
share of that label in any pixel's scores and W the message of a label that is certain everywhere,
a softmax denominator changes by a share of at most `q (exp(W q exp(e q W)) - 1)`, if `e q W <= 1`.
The engine allows itself as much when it freezes labels after the first iteration.
"""

# H, W: image; N: pixels; M: labels; K: labels that stay.

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from latticecrf.checks import Float32Array, FloatArray, check_array
from latticecrf.mean_field.binary_updates import FLOOR
from latticecrf.parameters import CrfParameters

Labels = npt.NDArray[np.int64]

# How much merging may change a softmax denominator, as a share of it.
_BUDGET = 5e-4
# W is a property of the image's lattices, which whoever merges has not built. Over photographs it
# is at most 1.2 times the sum of the kernels' weights; rounded up generously.
_HEADROOM = 2.0
# Pixels whose scores are looked at together: they stay in a CPU's cache, one pass over memory.
_BLOCK = 8192


def merge_weak_labels(
    scores_MHW: FloatArray, parameters: CrfParameters
) -> tuple[Labels, Float32Array]:
    """Split the labels of a joint problem into those that can matter and the sum of the others.

    Args:
        scores_MHW: Scores of the labels, floating [M, H, W], finite, M at least 1; clipped to
            1e-5..1 as `DenseCrf.joint` clips them.
        parameters: Of the CRF that will be asked.

    Returns:
        The labels that stay, int64 [K], ascending, K at least 1; and their scores, float32
        [K, H, W], followed by the sum of the others' where there are any ([K + 1, H, W]). A label
        that is the strongest of a pixel stays. `DenseCrf.joint` of the second gives, at the first K
        planes, the posteriors of all M labels to within the bound above.

    Raises:
        ValueError: A shape, dtype or value does not fit.
    """
    scores = check_array("scores_MHW", scores_MHW, "MHW").astype(np.float32, copy=False)
    if len(scores) == 0:
        raise ValueError("scores_MHW has no label")
    planes_MN = scores.reshape(len(scores), -1)
    share = mergeable_share(parameters)
    total_N, largest_M, wins_M = _shares(planes_MN, can_win(share, len(scores)))
    candidates = np.flatnonzero(~wins_M)
    candidates = candidates[np.argsort(largest_M[candidates], kind="stable")]
    weakest, rest_N = _weakest(
        planes_MN, total_N, candidates[largest_M[candidates] <= share], share
    )
    if len(weakest) < 2:  # one label merges with nothing
        return np.arange(len(scores)), np.clip(scores, FLOOR, 1.0)
    kept = np.setdiff1d(np.arange(len(scores)), weakest)
    merged = np.empty((len(kept) + 1, *scores.shape[1:]), np.float32)
    for plane, label in zip(merged, kept, strict=False):
        np.clip(scores[label], FLOOR, 1.0, out=plane)
    merged[-1] = rest_N.reshape(scores.shape[1:])
    return kept, merged


def mergeable_share(parameters: CrfParameters) -> float:
    """The largest share of a pixel's scores, 0..1, that merged labels may have anywhere."""
    strongest = _HEADROOM * (parameters.gaussian_weight + parameters.bilateral_weight)
    low, high = 0.0, 1.0
    for _ in range(60):  # the cost grows with the share
        middle = (low + high) / 2
        low, high = (low, middle) if _cost(middle, strongest) > _BUDGET else (middle, high)
    return low


def can_win(share: float, labels: int) -> bool:
    """Whether a label of at most this share everywhere can be the strongest of so many anywhere."""
    return share * labels > 0.999  # the strongest has at least one part of them; rounding


def _shares(
    planes_MN: Float32Array, winners: bool
) -> tuple[Float32Array, Float32Array, npt.NDArray[np.bool_]]:
    """Sum of all labels' scores at each pixel, each label's largest share of it, and the labels
    that are the strongest of a pixel, bool [M]: all False unless they are asked for."""
    labels, pixels = planes_MN.shape
    total_N, largest_M = np.empty(pixels, np.float32), np.zeros(labels, np.float32)
    wins_M = np.zeros(labels, np.bool_)
    for first in range(0, pixels, _BLOCK):
        block_MB = np.clip(planes_MN[:, first : first + _BLOCK], FLOOR, 1.0)
        total_B = block_MB.sum(axis=0, out=total_N[first : first + _BLOCK])
        if winners:
            wins_M[block_MB.argmax(axis=0)] = True
        np.divide(block_MB, total_B, out=block_MB)
        np.maximum(largest_M, block_MB.max(axis=1), out=largest_M)
    return total_N, largest_M, wins_M


def _weakest(
    planes_MN: Float32Array, total_N: Float32Array, weak: Labels, share: float
) -> tuple[Labels, Float32Array]:
    """The longest beginning of `weak` whose sum stays within the share, and the sum, [N]."""
    low, high = 0, len(weak)
    rest_N, clipped_N = np.zeros_like(total_N), np.empty_like(total_N)
    while low < high:
        middle = (low + high + 1) // 2
        more_N = rest_N.copy()
        for label in weak[low:middle]:
            more_N += np.clip(planes_MN[label], FLOOR, 1.0, out=clipped_N)
        if float(np.divide(more_N, total_N, out=clipped_N).max(initial=0.0)) <= share:
            low, rest_N = middle, more_N
        else:
            high = middle - 1
    return weak[:low], rest_N


def _cost(share: float, strongest: float) -> float:
    """The bound on what a label of this largest share can change; infinite where none is proven."""
    first = math.e * share * strongest
    return share * math.expm1(strongest * share * math.exp(first)) if first <= 1.0 else math.inf
