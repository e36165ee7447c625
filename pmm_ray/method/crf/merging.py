"""Fewer labels for the joint CRF: those that can never matter become one.

A network's softmax gives every class some probability at every pixel; of 81 classes all but a few
are next to nothing everywhere. Rule 1 of `joint` says which: their messages cannot change a softmax
denominator by more than a share of 1e-6 together. Added up they behave as one label whose message
is at least each of theirs, so that merging n of them costs at most n times as much.
"""

# H, W: image; M: labels; K: labels that stay.

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pmm_ray.method.checks import Float32Array, FloatArray, check_array
from pmm_ray.method.crf.joint import FLOOR, Labels, weak_labels
from pmm_ray.method.crf.parameters import CrfParameters

# The W of rule 1 is a property of the image's lattices, which whoever merges has not built. Over
# photographs it is at most 1.2 times the sum of the kernels' weights; rounded up generously.
_HEADROOM = 2.0
# Where the weights are near zero no label has a message, and one that could win must stay.
_LEAST_STRENGTH = 1.0


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
        that is merged is the strongest of no pixel. `DenseCrf.joint` of the second gives, at the
        first K planes, the posteriors of all M labels to within the bound above.

    Raises:
        ValueError: A shape, dtype or value does not fit.
    """
    scores = check_array("scores_MHW", scores_MHW, "MHW")
    if len(scores) == 0:
        raise ValueError("scores_MHW has no label")
    clipped = np.clip(scores.astype(np.float32, copy=False), FLOOR, 1.0)
    weight = parameters.gaussian_weight + parameters.bilateral_weight
    strongest = max(_HEADROOM * weight, _LEAST_STRENGTH)
    weak_M: npt.NDArray[np.bool_] = weak_labels(clipped.reshape(len(clipped), -1), strongest)
    kept = np.flatnonzero(~weak_M)
    if weak_M.sum() < 2:  # one label merges with nothing
        return np.arange(len(clipped)), clipped
    rest_HW = clipped[weak_M].sum(axis=0)
    return kept, np.concatenate([clipped[kept], rest_HW[None]])
