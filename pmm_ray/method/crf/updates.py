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
    row_peak,
    row_scale,
    row_shift,
    row_store,
    row_total,
    row_zero,
)
from pmm_ray.method.crf.simd_math import row_clip_score, row_exp, row_log, row_sigmoid


@kernel
def pack(planes: Any, places: Any, rows: Any, stride: int, offset: int) -> None:
    """Copy planes [K, N] into the rows `rows[places[n] * stride + offset + k]`."""
    count = planes.shape[0]
    for pixel in range(places.size):
        at = np.int64(places[pixel]) * stride + offset
        for k in range(count):
            rows[at + k] = planes[k, pixel]


@kernel
def unpack(rows: Any, places: Any, stride: int, offset: int, planes: Any) -> None:
    """The inverse of `pack`."""
    count = planes.shape[0]
    for pixel in range(places.size):
        at = np.int64(places[pixel]) * stride + offset
        for k in range(count):
            planes[k, pixel] = rows[at + k]


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
def softmax(lanes: Any, base: Any, messages: Any, rest: Any, scale: Any) -> None:
    """messages = softmax over the labels of base + messages.

    Args:
        lanes: A tuple of length L.
        base, messages: Blocks of L labels each, flat float32 [blocks * N * L].
        rest: What labels outside the blocks add to the denominator before scaling, float32 [N].
        scale: Receives the factor that turns such a label's score into its posterior, float32
            [N].
    """
    width, pixels = len(lanes), rest.size
    block = pixels * width
    for p in range(pixels):
        begin = p * width
        highest = row_add(row_load(lanes, base, begin), row_load(lanes, messages, begin))
        row_store(messages, begin, highest)
        for at in range(begin + block, base.size, block):
            row = row_add(row_load(lanes, base, at), row_load(lanes, messages, at))
            row_store(messages, at, row)
            highest = row_max(highest, row)
        peak = row_peak(highest)
        total = row_zero(lanes)
        for at in range(begin, base.size, block):
            row = row_exp(row_shift(row_load(lanes, messages, at), -peak))
            row_store(messages, at, row)
            total = row_add(total, row)
        lost = np.exp(-peak)
        share = np.float32(1.0) / (row_total(total) + rest[p] * lost)
        scale[p] = lost * share
        for at in range(begin, base.size, block):
            row_store(messages, at, row_scale(row_load(lanes, messages, at), share))
