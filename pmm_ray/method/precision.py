"""Mean average precision of image-level scores."""

# N: images; C: classes.

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from latticecrf.checks import FloatArray, check_array


def average_precision(scores_NC: FloatArray, truth_NC: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Mean of the precision at each positive, by descending score (not interpolated).

    Args:
        scores_NC: floating [N, C], finite.
        truth_NC: bool [N, C], the classes of each image.

    Returns:
        float64 [C], 0..1; NaN for a class without positives. Images that tie count as one group:
        each of its positives has the precision at the group's end, so that order means nothing.

    Raises:
        ValueError: wrong shape or dtype.
    """
    check_array("scores_NC", scores_NC, "NC")
    check_array("truth_NC", truth_NC, "NC", scores_NC.shape, kinds="b")
    precision_C = np.full(scores_NC.shape[1], np.nan)
    for c, (scores, truth) in enumerate(zip(scores_NC.T, truth_NC.T, strict=True)):
        if not truth.any():
            continue
        order = np.argsort(-scores, kind="stable")
        descending = -scores[order]
        hits = np.cumsum(truth[order])
        # the last place of each place's group of equal scores
        last = np.searchsorted(descending, descending, side="right") - 1
        precision_C[c] = (hits[last] / (last + 1))[truth[order]].mean()
    return precision_C
