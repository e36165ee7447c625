"""The update of a joint mean field: messages and scores to posteriors, 16 pixels at a time."""

# N: pixels; L: row width, the lanes.

from __future__ import annotations

from typing import Any

import numpy as np

from latticecrf.kernels.cache import kernel
from latticecrf.simd.functions import row_exp
from latticecrf.simd.rows import (
    row_add,
    row_divide,
    row_load,
    row_lower,
    row_max,
    row_multiply,
    row_one,
    row_store,
    row_zero,
)
from latticecrf.simd.tiles import (
    tile_grow,
    tile_load,
    tile_lower,
    tile_peak,
    tile_read,
    tile_store,
    tile_total,
    tile_write,
)
from latticecrf.simd.turn import tile_multiply

# Pixels in each of the short loops.
_TOGETHER = 64


@kernel
def softmax(
    wide: Any,
    tail: Any,
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
        messages, base: Blocks of N rows, flat float32. Both are 0 in lanes without a label.
        rest: Scores that are not in any block, float32 [N].
        mass: The sum of all labels' messages, float32 [N]: what the blocks' messages leave of it
            is that of the rest. Empty if the rest has no message.
        scale: Receives what turns a score of the rest into a posterior, float32 [N].
        shifted: Whether messages may be so large that the largest must be subtracted first.
    """
    pixels, side = rest.size, len(wide)
    whole = pixels // side * side
    totals = np.empty(_TOGETHER, np.float32)
    field = (messages, base, rest, mass, scale)
    for first in range(0, whole, _TOGETHER):
        last = min(first + _TOGETHER, whole)
        _update(wide, tail, first, last, field, shifted, totals)
    left = pixels - whole
    if left == 0:
        return
    # The last pixels are updated in a tile of their own, filled up with zeros.
    full = (base.size - pixels * len(tail)) // (pixels * side)
    own_messages = np.zeros((full * side + len(tail)) * side, np.float32)
    own_base = np.zeros_like(own_messages)
    own_rest, own_scale = np.ones(side, np.float32), np.empty(side, np.float32)
    own_mass = np.zeros(side if mass.size > 0 else 0, np.float32)
    own_rest[:left] = rest[whole:]
    if mass.size > 0:
        own_mass[:left] = mass[whole:]
    for block in range(full + 1):
        lanes = side if block < full else len(tail)
        at = block * pixels * side + whole * lanes
        own, size = block * side * side, left * lanes
        own_messages[own : own + size] = messages[at : at + size]
        own_base[own : own + size] = base[at : at + size]
    own_field = (own_messages, own_base, own_rest, own_mass, own_scale)
    _update(wide, tail, 0, side, own_field, shifted, totals)
    scale[whole:] = own_scale[:left]
    for block in range(full + 1):
        lanes = side if block < full else len(tail)
        at = block * pixels * side + whole * lanes
        own, size = block * side * side, left * lanes
        messages[at : at + size] = own_messages[own : own + size]


@kernel
def _update(
    wide: Any,
    tail: Any,
    first: int,
    last: int,
    field: Any,
    shifted: bool,
    totals: Any,
) -> None:
    """`softmax` of whole tiles, pixels `first` to `last`; `totals` is working memory.

    `field` holds its arrays, `messages` to `scale`.

    Three short loops: the processor then works on several tiles at a time. In between the messages
    lie turned, each tile in its own place.
    """
    messages, base, rest, mass, scale = field
    pixels, side = rest.size, len(wide)
    full = (base.size - pixels * len(tail)) // (pixels * side)
    head = full * pixels * side
    for pixel in range(first, last, side):
        end = head + pixel * len(tail)
        tile = tile_read(wide, tail, messages, end)
        tile_store(tile, messages, end)
        total = tile_total(tile)
        peak = row_max(row_zero(wide), tile_peak(tile)) if shifted else row_zero(wide)
        for block in range(full):
            at = (block * pixels + pixel) * side
            tile = tile_read(wide, wide, messages, at)
            tile_store(tile, messages, at)
            total = row_add(total, tile_total(tile))
            if shifted:
                peak = row_max(peak, tile_peak(tile))
        message = row_zero(wide)
        if mass.size > 0:
            message = row_lower(row_load(wide, mass, pixel // side), total)
            if shifted:
                peak = row_max(peak, message)
        row_store(scale, pixel // side, message)
        if shifted:
            row_store(totals, (pixel - first) // side, peak)
    for pixel in range(first, last, side):
        end = head + pixel * len(tail)
        peak = row_load(wide, totals, (pixel - first) // side) if shifted else row_zero(wide)
        grown = row_exp(row_lower(row_load(wide, scale, pixel // side), peak))
        row_store(scale, pixel // side, grown)
        total = row_multiply(grown, row_load(wide, rest, pixel // side))
        tile = tile_lower(tile_load(wide, tail, messages, end), peak)
        tile = tile_grow(tile_read(wide, tail, base, end), tile)
        tile_store(tile, messages, end)
        total = row_add(total, tile_total(tile))
        for block in range(full):
            at = (block * pixels + pixel) * side
            tile = tile_lower(tile_load(wide, wide, messages, at), peak)
            tile = tile_grow(tile_read(wide, wide, base, at), tile)
            tile_store(tile, messages, at)
            total = row_add(total, tile_total(tile))
        row_store(totals, (pixel - first) // side, total)
    for pixel in range(first, last, side):
        end = head + pixel * len(tail)
        share = row_divide(row_one(wide), row_load(wide, totals, (pixel - first) // side))
        grown = row_load(wide, scale, pixel // side)
        row_store(scale, pixel // side, row_multiply(grown, share))
        tile_write(tile_multiply(tile_load(wide, tail, messages, end), share), messages, end)
        for block in range(full):
            at = (block * pixels + pixel) * side
            tile_write(tile_multiply(tile_load(wide, wide, messages, at), share), messages, at)
