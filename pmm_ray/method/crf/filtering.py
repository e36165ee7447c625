"""Kernels that filter: splat pixels onto vertices, blur along the axes, slice back.

Values are channels-last: vertex v's row is `values[v * L : (v + 1) * L]`, and the last row, that
of vertex M, stays zero to stand for missing neighbours. Weights carry the normalization.
"""

# L: lanes, the padded number of channels; M: vertices; d: feature dimensions.

from __future__ import annotations

from typing import Any

import numpy as np

from pmm_ray.method.crf.cache import kernel
from pmm_ray.method.crf.simd import (
    corners_add_to,
    corners_collect,
    corners_load,
    corners_mix,
    corners_zero,
    row_add,
    row_load,
    row_scale,
    row_store,
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
    stride: int,
    offset: int,
    values: Any,
) -> None:
    """Set `values` to the weighted sums of the rows `source[link[p] * stride + offset]`."""
    values[:] = np.float32(0.0)
    count = len(corners)
    for segment in range(starts.size - 1):
        total = corners_zero(corners, lanes)
        for p in range(starts[segment], starts[segment + 1]):
            row = row_load(lanes, source, link[p] * stride + offset)
            total = corners_collect(total, weights, p * count, row)
        corners_add_to(total, values, simplices, segment * count)


@kernel
def blur(lanes: Any, neighbours: Any, scale: Any, values: Any, spare: Any) -> None:
    """Blur by [1/2, 1, 1/2] along every axis in turn; the last axis also multiplies by `scale`.

    `values` and `spare` swap roles at every axis: after an even number of axes (d odd) the
    result is in `values`, else in `spare`.
    """
    width = len(lanes)
    axes, count = neighbours.shape[0], neighbours.shape[1]
    for j in range(axes):
        own = np.float32(1.0) if j < axes - 1 else scale
        half = np.float32(0.5) * own
        axis = neighbours[j]
        for v in range(count):
            first = row_load(lanes, values, np.int64(axis[v, 0]) * width)
            second = row_load(lanes, values, np.int64(axis[v, 1]) * width)
            centre = row_scale(row_load(lanes, values, v * width), own)
            row_store(spare, v * width, row_add(centre, row_scale(row_add(first, second), half)))
        values, spare = spare, values


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
    stride: int,
    offset: int,
    add: bool,
) -> None:
    """Read the filtered rows back; `add` adds them to the target instead of replacing it."""
    count = len(corners)
    for segment in range(starts.size - 1):
        vertices = corners_load(corners, lanes, values, simplices, segment * count)
        for p in range(starts[segment], starts[segment + 1]):
            row = corners_mix(vertices, weights, p * count)
            at = link[p] * stride + offset
            if add:
                row = row_add(row, row_load(lanes, target, at))
            row_store(target, at, row)
