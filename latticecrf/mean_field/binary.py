"""Binary mean field: K problems of two labels, one channel each.

Arrays of pixels are kept in the order of the home lattice's segments, channels last. Every kernel
then reads its weights once, in order, and does the same work for a pixel's whole row.
"""

# N: pixels; K: problems.

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from latticecrf.checks import Float32Array
from latticecrf.mean_field.binary_updates import logistic, lower, pack, padded, unpack
from latticecrf.mean_field.filter_bank import FilterBank
from latticecrf.simd.aligned import aligned
from latticecrf.simd.rows import WIDE

# The widest row a kernel handles at once, one AVX-512 register or two of AVX2, and the most
# problems solved together.
_WIDEST = len(WIDE)


def solve_binary(
    bank: FilterBank,
    logits_KN: Float32Array,
    mass_N: Float32Array,
    factors: Sequence[float],
    iterations: int,
    others_KN: Float32Array | None = None,
) -> None:
    """Turn logits into posteriors, in place: `q = sigmoid(logits - mass + sum factor filter(q))`.

    Args:
        bank: The filters.
        logits_KN: Unary logits, float32 [K, N] in raster order, contiguous.
        mass_N: What is taken from every logit once messages are sent, float32 [N], packed.
        factors: One for each kernel.
        iterations: Mean-field iterations.
        others_KN: Receives the other label's posteriors, float32 [K, N], contiguous: `1 - q`, but
            small ones keep their digits.
    """
    first = 0
    while first < len(logits_KN):
        part = slice(first, first + _together(len(logits_KN) - first))
        others = None if others_KN is None else others_KN[part]
        _solve_group(bank, logits_KN[part], mass_N, factors, iterations, others)
        first = part.stop


def _solve_group(
    bank: FilterBank,
    planes_KN: Float32Array,
    mass_N: Float32Array,
    factors: Sequence[float],
    iterations: int,
    others_KN: Float32Array | None,
) -> None:
    count, pixels = planes_KN.shape
    lanes = padded(count)
    channels = np.arange(count)
    # Whole SIMD rows, whatever the number of pixels.
    size = -(-pixels * lanes // _WIDEST) * _WIDEST
    base = aligned(size)
    base[:] = 0.0
    pack(planes_KN, channels, bank.places, base, lanes, 0)
    posterior = aligned(size)
    posterior[:] = 0.0
    rows = posterior[: pixels * lanes]
    scratch = bank.scratch(lanes)
    for left in range(iterations, -1, -1):
        if left == 0 and others_KN is not None:
            # The last logits with their sign turned.
            other = np.negative(posterior, out=aligned(size))
            logistic(WIDE, -base, other)
            unpack(other, bank.places, lanes, 0, others_KN, channels)
        logistic(WIDE, base, posterior)
        if left == iterations:
            lower(base, lanes, mass_N)
        if left > 0:
            bank.apply(rows, lanes, factors, scratch)
    unpack(posterior, bank.places, lanes, 0, planes_KN, channels)


def _together(count: int) -> int:
    """How many of `count` problems to solve at once: five in eight lanes save little time and cost
    much memory."""
    return 4 if count == 5 else min(count, _WIDEST)
