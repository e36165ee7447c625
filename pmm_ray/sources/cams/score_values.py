"""What the values of scores can be: logits, probabilities, or what neither is."""

# M: planes of one file; h, w: as stored.

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["logits", "probabilities", "unknown"]

# a share may be off by the rounding of float16, or by a resize
MARGIN = 0.01
# usual sums, and how far they may be off: shares may be whole numbers, each plane rounded by itself
_USUAL = ((1.0, MARGIN), (100.0, 0.05), (255.0, 0.05), (1000.0, MARGIN))
# a bicubic resize leaves shares within -0.3..1.3 of what they add up to
_OVERSHOOT = 0.3
_NEARLY_ALL = 0.99


def whole_of(scores_Mhw: NDArray[Any]) -> float | None:
    """What the planes add up to at nearly every pixel, if they may be shares of it.

    Args:
        scores_Mhw: floating [M, h, w], finite, M > 0.

    Returns:
        1 for probabilities, also where a bicubic resize left some slightly below 0 or above 1;
        100 for percents, the number of votes and such; None if there is no such number.
    """
    if scores_Mhw[0].size < 2:
        return None
    total_hw = scores_Mhw.sum(axis=0, dtype=np.float64)
    lowest, highest = float(scores_Mhw.min()), float(scores_Mhw.max())
    for whole, margin in (*_USUAL, (float(np.median(total_hw)), MARGIN)):
        within = lowest >= -_OVERSHOOT * whole and highest <= (1 + _OVERSHOOT) * whole
        if whole > 0 and within and _nearly(total_hw, whole, margin):
            return whole
    return None


def are_shares(scores_Mhw: NDArray[Any]) -> bool:
    """Whether the planes, floating [M, h, w], add up to one at nearly every pixel."""
    if len(scores_Mhw) == 0 or scores_Mhw[0].size < 2:
        return False
    return _nearly(scores_Mhw.sum(axis=0, dtype=np.float32), 1, MARGIN)


def clip_shares(scores_Mhw: NDArray[Any]) -> NDArray[Any]:
    """Probabilities that a resize left beyond 0..1, brought back, [M, h, w]; others as they are."""
    if float(scores_Mhw.min()) >= -MARGIN and float(scores_Mhw.max()) <= 1 + MARGIN:
        return scores_Mhw
    clipped_Mhw = np.clip(scores_Mhw, 0, 1)
    # what a pixel holds that is one of the few that add up to nothing stays nothing
    return clipped_Mhw / np.maximum(clipped_Mhw.sum(axis=0), MARGIN)


def are_energies(scores_Mhw: NDArray[Any]) -> bool:
    """Whether values, [M, h, w], are energies: -log of probabilities."""
    if len(scores_Mhw) < 2 or float(scores_Mhw.min()) < -MARGIN:
        return False
    return _nearly(np.exp(-scores_Mhw).sum(axis=0, dtype=np.float64), 1, MARGIN)


def best_posterior(scores_Mhw: NDArray[Any]) -> float:
    """The highest probability, 0..1, that a softmax over the planes, [M, h, w], gives any pixel."""
    grown_Mhw = np.exp(scores_Mhw - scores_Mhw.max(axis=0))
    return float((1 / grown_Mhw.sum(axis=0, dtype=np.float64)).max())


def _nearly(total_hw: NDArray[Any], whole: float, margin: float) -> bool:
    return bool((np.abs(total_hw / whole - 1) < margin).mean() >= _NEARLY_ALL)
