"""Kernels of the joint mean field: sums and peaks of scores, and what freezing labels needs."""

# N: pixels; M: labels; L: row width, the lanes.

from __future__ import annotations

from typing import Any

import numpy as np

from latticecrf.kernels.cache import kernel
from latticecrf.simd.functions import row_clip_score, row_exp
from latticecrf.simd.rows import (
    row_add,
    row_load,
    row_max,
    row_multiply,
    row_peak,
    row_scale,
    row_shift,
    row_store,
    row_total,
    row_widen,
    row_zero,
)


@kernel
def invert_sums(wide: Any, single: Any, planes: Any, floor: Any, inverse: Any) -> None:
    """One over the sum of each pixel's scores, clipped to floor..1; float32 [M, N] to [N]."""
    step = len(wide)
    whole = inverse.size // step
    for at in range(whole):
        total = row_zero(wide)
        for m in range(planes.shape[0]):
            total = row_add(total, row_clip_score(row_load(wide, planes[m], at), floor))
        row_store(inverse, at, total)
    for at in range(whole * step, inverse.size):
        last = row_zero(single)
        for m in range(planes.shape[0]):
            last = row_add(last, row_clip_score(row_load(single, planes[m], at), floor))
        row_store(inverse, at, last)
    for at in range(inverse.size):
        inverse[at] = np.float32(1.0) / inverse[at]


@kernel
def largest_products(
    wide: Any, single: Any, planes: Any, floor: Any, factors: Any, largest: Any
) -> None:
    """The largest clipped score times `factors` of every plane, float32 [M]."""
    step = len(wide)
    whole = factors.size // step
    for m in range(largest.size):
        plane = planes[m]
        peak = row_zero(wide)
        for at in range(whole):
            score = row_clip_score(row_load(wide, plane, at), floor)
            peak = row_max(peak, row_multiply(score, row_load(wide, factors, at)))
        rest = row_zero(single)
        for at in range(whole * step, factors.size):
            last = row_clip_score(row_load(single, plane, at), floor)
            rest = row_max(rest, row_multiply(last, row_load(single, factors, at)))
        largest[m] = max(row_peak(peak), row_peak(rest))


@kernel
def fill_implied(
    wide: Any, tail: Any, messages: Any, mass: Any, rows: Any, stride: int, column: int
) -> None:
    """The message that the blocks leave of the mass, see `softmax`, as a column of rows."""
    pixels = mass.size
    full = (messages.size - pixels * len(tail)) // (pixels * len(wide))
    tail_messages = messages[full * pixels * len(wide) :]
    for p in range(pixels):
        total = row_widen(wide, row_load(tail, tail_messages, p))
        for block in range(full):
            total = row_add(total, row_load(wide, messages, block * pixels + p))
        rows[p * stride + column] = mass[p] - row_total(total)


@kernel
def highest(lanes: Any, rows: Any, offset: int, pixels: int, peaks: Any) -> None:
    """The largest value of every lane, float32 [L]; values are not negative."""
    mine = rows[offset:]
    peak = row_zero(lanes)
    for p in range(pixels):
        peak = row_max(peak, row_load(lanes, mine, p))
    row_store(peaks, 0, peak)


@kernel
def freezing_costs(
    lanes: Any,
    base: Any,
    messages: Any,
    offset: int,
    inverse: Any,
    factors: Any,
    costs: Any,
) -> None:
    """costs = the largest `base * inverse * (exp(factor * message) - 1)` of every lane.

    Args:
        lanes: A tuple of length L.
        base, messages: Scores and first messages, rows that start at `offset`.
        inverse: One over the sum of each pixel's scores, float32 [N].
        factors: float32 [L]; 0 gives costs of 0.
        costs: Receives the result, float32 [L].
    """
    base, messages = base[offset:], messages[offset:]
    factor = row_load(lanes, factors, 0)
    cost = row_zero(lanes)
    for p in range(inverse.size):
        share = row_scale(row_load(lanes, base, p), inverse[p])
        grown = row_exp(row_multiply(factor, row_load(lanes, messages, p)))
        cost = row_max(cost, row_multiply(share, row_shift(grown, np.float32(-1.0))))
    row_store(costs, 0, cost)


@kernel
def grow(lanes: Any, base: Any, messages: Any, offset: int, pixels: int) -> None:
    """base = base * exp(messages), rows that start at `offset`."""
    base, messages = base[offset:], messages[offset:]
    for p in range(pixels):
        row = row_multiply(row_load(lanes, base, p), row_exp(row_load(lanes, messages, p)))
        row_store(base, p, row)
