"""Kernels that filter: splat pixels onto vertices, blur along the axes, slice back.

Values are channels-last: vertex v's row is `values[v * L : (v + 1) * L]`. Weights carry the
normalization. `plan` holds the arrays of a lattice, see `Lattice.plan`.
"""

# L: lanes, the padded number of channels; d: feature dimensions.

from __future__ import annotations

from typing import Any

import numpy as np

from latticecrf.kernels.cache import kernel
from latticecrf.lattice.sweep import BLUR, CLEAR, SLICE, SPLAT, ZERO
from latticecrf.simd.corners import (
    corners_add_to,
    corners_collect,
    corners_load,
    corners_mix,
    corners_zero,
)
from latticecrf.simd.rows import (
    row_add,
    row_load,
    row_prefetch,
    row_scale,
    row_store,
    row_zero,
)

# How many pixels ahead a row that lies anywhere is asked for, where rows are long.
_AHEAD = 48
_LONG = 8


@kernel
def _clear(lanes: Any, ring: int, first: int, last: int, values: Any) -> None:
    """Zero the ring's rows of vertices `first` to `last`."""
    begin = first % ring
    before_wrap = min(last - first, ring - begin)
    for row in range(begin, begin + before_wrap):
        row_store(values, row, row_zero(lanes))
    for row in range(last - first - before_wrap):
        row_store(values, row, row_zero(lanes))


@kernel
def _splat(
    lanes: Any, corners: Any, plan: Any, first: int, last: int, source: Any, values: Any
) -> None:
    """Add the weighted rows of contiguous pixels to their vertices."""
    _, _, starts, simplices, weights, _, _, _ = plan
    count = len(corners)
    for segment in range(first, last):
        total = corners_zero(corners, lanes)
        for p in range(starts[segment], starts[segment + 1]):
            row = row_load(lanes, source, p)
            total = corners_collect(total, weights, p * count, row)
        corners_add_to(total, values, simplices, segment * count)


@kernel
def _gather(
    lanes: Any,
    corners: Any,
    plan: Any,
    first: int,
    last: int,
    link: Any,
    source: Any,
    values: Any,
) -> None:
    """Add the weighted rows `source[link[p]]` to their vertices."""
    _, _, starts, simplices, weights, _, _, _ = plan
    count, width = len(corners), len(lanes)
    for segment in range(first, last):
        total = corners_zero(corners, lanes)
        for p in range(starts[segment], starts[segment + 1]):
            if width >= _LONG:
                ahead = min(p + _AHEAD, link.size - 1)
                row_prefetch(lanes, source, np.int64(link[ahead]))
            row = row_load(lanes, source, np.int64(link[p]))
            total = corners_collect(total, weights, p * count, row)
        corners_add_to(total, values, simplices, segment * count)


@kernel
def _blur(lanes: Any, plan: Any, first: int, last: int, values: Any) -> None:
    """Blur pieces of chains by [1/2, 1, 1/2], in place: every row is read and written once."""
    _, _, _, _, _, _, starts, slots = plan
    for piece in range(first, last):
        begin, end = starts[piece], starts[piece + 1]
        before = row_load(lanes, values, np.int64(slots[begin]))
        at = np.int64(slots[begin + 1])
        here = row_load(lanes, values, at)
        for i in range(begin + 2, end - 1):
            next_at = np.int64(slots[i])
            after = row_load(lanes, values, next_at)
            around = row_scale(row_add(before, after), np.float32(0.5))
            row_store(values, at, row_add(here, around))
            before, here, at = here, after, next_at
        row_store(values, np.int64(slots[end - 1]), before)


