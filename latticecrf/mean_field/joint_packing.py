"""Kernels that turn the planes of a joint problem into rows, and back."""

# N: pixels; M: labels; L: row width, the lanes.

from __future__ import annotations

from typing import Any

import numpy as np

from latticecrf.kernels.cache import kernel
from latticecrf.simd.rows import row_load
from latticecrf.simd.turn import (
    tile_clip_scores,
    tile_from_planes,
    tile_from_rows,
    tile_multiply,
    tile_to_planes,
    tile_to_rows,
    tile_turn,
)

# Pixels whose columns are copied at a time.
_TILE = 64


@kernel
def load_scores(
    wide: Any,
    planes: Any,
    labels: Any,
    places: Any,
    floor: Any,
    inverse: Any,
    base: Any,
    posterior: Any,
    stride: int,
) -> None:
    """Clipped scores and normalized ones as rows, zeros behind the labels.

    Args:
        wide: A tuple of length 16; a block of as many labels is turned tile by tile.
        planes: Scores [M, N].
        labels: The planes that are taken, int64.
        places: The row of each pixel, int32 [N].
        floor: Scores below it count as this much, float32.
        inverse: See `invert_sums`.
        base, posterior: Receive the rows, flat float32 [N * stride].
    """
    side = len(wide)
    turned = places.size // side if labels.size == side else 0
    for tile in range(turned):
        scores = tile_clip_scores(tile_from_planes(wide, planes, labels, tile * side), floor)
        shares = tile_multiply(scores, row_load(wide, inverse, tile))
        tile_to_rows(tile_turn(scores), base, places, tile * side)
        tile_to_rows(tile_turn(shares), posterior, places, tile * side)
    for pixel in range(turned * side, places.size):
        at = np.int64(places[pixel]) * stride
        share = inverse[pixel]
        for k in range(labels.size):
            score = min(max(planes[labels[k], pixel], floor), np.float32(1.0))
            base[at + k] = score
            posterior[at + k] = score * share
        for k in range(labels.size, stride):
            base[at + k] = np.float32(0.0)
            posterior[at + k] = np.float32(0.0)


@kernel
def unload(wide: Any, rows: Any, places: Any, planes: Any, labels: Any) -> None:
    """Copy rows of 16 labels, flat float32 [N * 16], into their planes [M, N]."""
    side = len(wide)
    turned = places.size // side
    for tile in range(turned):
        values = tile_turn(tile_from_rows(wide, rows, places, tile * side))
        tile_to_planes(values, planes, labels, tile * side)
    for pixel in range(turned * side, places.size):
        for k in range(side):
            planes[labels[k], pixel] = rows[np.int64(places[pixel]) * side + k]


@kernel
def columns(source: Any, at: Any, source_stride: Any, pixels: int, rows: Any, stride: int) -> None:
    """Fill the columns of `pixels` rows with columns that start at `source[at[k]]`.

    A column is left as it is where `at[k]` is negative, and zero where there is no `at[k]`.
    """
    for first in range(0, pixels, _TILE):
        last = min(first + _TILE, pixels)
        for k in range(at.size):
            begin, step = at[k], source_stride[k]
            if begin >= 0:
                for p in range(first, last):
                    rows[p * stride + k] = source[begin + p * step]
        for k in range(at.size, stride):
            for p in range(first, last):
                rows[p * stride + k] = np.float32(0.0)
