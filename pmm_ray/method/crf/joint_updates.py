"""Kernels of the joint mean field: softmax, and what freezing labels needs."""

# N: pixels; M: labels; L: row width, the lanes.

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from pmm_ray.method.checks import Float32Array
from pmm_ray.method.crf.cache import kernel
from pmm_ray.method.crf.simd import (
    row_add,
    row_append,
    row_load,
    row_max,
    row_multiply,
    row_peak,
    row_scale,
    row_shift,
    row_split,
    row_store,
    row_total,
    row_widen,
    row_zero,
)
from pmm_ray.method.crf.simd_math import row_clip_score, row_exp

# Widths of the rows of all blocks but the last.
WIDE = (0,) * 16

# Pixels whose rows are updated at a time.
_TILE = 64


class Update(NamedTuple):
    """The softmax of a field: what `softmax` is called with, but for widths and pixels."""

    messages: Float32Array
    base: Float32Array
    rest: Float32Array
    mass: Float32Array
    scale: Float32Array
    shifted: bool

    def arguments(self, lanes: int) -> tuple[Any, ...]:
        """For a field whose last block is in rows of `lanes`."""
        return (WIDE, (0,) * (lanes if lanes <= len(WIDE) else lanes - len(WIDE)), *self)

    def run(self, lanes: int) -> None:
        """Update all pixels."""
        if self.messages.size:
            wide, tail, *others = self.arguments(lanes)
            softmax(wide, tail, 0, self.rest.size, *others)


_NOTHING = np.empty(0, np.float32)
NO_UPDATE = Update(_NOTHING, _NOTHING, _NOTHING, _NOTHING, _NOTHING, False)


@kernel
def invert_sums(wide: Any, single: Any, planes: Any, inverse: Any) -> None:
    """One over the sum of each pixel's clipped scores, from planes [M, N] to float32 [N]."""
    step = len(wide)
    whole = inverse.size // step
    for at in range(whole):
        total = row_zero(wide)
        for m in range(planes.shape[0]):
            total = row_add(total, row_clip_score(row_load(wide, planes[m], at)))
        row_store(inverse, at, total)
    for at in range(whole * step, inverse.size):
        last = row_zero(single)
        for m in range(planes.shape[0]):
            last = row_add(last, row_clip_score(row_load(single, planes[m], at)))
        row_store(inverse, at, last)
    for at in range(inverse.size):
        inverse[at] = np.float32(1.0) / inverse[at]


@kernel
def largest_products(wide: Any, single: Any, planes: Any, factors: Any, largest: Any) -> None:
    """The largest clipped score times `factors` of every plane, float32 [M]."""
    step = len(wide)
    whole = factors.size // step
    for m in range(largest.size):
        plane = planes[m]
        peak = row_zero(wide)
        for at in range(whole):
            score = row_clip_score(row_load(wide, plane, at))
            peak = row_max(peak, row_multiply(score, row_load(wide, factors, at)))
        rest = row_zero(single)
        for at in range(whole * step, factors.size):
            last = row_clip_score(row_load(single, plane, at))
            rest = row_max(rest, row_multiply(last, row_load(single, factors, at)))
        largest[m] = max(row_peak(peak), row_peak(rest))


@kernel
def softmax(
    wide: Any,
    tail: Any,
    first: int,
    last: int,
    messages: Any,
    base: Any,
    rest: Any,
    mass: Any,
    scale: Any,
    shifted: bool,
) -> None:
    """messages = base * exp(messages), divided by its sum over all rows of a pixel and the rest.

    Args:
        wide, tail: Tuples of the row widths: of all blocks but the last, and of the last.
        first, last: The pixels.
        messages, base: Blocks of N rows, flat float32. Both are 0 in lanes without a label.
        rest: Scores that are not in any block, float32 [N].
        mass: The sum of all labels' messages, float32 [N]: what the blocks' messages leave of it
            is that of the rest. Empty if the rest has no message.
        scale: Receives what turns a score of the rest into a posterior, float32 [N].
        shifted: Whether messages may be so large that the largest must be subtracted first.
    """
    pixels = rest.size
    full = (base.size - pixels * len(tail)) // (pixels * len(wide))
    head = full * pixels * len(wide)
    tail_base, tail_messages = base[head:], messages[head:]
    totals = np.empty(_TILE, np.float32)
    # Three short loops: the processor then works on several pixels at a time.
    for begin in range(first, last, _TILE):
        end = min(begin + _TILE, last)
        scale[begin:end] = np.float32(0.0)
        if mass.size > 0:
            for p in range(begin, end):
                total = row_widen(wide, row_load(tail, tail_messages, p))
                for block in range(full):
                    total = row_add(total, row_load(wide, messages, block * pixels + p))
                scale[p] = mass[p] - row_total(total)
        for p in range(begin, end):
            message, peak = scale[p], np.float32(0.0)
            if shifted:
                peak = max(message, row_peak(row_load(tail, tail_messages, p)))
                for block in range(full):
                    peak = max(peak, row_peak(row_load(wide, messages, block * pixels + p)))
            # The rest is one more lane behind the last block.
            grown_row = row_exp(
                row_shift(row_append(row_load(tail, tail_messages, p), message), -peak)
            )
            last_row = row_multiply(row_append(row_load(tail, tail_base, p), rest[p]), grown_row)
            row_store(tail_messages, p, row_split(last_row)[0])
            total = row_widen(wide, last_row)
            for block in range(full):
                at = block * pixels + p
                grown = row_exp(row_shift(row_load(wide, messages, at), -peak))
                row = row_multiply(row_load(wide, base, at), grown)
                row_store(messages, at, row)
                total = row_add(total, row)
            scale[p] = row_split(grown_row)[1]
            totals[p - begin] = row_total(total)
        for p in range(begin, end):
            share = np.float32(1.0) / totals[p - begin]
            scale[p] *= share
            for block in range(full):
                at = block * pixels + p
                row_store(messages, at, row_scale(row_load(wide, messages, at), share))
            row_store(tail_messages, p, row_scale(row_load(tail, tail_messages, p), share))


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