@kernel
def filter_apart(
    lanes: Any,
    corners: Any,
    plan: Any,
    link: Any,
    source: Any,
    factor: Any,
    values: Any,
    target: Any,
) -> None:
    """Filter rows that lie in another order.

    Args:
        lanes, corners: Tuples of length L and d + 1.
        plan: The lattice.
        link: Place of each of the lattice's pixels among the rows of `source`, int32 [N].
        source: Rows, flat float32 [N * L].
        factor: Multiplies the result, float32.
        values: Working memory, flat float32.
        target: Receives the rows in the lattice's order, flat float32 [N * L].
    """
    jobs, ring, starts, simplices, _, weights, _, _ = plan
    count = len(corners)
    row_store(values, ring + ZERO, row_zero(lanes))
    for step in range(jobs.shape[0]):
        job = jobs[step]
        _clear(lanes, ring, job[CLEAR], job[CLEAR + 1], values)
        _gather(lanes, corners, plan, job[SPLAT], job[SPLAT + 1], link, source, values)
        _blur(lanes, plan, job[BLUR], job[BLUR + 1], values)
        for segment in range(job[SLICE], job[SLICE + 1]):
            vertices = corners_load(corners, lanes, values, simplices, segment * count)
            for p in range(starts[segment], starts[segment + 1]):
                row = row_scale(corners_mix(vertices, weights, p * count), factor)
                row_store(target, p, row)


@kernel
def spread(lanes: Any, corners: Any, plan: Any, link: Any, source: Any, values: Any) -> None:
    """The first half of `filter_apart`, for a lattice that is filtered in one step."""
    jobs, ring, _, _, _, _, _, _ = plan
    row_store(values, ring + ZERO, row_zero(lanes))
    _clear(lanes, ring, 0, ring, values)
    _gather(lanes, corners, plan, 0, jobs[0, SPLAT + 1], link, source, values)


@kernel
def collect(
    lanes: Any, corners: Any, plan: Any, link: Any, factor: Any, values: Any, target: Any
) -> None:
    """The second half of `filter_apart`: what was spread is filtered and added to `target`.

    Row `link[p]` of `target` receives pixel p's result.
    """
    jobs, _, starts, simplices, _, weights, _, _ = plan
    count = len(corners)
    _blur(lanes, plan, 0, jobs[0, BLUR + 1], values)
    for segment in range(jobs[0, SLICE + 1]):
        vertices = corners_load(corners, lanes, values, simplices, segment * count)
        for p in range(starts[segment], starts[segment + 1]):
            at = np.int64(link[p])
            row = row_scale(corners_mix(vertices, weights, p * count), factor)
            row_store(target, at, row_add(row_load(lanes, target, at), row))


@kernel
def filter_in_place(
    lanes: Any,
    corners: Any,
    plan: Any,
    rows: Any,
    factor: Any,
    values: Any,
    extra: Any,
    mate: Any,
) -> None:
    """Replace rows, which lie in the lattice's own order, by `factor` times the filtered ones.

    Args:
        lanes, corners, plan, values: See `filter_apart`.
        rows: Flat float32 [N * L].
        extra: Rows to add, flat float32.
        mate: Which of them belongs to each pixel, int32 [N]; empty to add nothing.
    """
    jobs, ring, starts, simplices, _, weights, _, _ = plan
    count = len(corners)
    row_store(values, ring + ZERO, row_zero(lanes))
    for step in range(jobs.shape[0]):
        job = jobs[step]
        _clear(lanes, ring, job[CLEAR], job[CLEAR + 1], values)
        _splat(lanes, corners, plan, job[SPLAT], job[SPLAT + 1], rows, values)
        _blur(lanes, plan, job[BLUR], job[BLUR + 1], values)
        for segment in range(job[SLICE], job[SLICE + 1]):
            vertices = corners_load(corners, lanes, values, simplices, segment * count)
            for p in range(starts[segment], starts[segment + 1]):
                row = row_scale(corners_mix(vertices, weights, p * count), factor)
                if mate.size > 0:
                    if len(lanes) >= _LONG:
                        ahead = min(p + _AHEAD, mate.size - 1)
                        row_prefetch(lanes, extra, np.int64(mate[ahead]))
                    row = row_add(row, row_load(lanes, extra, np.int64(mate[p])))
                row_store(rows, p, row)


@kernel
def add_rows(lanes: Any, rows: Any, extra: Any, mate: Any) -> None:
    """Add row `mate[p]` of `extra` to row p."""
    for p in range(mate.size):
        row = row_load(lanes, extra, np.int64(mate[p]))
        row_store(rows, p, row_add(row_load(lanes, rows, p), row))


@kernel
def add_scaled(source: Any, weight: Any, link: Any, target: Any) -> None:
    """Add `weight * source[p]` to entry `link[p]` of `target`; float32 [N]."""
    for p in range(link.size):
        target[link[p]] += weight * source[p]
