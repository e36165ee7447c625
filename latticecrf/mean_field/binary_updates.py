"""Kernels of the mean-field update of binary problems: sigmoid over packed logits, and packing."""

# N: pixels; K: classes; L: row width, the lanes.

from __future__ import annotations

from typing import Any

import numpy as np

from latticecrf.kernels.cache import kernel
from latticecrf.simd.functions import row_clip_score, row_log, row_sigmoid
from latticecrf.simd.rows import (
    row_add,
    row_divide,
    row_load,
    row_store,
)

# Scores below it count as this much: the released code's clipping of unaries.
FLOOR = np.float32(1e-5)
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
def log_ratio(wide: Any, single: Any, foreground: Any, background: Any, logits: Any) -> None:
    """logits = log(clip(foreground) / clip(background)), clipped to 1e-5..1, flat arrays."""
    step = len(wide)
    whole = logits.size // step
    for at in range(whole):
        above = row_clip_score(row_load(wide, foreground, at), FLOOR)
        below = row_clip_score(row_load(wide, background, at), FLOOR)
        row_store(logits, at, row_log(row_divide(above, below)))
    for at in range(whole * step, logits.size):
        above_one = row_clip_score(row_load(single, foreground, at), FLOOR)
        below_one = row_clip_score(row_load(single, background, at), FLOOR)
        row_store(logits, at, row_log(row_divide(above_one, below_one)))


@kernel
def lower(rows: Any, stride: int, amount: Any) -> None:
    """Subtract `amount[p]` from every entry of row p."""
    for p in range(amount.size):
        for at in range(p * stride, (p + 1) * stride):
            rows[at] -= amount[p]


@kernel
def logistic(wide: Any, base: Any, messages: Any) -> None:
    """messages = sigmoid(base + messages); both have a multiple of `len(wide)` entries."""
    for at in range(base.size // len(wide)):
        row = row_add(row_load(wide, base, at), row_load(wide, messages, at))
        row_store(messages, at, row_sigmoid(row))
