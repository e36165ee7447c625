"""Kernels that number the lattice's vertices, link neighbours and group pixels by simplex."""

# d: feature dimensions; N: pixels; S: simplices; M: vertices.

from __future__ import annotations

from typing import Any

import numpy as np

from latticecrf.kernels.cache import kernel
from latticecrf.lattice.hashing import home, known, new_table, number, roomy
from latticecrf.simd.rows import prefetch

# How many look-ups ahead a cache line is asked for.
_AHEAD = 12
# Simplices whose vertices are asked for at once.
_TILE = 16
# Segments at least this long are not told apart by length.
_LENGTHS = 16


@kernel
def number_vertices(simplex_corner: Any, simplex_rank: Any, radix: Any, low: Any) -> Any:
    """Number the d + 1 vertices of every simplex.

    The vertex of remainder r has the coordinates `(d + 1) * corner + r`, less d + 1 where the
    coordinate is among the r lowest. Its key is their mixed-radix number.

    Args:
        simplex_corner, simplex_rank: int32 [S, d] and int8 [S, d + 1], see `embed`.
        radix: Place value of each coordinate in a vertex key, int64 [d].
        low: Smallest coordinates, int64 [d].

    Returns:
        simplices int32 [S, d + 1]; the vertices' keys, int64 [M]; the table that numbers them;
        and the vertices' last coordinates, int32 [M].
    """
    count, d = simplex_corner.shape
    simplices = np.empty((count, d + 1), np.int32)
    vertex_keys = np.empty(count * (d + 1), np.int64)
    height = np.empty(count * (d + 1), np.int32)
    table = new_table(1 << 12)
    vertices = 0
    base = np.int64(0)
    every = np.int64(0)
    for i in range(d):
        base -= low[i] * radix[i]
        every += radix[i]
    # drop[r]: what the coordinate of rank r loses in the key when it wraps around.
    drop = np.zeros(d + 1, np.int64)
    keys = np.empty((_TILE, d + 1), np.int64)
    for begin in range(0, count, _TILE):
        end = min(begin + _TILE, count)
        table = roomy(table, vertices + (end - begin) * (d + 1))
        for s in range(begin, end):
            key = base
            drop[simplex_rank[s, d]] = 0
            for i in range(d):
                turn = (d + 1) * radix[i]
                key += simplex_corner[s, i] * turn
                drop[simplex_rank[s, i]] = turn
            for remainder in range(d + 1):
                if remainder > 0:
                    key += every - drop[d + 1 - remainder]
                keys[s - begin, remainder] = key
                prefetch(table, home(table, key))
        for s in range(begin, end):
            for remainder in range(d + 1):
                key = keys[s - begin, remainder]
                vertex = number(table, key, vertices)
                simplices[s, remainder] = vertex
                if vertex == vertices:
                    vertex_keys[vertices] = key
                    last_corner = np.int64(0)
                    for i in range(d):
                        last_corner -= simplex_corner[s, i]
                    wraps = np.int64(simplex_rank[s, d] > d - remainder)
                    height[vertices] = (d + 1) * (last_corner - wraps) + remainder
                    vertices += 1
    return simplices, vertex_keys[:vertices].copy(), table, height[:vertices].copy()


@kernel
def sort_vertices(height: Any, whole: int) -> Any:
    """Number vertices anew by falling last coordinate, otherwise in their old order.

    Args:
        height: Last coordinate of each vertex, int32 [M].
        whole: Up to so many vertices keep their order, and are one level.

    Returns:
        The new number of each vertex, int32 [M]; the first vertex of each level (vertices of one
        height, the highest first) and the number of vertices, int64 [levels + 1].
    """
    if height.size <= whole:
        return np.arange(height.size).astype(np.int32), np.array([0, height.size])
    highest = height.max()
    first = np.zeros(np.int64(highest) - height.min() + 2, np.int64)
    for v in range(height.size):
        first[np.int64(highest) - height[v] + 1] += 1
    first = np.cumsum(first)
    free = first.copy()
    position = np.empty(height.size, np.int32)
    for v in range(height.size):
        level = np.int64(highest) - height[v]
        position[v] = free[level]
        free[level] += 1
    return position, first


