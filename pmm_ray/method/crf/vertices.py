"""Kernels that number the lattice's vertices, link neighbours and group pixels by simplex."""

# d: feature dimensions; N: pixels; S: simplices; M: vertices.

from __future__ import annotations

from typing import Any

import numpy as np

from pmm_ray.method.crf.cache import kernel
from pmm_ray.method.crf.hashing import home, known, new_table, number, roomy
from pmm_ray.method.crf.simd import prefetch

# How many look-ups ahead a cache line is asked for.
_AHEAD = 12
# Segments and chains at least this long are not told apart by length.
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
        simplices int32 [S, d + 1]; the vertices' keys, int64 [M]; the table that numbers them.
    """
    count, d = simplex_corner.shape
    simplices = np.empty((count, d + 1), np.int32)
    vertex_keys = np.empty(count * (d + 1), np.int64)
    table = new_table(1 << 12)
    vertices = 0
    base = np.int64(0)
    every = np.int64(0)
    for i in range(d):
        base -= low[i] * radix[i]
        every += radix[i]
    # drop[r]: what the coordinate of rank r loses in the key when it wraps around.
    drop = np.zeros(d + 1, np.int64)
    for s in range(count):
        key = base
        drop[simplex_rank[s, d]] = 0
        for i in range(d):
            turn = (d + 1) * radix[i]
            key += simplex_corner[s, i] * turn
            drop[simplex_rank[s, i]] = turn
        table = roomy(table, vertices + d + 1)
        for remainder in range(d + 1):
            if remainder > 0:
                key += every - drop[d + 1 - remainder]
            vertex = number(table, key, vertices)
            simplices[s, remainder] = vertex
            if vertex == vertices:
                vertex_keys[vertices] = key
                vertices += 1
    return simplices, vertex_keys[:vertices].copy(), table


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
def chain_vertices(following: Any) -> Any:
    """Cut each axis into chains of neighbouring vertices, shortest first.

    Vertices without a neighbour along an axis are in no chain: blurring leaves them as they are.

    Args:
        following: int32 [d + 1, M], see `link_vertices`.

    Returns:
        first_chain int64 [d + 2]: the first chain of each axis; starts int64 [chains + 1]: where
        each chain begins among the members; members int32: vertices.
    """
    axes, count = following.shape
    first_chain = np.zeros(axes + 1, np.int64)
    starts = np.empty(axes * (count // 2) + 1, np.int64)
    members = np.empty(axes * count, np.int32)
    follows = np.empty(count, np.bool_)
    length = np.empty(count, np.int32)
    chains: Any = np.int64(0)
    position: Any = np.int64(0)
    for j in range(axes):
        line = following[j]
        follows[:] = False
        for v in range(count):
            if line[v] >= 0:
                follows[line[v]] = True
        slots = np.zeros(_LENGTHS + 2, np.int64)
        places = np.zeros(_LENGTHS + 2, np.int64)
        for v in range(count):
            length[v] = 0
            if line[v] >= 0 and not follows[v]:
                steps, at = 1, line[v]
                while at >= 0:
                    steps, at = steps + 1, line[at]
                length[v] = steps
                slots[min(steps, _LENGTHS) + 1] += 1
                places[min(steps, _LENGTHS) + 1] += steps
        slots = np.cumsum(slots) + chains
        places = np.cumsum(places) + position
        for v in range(count):
            if length[v] > 0:
                kind = min(length[v], _LENGTHS)
                starts[slots[kind]] = places[kind]
                slots[kind] += 1
                at = v
                while at >= 0:
                    members[places[kind]] = at
                    places[kind] += 1
                    at = line[at]
        chains = slots[_LENGTHS]
        position = places[_LENGTHS]
        first_chain[j + 1] = chains
    starts[chains] = position
    return first_chain, starts[: chains + 1].copy(), members[:position].copy()


@kernel
def group_pixels(simplex_of: Any, weights: Any, places: Any, count: int, longest: int) -> Any:
    """Sort pixels by simplex into segments of at most `longest` pixels.

    Args:
        simplex_of: int32 [N].
        weights: Barycentric weights, float32 [N, d + 1].
        places: The place of each pixel in the caller's arrays, int32 [N].
        count: Number of simplices.
        longest: Longest segment.

    Returns:
        starts int64 [segments + 1]; each segment's simplex int64; each sorted pixel's place in
        the caller's order int32 [N]; the weights in sorted order, flat float32.
    """
    n, corners = weights.shape
    population = np.zeros(count, np.int64)
    for pixel in range(n):
        population[simplex_of[pixel]] += 1
    # Segments of equal length stand together: a loop over a segment then ends where the branch
    # predictor expects it, which halves the time of splatting and slicing.
    first = np.zeros(_LENGTHS + 2, np.int64)
    segments = 0
    for each in range(count):
        first[min(population[each], _LENGTHS) + 1] += 1
        segments += (population[each] + longest - 1) // longest
    first = np.cumsum(first)
    sequence = np.empty(count, np.int64)
    for each in range(count):
        length = min(population[each], _LENGTHS)
        sequence[first[length]] = each
        first[length] += 1
    starts = np.empty(segments + 1, np.int64)
    owner = np.empty(segments, np.int64)
    free = np.empty(count, np.int64)
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
    link = np.empty(n, np.int32)
    grouped = np.empty(n * corners, np.float32)
    for pixel in range(n):
        slot = free[simplex_of[pixel]]
        free[simplex_of[pixel]] = slot + 1
        link[slot] = places[pixel]
        for j in range(corners):
            grouped[slot * corners + j] = weights[pixel, j]
    return starts, owner, link, grouped


@kernel
def normalize(weights: Any, link: Any, total: Any, factor: Any) -> None:
    """Multiply every pixel's weights by `factor / sqrt(total)`, `total` in the caller's order."""
    corners = weights.size // link.size
    for p in range(link.size):
        share = factor / np.sqrt(total[link[p]] + np.float32(1e-20))
        for j in range(corners):
            weights[p * corners + j] *= share
