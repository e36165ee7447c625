"""Kernels that put pixels into the permutohedral lattice (Adams et al. 2010, section 3).

The arithmetic follows Kraehenbuehl's implementation operation by operation, in float32, so that
both put a pixel into the same simplex with the same weights.
"""

# H, W: image; d: feature dimensions; N: pixels.

from __future__ import annotations

from typing import Any

import numpy as np

from latticecrf.kernels.cache import kernel
from latticecrf.lattice.hashing import home, new_table, number, roomy
from latticecrf.simd.rows import prefetch

# How many pixels ahead a look-up's cache line is asked for.
_AHEAD = 12
# How many pixels without a grid are placed at a time.
_TOGETHER = 512


@kernel
def _elevate_row(features: Any, scale: Any, elevated: Any, partial: Any) -> None:
    """Map features [d, W] onto the plane where d + 1 coordinates sum to zero."""
    d, width = features.shape
    partial[:] = np.float32(0.0)
    for j in range(d, 0, -1):
        feature, out = features[j - 1], elevated[j]
        factor, steps = scale[j - 1], np.float32(j)
        for x in range(width):
            component = feature[x] * factor
            out[x] = partial[x] - steps * component
            partial[x] = partial[x] + component
    elevated[0, :] = partial


@kernel
def _round_row(elevated: Any, corner: Any, rank: Any, rest: Any) -> None:
    """Find each pixel's simplex: its vertex of remainder 0 and the order of its coordinates.

    `corner` [d + 1, W] receives the vertex divided by d + 1, `rank` the position of each
    coordinate when sorted descending, `rest` the position inside the simplex over d + 1.
    """
    count, width = elevated.shape
    up = np.float32(count)
    down = np.float32(1.0) / up
    total = np.zeros(width, np.int32)
    for i in range(count):
        source, base, offset = elevated[i], corner[i], rest[i]
        for x in range(width):
            nearest = np.rint(source[x] * down)
            base[x] = np.int32(nearest)
            total[x] += np.int32(nearest)
            offset[x] = source[x] - nearest * up
    rank[:] = 0
    for i in range(count):
        first, first_rank = rest[i], rank[i]
        for j in range(i + 1, count):
            second, second_rank = rest[j], rank[j]
            for x in range(width):
                smaller = np.int32(first[x] < second[x])
                first_rank[x] += smaller
                second_rank[x] += np.int32(1) - smaller
    # Rounding may have left the plane by a few steps: walk back along the coordinates that
    # were rounded the most.
    for i in range(count):
        source, base, order, offset = elevated[i], corner[i], rank[i], rest[i]
        for x in range(width):
            moved = order[x] + total[x]
            wrap = np.int32(moved < 0) - np.int32(moved >= count)
            order[x] = moved + wrap * np.int32(count)
            base[x] += wrap
            offset[x] = (source[x] - np.float32(base[x]) * up) * down


@kernel
def _weigh_row(rank: Any, rest: Any, ordered: Any, weights: Any) -> None:
    """Barycentric coordinates [d + 1, W] of each pixel in its simplex."""
    count, width = rank.shape
    for r in range(count):
        out = ordered[r]
        out[:] = np.float32(0.0)
        for i in range(count):
            order, offset = rank[i], rest[i]
            for x in range(width):
                out[x] += offset[x] if order[x] == r else np.float32(0.0)
    last, first = ordered[count - 1], ordered[0]
    for x in range(width):
        weights[0, x] = last[x] + (np.float32(1.0) - first[x])
    for r in range(1, count):
        high, low, out = ordered[count - 1 - r], ordered[count - r], weights[r]
        for x in range(width):
            out[x] = high[x] - low[x]


@kernel
def _fill_features(source: Any, y: int, first: int, features: Any) -> None:
    """The features of row y of an image, or of the points from `first` on."""
    image, step_x, step_y, colors, points = source
    d, width = features.shape
    if points.shape[0] > 0:
        for i in range(d):
            for x in range(width):
                features[i, x] = points[i, first + x]
        return
    features[0, :] = step_x
    features[1, :] = step_y[y]
    for c in range(d - 2):
        out, levels = features[2 + c], colors[c]
        for x in range(width):
            out[x] = levels[image[y, x, c]]


@kernel
def _keep(
    corner: Any, rank: Any, x: int, simplex_corner: Any, simplex_rank: Any, simplex: int
) -> None:
    d = simplex_corner.shape[1]
    for i in range(d):
        simplex_corner[simplex, i] = corner[i, x]
    for i in range(d + 1):
        simplex_rank[simplex, i] = rank[i, x]


@kernel
def embed(
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
        source: The features, see `Features`.
        scale: Diagonal of the elevation, float32 [d].
        radix: Place values of the first d corner coordinates in a simplex key, int64 [d],
            above the (d + 1) ** d that the order of the coordinates takes.
        low: Smallest corner coordinates, int32 [d].
        weights: Receives the barycentric weights, float32 [N, d + 1].
        simplex_of: Receives each pixel's simplex, int32 [N].
        simplex_corner, simplex_rank: Receive the simplices, int32 and int8, at least [N, d] and
            [N, d + 1].
        packed: Whether a simplex fits a 64-bit key. False gives every pixel a simplex of its
            own, for the caller to merge.

    Returns:
        The number of simplices.
    """
    d, pixels = scale.size, simplex_of.size
    grid = source[1].size > 0
    width = source[1].size if grid else min(pixels, _TOGETHER)
    height = (pixels + width - 1) // width
    features = np.empty((d, width), np.float32)
    elevated = np.empty((d + 1, width), np.float32)
    rest = np.empty((d + 1, width), np.float32)
    ordered = np.empty((d + 1, width), np.float32)
    row_weights = np.empty((d + 1, width), np.float32)
    partial = np.empty(width, np.float32)
    corner = np.empty((d + 1, width), np.int32)
    rank = np.empty((d + 1, width), np.int32)
    row_keys = np.empty(width, np.int64)
    order_place = np.empty(d, np.int64)
    for i in range(d):
        order_place[i] = (d + 1) ** i
    table = new_table(1 << 12)
    count = 0
    for y in range(height):
        # The last points may be placed twice, with the same result.
        first = min(y * width, pixels - width)
        _fill_features(source, y, first, features)
        _elevate_row(features, scale, elevated, partial)
        _round_row(elevated, corner, rank, rest)
        _weigh_row(rank, rest, ordered, row_weights)
        row_keys[:] = 0
        for i in range(d):
            base, order, place, start = corner[i], rank[i], radix[i], low[i]
            for x in range(width):
                row_keys[x] += np.int64(base[x] - start) * place + order[x] * order_place[i]
        for i in range(d + 1):
            line = row_weights[i]
            for x in range(width):
                weights[first + x, i] = line[x]
        if packed:
            table = roomy(table, count + width)
            for x in range(width):
                if x + _AHEAD < width:
                    prefetch(table, home(table, row_keys[x + _AHEAD]))
                simplex_of[first + x] = number(table, row_keys[x], count)
                if simplex_of[first + x] == count:
                    _keep(corner, rank, x, simplex_corner, simplex_rank, count)
                    count += 1
        else:
            for x in range(width):
                simplex_of[first + x] = first + x
                _keep(corner, rank, x, simplex_corner, simplex_rank, first + x)
            count = first + width
    return count