@kernel
def renumber(position: Any, simplices: Any, vertex_keys: Any, table: Any) -> Any:
    """Apply new vertex numbers to simplices and table in place; returns the keys in new order."""
    for s in range(simplices.shape[0]):
        for i in range(simplices.shape[1]):
            simplices[s, i] = position[simplices[s, i]]
    for at in range(0, table.size, 2):
        if table[at] >= 0:
            table[at + 1] = position[table[at + 1]]
    keys = np.empty_like(vertex_keys)
    for v in range(position.size):
        keys[position[v]] = vertex_keys[v]
    return keys


@kernel
def link_vertices(vertex_keys: Any, table: Any, radix: Any) -> Any:
    """The next vertex after every vertex along each of the d + 1 axes.

    A step along axis j adds d to coordinate j and takes 1 from every other: a constant in
    packed keys.

    Returns:
        int32 [d + 1, M]; -1 where there is none.
    """
    d, count = radix.size, vertex_keys.size
    following = np.empty((d + 1, count), np.int32)
    every = np.int64(0)
    for i in range(d):
        every += radix[i]
    for j in range(d + 1):
        step = -every
        if j < d:
            step += (d + 1) * radix[j]
        line = following[j]
        for v in range(count):
            if v + _AHEAD < count:
                prefetch(table, home(table, vertex_keys[v + _AHEAD] + step))
            line[v] = known(table, vertex_keys[v] + step)
    return following


@kernel
def group_pixels(
    simplex_of: Any, weights: Any, places: Any, step_of: Any, steps: int, longest: int
) -> Any:
    """Sort pixels by simplex into segments of at most `longest` pixels.

    Args:
        simplex_of: int32 [N].
        weights: Barycentric weights, float32 [d + 1, N and a few more].
        places: The place of each pixel in the caller's arrays, int32 [N].
        step_of: The step in which a simplex is splatted, int32 [S]: segments stand in that order.
        steps: Number of steps.
        longest: Longest segment.

    Returns:
        starts int64 [segments + 1]; each segment's simplex int64; each sorted pixel's place in
        the caller's order int32 [N]; the weights in sorted order, flat float32; the first segment
        of each step and the number of segments, int64 [steps + 1].
    """
    n, corners = simplex_of.size, weights.shape[0]
    count = step_of.size
    population = np.zeros(count, np.int32)
    for pixel in range(n):
        population[simplex_of[pixel]] += 1
    # Within a step segments of equal length stand together: a loop over a segment then ends where
    # the branch predictor expects it, which halves the time of splatting and slicing.
    kinds = _LENGTHS + 1
    first = np.zeros(steps * kinds + 1, np.int64)
    step_starts = np.zeros(steps + 1, np.int64)
    for each in range(count):
        first[step_of[each] * kinds + min(population[each], _LENGTHS) + 1] += 1
        step_starts[step_of[each] + 1] += (population[each] + longest - 1) // longest
    first = np.cumsum(first)
    step_starts = np.cumsum(step_starts)
    segments = step_starts[steps]
    sequence = np.empty(count, np.int32)
    for each in range(count):
        kind = step_of[each] * kinds + min(population[each], _LENGTHS)
        sequence[first[kind]] = each
        first[kind] += 1
    starts = np.empty(segments + 1, np.int64)
    owner = np.empty(segments, np.int64)
    free = np.empty(count, np.int32)
    segment, filled = 0, 0
    for index in range(count):
        s = sequence[index]
        free[s] = filled
        left = population[s]
        while left > 0:
            starts[segment] = filled
            owner[segment] = s
            segment += 1
            filled += min(left, longest)
            left -= longest
    starts[segment] = n
    slots = np.empty(n, np.int32)
    for pixel in range(n):
        slots[pixel] = free[simplex_of[pixel]]
        free[simplex_of[pixel]] += 1
    link = np.empty(n, np.int32)
    grouped = np.empty(n * corners, np.float32)
    for pixel in range(n):
        if pixel + _AHEAD < n:
            prefetch(grouped, np.int64(slots[pixel + _AHEAD]) * corners)
        slot = np.int64(slots[pixel])
        link[slot] = places[pixel]
        for j in range(corners):
            grouped[slot * corners + j] = weights[j, pixel]
    return starts, owner, link, grouped, step_starts


@kernel
def scale_weights(weights: Any, total: Any, root: Any, whole: bool) -> None:
    """Multiply every pixel's weights by `root` over its total, or over the total's square root."""
    corners = weights.size // total.size
    for p in range(total.size):
        mine = total[p] + np.float32(1e-20)
        factor = root / (mine if whole else np.sqrt(mine))
        for j in range(corners):
            weights[p * corners + j] *= factor
