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
    scores = check_array("scores_MHW", scores_MHW, "MHW")
    if len(scores) == 0:
        raise ValueError("scores_MHW has no label")
    clipped = np.clip(scores.astype(np.float32, copy=False), FLOOR, 1.0)
    strongest = _HEADROOM * (parameters.gaussian_weight + parameters.bilateral_weight)
    weak_M, rest_HW = _weakest(clipped, strongest)
    if weak_M.sum() < 2:  # one label merges with nothing
        return np.arange(len(clipped)), clipped
    kept = np.flatnonzero(~weak_M)
    return kept, np.concatenate([clipped[kept], rest_HW[None]])


def _weakest(
    scores_MHW: Float32Array, strongest: float
) -> tuple[npt.NDArray[np.bool_], Float32Array]:
    """As many of the weakest labels as the budget allows, bool [M], and the sum of their scores."""
    total_HW = scores_MHW.sum(axis=0)
    largest_M = np.array([float((plane_HW / total_HW).max()) for plane_HW in scores_MHW])
    winners = np.unique(scores_MHW.argmax(axis=0))
    weak_M = np.zeros(len(scores_MHW), np.bool_)
    rest_HW = np.zeros_like(total_HW)
    for label in np.argsort(largest_M, kind="stable"):
        if label in winners:
            continue
        more_HW = rest_HW + scores_MHW[label]
        if _cost(float((more_HW / total_HW).max()), strongest) > _BUDGET:
            break
        weak_M[label], rest_HW = True, more_HW
    return weak_M, rest_HW


def _cost(share: float, strongest: float) -> float:
    """The bound on what a label of this largest share can change; infinite where none is proven."""
    first = math.e * share * strongest
    return share * math.expm1(strongest * share * math.exp(first)) if first <= 1.0 else math.inf
