"""Kernels of the mean-field update: sigmoid and softmax over packed logits, and packing."""

# N: pixels; K: classes; L: row width, the lanes.

from __future__ import annotations

from typing import Any

import numpy as np

from pmm_ray.method.crf.cache import kernel
from pmm_ray.method.crf.simd import (
    row_add,
    row_divide,
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
from pmm_ray.method.crf.simd_math import row_clip_score, row_exp, row_log, row_sigmoid

# Pixels whose rows are turned at a time.
_TILE = 64


def padded(count: int) -> int:
    """The smallest power of two that holds `count` channels."""
    return 1 << (count - 1).bit_length()


@kernel
def pack(planes: Any, labels: Any, places: Any, rows: Any, stride: int, offset: int) -> None:
    """Copy planes [M, N] into rows: `rows[places[n] * stride + offset + k]` of label k."""
    for pixel in range(places.size):
        at = np.int64(places[pixel]) * stride + offset
        for k in range(labels.size):
            rows[at + k] = planes[labels[k], pixel]


@kernel
def unpack(rows: Any, places: Any, stride: int, offset: int, planes: Any, labels: Any) -> None:
    """The inverse of `pack`."""
    for first in range(0, places.size, _TILE):
        last = min(first + _TILE, places.size)
        for k in range(labels.size):
            plane = planes[labels[k]]
            for pixel in range(first, last):
                plane[pixel] = rows[np.int64(places[pixel]) * stride + offset + k]


@kernel
def columns(
    source: Any, at: Any, source_stride: Any, pixels: int, rows: Any, stride: int, offset: int
) -> None:
    """Fill the first columns of `pixels` rows with columns that start at `source[at[k]]`."""
    for first in range(0, pixels, _TILE):
        last = min(first + _TILE, pixels)
        for k in range(at.size):
            begin, step = at[k], source_stride[k]
            for p in range(first, last):
                rows[offset + p * stride + k] = source[begin + p * step]


@kernel
def log_ratio(wide: Any, single: Any, foreground: Any, background: Any, logits: Any) -> None:
    """logits = log(clip(foreground) / clip(background)), clipped to 1e-5..1, flat arrays."""
    step = len(wide)
    whole = logits.size // step * step
    for at in range(0, whole, step):
        above = row_clip_score(row_load(wide, foreground, at))
        below = row_clip_score(row_load(wide, background, at))
        row_store(logits, at, row_log(row_divide(above, below)))
    for at in range(whole, logits.size):
        above_one = row_clip_score(row_load(single, foreground, at))
        below_one = row_clip_score(row_load(single, background, at))
        row_store(logits, at, row_log(row_divide(above_one, below_one)))


@kernel
def lower(rows: Any, stride: int, amount: Any) -> None:
    """Subtract `amount[p]` from every entry of row p."""
    for p in range(amount.size):
        for at in range(p * stride, (p + 1) * stride):
            rows[at] -= amount[p]


@kernel
def movement(previous: Any, rows: Any, stride: int, moved: Any) -> None:
    """The largest change of each of the first channels, float32 [K]."""
    moved[:] = np.float32(0.0)
    for begin in range(0, rows.size - stride + 1, stride):
        for k in range(moved.size):
            moved[k] = max(moved[k], abs(rows[begin + k] - previous[begin + k]))


@kernel
def logistic(wide: Any, base: Any, messages: Any) -> None:
    """messages = sigmoid(base + messages); both have a multiple of `len(wide)` entries."""
    step = len(wide)
    for at in range(0, base.size, step):
        row = row_add(row_load(wide, base, at), row_load(wide, messages, at))
        row_store(messages, at, row_sigmoid(row))


@kernel
def softmax(
    wide: Any,
    tail: Any,
    full: int,
    base: Any,
    messages: Any,
    rest: Any,
    scale: Any,
    shifted: bool,
) -> None:
    """messages = softmax over the labels of log(base) + messages.

    Args:
        wide, tail: Tuples as long as the rows of the full blocks and of the last block.
        full: Number of full blocks; the last one follows them.
        base, messages: Scores and messages of the blocks' labels, flat float32.
        rest: What labels outside the blocks add to the denominator before scaling, float32 [N].
        scale: Receives the factor that turns such a label's score into its posterior, float32
            [N].
        shifted: Whether messages are so large that the largest must be subtracted first.
    """
    step, last_step, pixels = len(wide), len(tail), rest.size
    block = pixels * step
    for p in range(pixels):
        begin, end = p * step, full * block + p * step
        last_at = full * block + p * last_step
        peak = np.float32(0.0)
        if shifted:
            peak = row_peak(row_load(tail, messages, last_at))
            for at in range(begin, end, block):
                peak = max(peak, row_peak(row_load(wide, messages, at)))
        total = row_zero(wide)
        for at in range(begin, end, block):
            grown = row_exp(row_shift(row_load(wide, messages, at), -peak))
            row = row_multiply(row_load(wide, base, at), grown)
            row_store(messages, at, row)
            total = row_add(total, row)
        last_grown = row_exp(row_shift(row_load(tail, messages, last_at), -peak))
        last = row_multiply(row_load(tail, base, last_at), last_grown)
        lost = np.exp(-peak) if shifted else np.float32(1.0)
        whole = row_total(row_add(total, row_widen(wide, last)))
        share = np.float32(1.0) / (whole + rest[p] * lost)
        scale[p] = lost * share
        for at in range(begin, end, block):
            row_store(messages, at, row_scale(row_load(wide, messages, at), share))
        row_store(messages, last_at, row_scale(last, share))


@kernel
def highest(lanes: Any, rows: Any, offset: int, pixels: int, peaks: Any) -> None:
    """The largest value of every lane, float32 [L]; values are not negative."""
    peak = row_zero(lanes)
    for p in range(pixels):
        peak = row_max(peak, row_load(lanes, rows, offset + p * len(lanes)))
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
    factor = row_load(lanes, factors, 0)
    cost = row_zero(lanes)
    for p in range(inverse.size):
        at = offset + p * len(lanes)
        share = row_scale(row_load(lanes, base, at), inverse[p])
        grown = row_exp(row_multiply(factor, row_load(lanes, messages, at)))
        cost = row_max(cost, row_multiply(share, row_shift(grown, np.float32(-1.0))))
    row_store(costs, 0, cost)


@kernel
def grow(lanes: Any, base: Any, messages: Any, offset: int, pixels: int) -> None:
    """base = base * exp(messages), rows that start at `offset`."""
    for p in range(pixels):
        at = offset + p * len(lanes)
        row = row_multiply(row_load(lanes, base, at), row_exp(row_load(lanes, messages, at)))
        row_store(base, at, row)


@kernel
def largest_products(wide: Any, single: Any, planes: Any, factors: Any, largest: Any) -> None:
    """The largest `planes[m] * factors` of every plane, float32 [M]; nothing is negative."""
    step = len(wide)
    whole = factors.size // step * step
    for m in range(largest.size):
        plane = planes[m]
        peak = row_zero(wide)
        for at in range(0, whole, step):
            product = row_multiply(row_load(wide, plane, at), row_load(wide, factors, at))
            peak = row_max(peak, product)
        rest = row_zero(single)
        for at in range(whole, factors.size):
            last = row_multiply(row_load(single, plane, at), row_load(single, factors, at))
            rest = row_max(rest, last)
        largest[m] = max(row_peak(peak), row_peak(rest))
