"""Kernels that put pixels into the permutohedral lattice (Adams et al. 2010, section 3).

The arithmetic follows Kraehenbuehl's implementation operation by operation, in float32, so that
both put a pixel into the same simplex with the same weights.
"""

# H, W: image; d: feature dimensions; N: pixels.

from __future__ import annotations

from typing import Any

import numpy as np

from latticecrf.kernels.cache import kernel
from latticecrf.lattice.hashing import find, home, new_table, roomy
from latticecrf.simd.rows import prefetch
from latticecrf.simd.simplex import place_tile

# How many pixels ahead a look-up's cache line is asked for.
_AHEAD = 12
# How many pixels without a grid are placed at a time.
_TOGETHER = 512


@kernel
def _fill_features(source: Any, y: int, first: int, features: Any) -> None:
    """The features of row y of an image, or of the points from `first` on."""
    image, step_x, step_y, colors, points = source
    d = features.shape[0]
    if points.shape[0] > 0:
        width = min(points.shape[1], _TOGETHER)
        for i in range(d):
            for x in range(width):
                features[i, x] = points[i, first + x]
        return
    width = step_x.size
    features[0, :width] = step_x
    features[1, :width] = step_y[y]
    for c in range(d - 2):
        out, levels = features[2 + c], colors[c]
        for x in range(width):
            out[x] = levels[image[y, x, c]]


@kernel
def _number_row(table: Any, keys: Any, width: int, known: int, numbers: Any, fresh: Any) -> int:
    """Number a row's keys; returns how many are new, and where they stand in `fresh`.

    Whether a key is new is as good as random: nothing is decided by a branch but where to look on.
    """
    found = 0
    for x in range(width):
        if x + _AHEAD < width:
            prefetch(table, home(table, keys[x + _AHEAD]))
        key = keys[x]
        at = find(table, key)
        new = table[at] != key
        mine = known + found if new else table[at + 1]
        table[at] = key
        table[at + 1] = mine
        numbers[x] = mine
        fresh[found] = x
        found += int(new)
    return found


@kernel
def embed(
    wide: Any,
    axes: Any,
    source: Any,
    scale: Any,
    radix: Any,
    low: Any,
    weights: Any,
    simplex_of: Any,
    simplex_corner: Any,
    simplex_rank: Any,
    packed: bool,
) -> int:
    """Place every pixel and number the simplices in the order of their first pixel.

    Args:
        wide, axes: Tuples of length 16 and d.
        source: The features, see `Features`.
        scale: Diagonal of the elevation, float32 [d].
        radix: Place values of the first d corner coordinates in a simplex key, int64 [d],
            above the (d + 1) ** d that the order of the coordinates takes.
        low: Smallest corner coordinates, int32 [d].
        weights: Receives the barycentric weights, float32 [d + 1, at least N + 15]: whole tiles
            are written.
        simplex_of: Receives each pixel's simplex, int32 [N].
        simplex_corner, simplex_rank: Receive the simplices, int32 and int8, at least [N, d] and
            [N, d + 1].
        packed: Whether a simplex fits a 64-bit key. False gives every pixel a simplex of its
            own, for the caller to merge.

    Returns:
        The number of simplices.
    """
    d, pixels, lanes = scale.size, simplex_of.size, len(wide)
    grid = source[1].size > 0
    width = source[1].size if grid else min(pixels, _TOGETHER)
    height = (pixels + width - 1) // width
    padded = (width + lanes - 1) // lanes * lanes
    features = np.zeros((d, padded), np.float32)
    corner = np.empty((d, padded), np.int32)
    rank = np.empty((d + 1, padded), np.int8)
    row_keys = np.empty(padded, np.int64)
    fresh = np.arange(width)
    order_place = np.empty(d, np.int64)
    for i in range(d):
        order_place[i] = (d + 1) ** i
    table = new_table(1 << 12)
    count = 0
    for y in range(height):
        # The last points may be placed twice, with the same result.
        first = min(y * width, pixels - width)
        _fill_features(source, y, first, features)
        for x in range(0, padded, lanes):
            place_tile(wide, axes, features, scale, x, corner, rank, weights, first + x)
        numbers = simplex_of[first : first + width]
        if packed:
            row_keys[:] = 0
            for i in range(d):
                base, order, place, start = corner[i], rank[i], radix[i], low[i]
                for x in range(padded):
                    row_keys[x] += np.int64(base[x] - start) * place + order[x] * order_place[i]
            table = roomy(table, count + width)
            found = _number_row(table, row_keys, width, count, numbers, fresh)
        else:
            count, found = first, width
            for x in range(width):
                numbers[x] = first + x
        for at in range(found):
            x = fresh[at]
            for i in range(d):
                simplex_corner[count + at, i] = corner[i, x]
            for i in range(d + 1):
                simplex_rank[count + at, i] = rank[i, x]
        count += found
    return count
