"""Kernels that filter: splat pixels onto vertices, blur along the axes, slice back.

Values are channels-last: vertex v's row is `values[v * L : (v + 1) * L]`. Weights carry the
normalization.
"""

# L: lanes, the padded number of channels; M: vertices; d: feature dimensions.

from __future__ import annotations

from typing import Any

import numpy as np

from pmm_ray.method.crf.cache import kernel
from pmm_ray.method.crf.simd import row_add, row_load, row_scale, row_store, row_zero
from pmm_ray.method.crf.simd_corners import (
    corners_add_to,
    corners_collect,
    corners_load,
    corners_mix,
    corners_zero,
)


@kernel
def splat(
    lanes: Any,
    corners: Any,
    starts: Any,
    simplices: Any,
    weights: Any,
    link: Any,
    source: Any,
    offset: int,
    values: Any,
) -> None:
    """Set `values` to the weighted sums of the rows `source[link[p] * len(lanes) + offset]`."""
    values[:] = np.float32(0.0)
    count = len(corners)
    for segment in range(starts.size - 1):
        total = corners_zero(corners, lanes)
        for p in range(starts[segment], starts[segment + 1]):
            row = row_load(lanes, source, link[p] * len(lanes) + offset)
            total = corners_collect(total, weights, p * count, row)
        corners_add_to(total, values, simplices, segment * count)


@kernel
def blur(lanes: Any, first_chain: Any, starts: Any, members: Any, values: Any) -> None:
    """Blur by [1/2, 1, 1/2] along every axis in turn, in place.

    Walking along a chain reads and writes every row once, and rows outside chains not at all.
    """
    width = len(lanes)
    for chain in range(first_chain[-1]):
        before = row_zero(lanes)
        at = np.int64(members[starts[chain]]) * width
        here = row_load(lanes, values, at)
        for i in range(starts[chain] + 1, starts[chain + 1]):
            next_at = np.int64(members[i]) * width
            after = row_load(lanes, values, next_at)
            around = row_scale(row_add(before, after), np.float32(0.5))
            row_store(values, at, row_add(here, around))
            before, here, at = here, after, next_at
        row_store(values, at, row_add(here, row_scale(before, np.float32(0.5))))


@kernel
def slice_to(
    lanes: Any,
    corners: Any,
    starts: Any,
    simplices: Any,
    weights: Any,
    link: Any,
    values: Any,
    target: Any,
    offset: int,
    factor: Any,
    add: bool,
) -> None:
    """Read `factor` times the filtered rows back; `add` adds them to the target."""
    count = len(corners)
    for segment in range(starts.size - 1):
        vertices = corners_load(corners, lanes, values, simplices, segment * count)
        for p in range(starts[segment], starts[segment + 1]):
            row = row_scale(corners_mix(vertices, weights, p * count), factor)
            at = link[p] * len(lanes) + offset
            if add:
                row = row_add(row, row_load(lanes, target, at))
            row_store(target, at, row)
