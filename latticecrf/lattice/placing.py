"""Where the pixels of an image lie in the permutohedral lattice, and its vertices."""

# N: pixels; d: feature dimensions; S: simplices; M: vertices.

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from latticecrf.checks import Float32Array
from latticecrf.lattice.embedding import embed
from latticecrf.lattice.features import Features
from latticecrf.lattice.vertices import (
    link_vertices,
    number_vertices,
    renumber,
    sort_vertices,
)
from latticecrf.lattice.wide import merge_simplices, number_wide_vertices, renumber_wide
from latticecrf.simd.rows import WIDE

# Keys stay below this, so that one lattice step never overflows 64 bits.
_KEY_LIMIT = 2**62
# Beyond it float32 no longer resolves a pixel's place inside a simplex.
_COORDINATE_LIMIT = 2.0**20


class Placement(NamedTuple):
    """Pixels in simplices, simplices on vertices, vertices in a row.

    Attributes:
        weights: Barycentric weights of each pixel, float32 [d + 1, N and a few more].
        simplex_of: The simplex of each pixel, int32 [N].
        simplices: The vertices of each simplex, int32 [S, d + 1].
        following: The next vertex along each axis, int32 [d + 1, M], -1 where there is none.
        levels: First vertex of each level and M, see `sort_vertices`; int64 [levels + 1].
    """

    weights: Float32Array
    simplex_of: npt.NDArray[np.int32]
    simplices: npt.NDArray[np.int32]
    following: npt.NDArray[np.int32]
    levels: npt.NDArray[np.int64]


def place_pixels(features: Features, whole: int) -> Placement:
    """Place every pixel; see `build_lattice` for the arguments.

    Raises:
        ValueError: A standard deviation is so small that float32 cannot place the pixels.
    """
    pixels, d = features.pixels, features.dimensions
    spread = float(np.float32(math.sqrt(2.0 / 3.0) * (d + 1)))
    scale = np.array([1 / math.sqrt((i + 1) * (i + 2)) * spread for i in range(d)], np.float32)
    low, span = _corner_range(*features.ranges(), scale)

    orders = (d + 1) ** d
    packed = math.prod(span) * orders < _KEY_LIMIT
    # A vertex lies within one simplex of the corner, a neighbour within one more.
    vertex_low = [(d + 1) * (value - 2) for value in low]
    vertex_span = [(d + 1) * (value + 4) for value in span]
    packed = packed and math.prod(vertex_span) < _KEY_LIMIT

    weights = np.empty((d + 1, pixels + len(WIDE) - 1), np.float32)
    simplex_of = np.empty(pixels, np.int32)
    corner = np.empty((pixels + 1, d), np.int32)
    rank = np.empty((pixels + 1, d + 1), np.int8)
    count = embed(
        WIDE,
        (0,) * d,
        tuple(features),
        scale,
        _radix(span, orders) if packed else np.zeros(d, np.int64),
        np.array(low, np.int32),
        weights,
        simplex_of,
        corner,
        rank,
        packed,
    )
    if not packed:
        simplex_of, corner, rank, count = merge_simplices(corner, rank, pixels)
    if pixels % 4:
        # Kraehenbuehl's SSE code works on four pixels at a time and fills the last four up with
        # pixels at the origin. They weigh nothing, but blurring passes through their vertices.
        corner[count], rank[count] = 0, np.arange(d + 1)
        count += 1
    if packed:
        radix = _radix(vertex_span, 1)
        simplices, vertex_keys, table, height = number_vertices(
            corner[:count], rank[:count], radix, np.array(vertex_low, np.int64)
        )
        position, levels = sort_vertices(height, whole)
        if len(levels) > 2:
            vertex_keys = renumber(position, simplices, vertex_keys, table)
        following = link_vertices(vertex_keys, table, radix)
    else:
        simplices, following, height = number_wide_vertices(corner[:count], rank[:count])
        position, levels = sort_vertices(height, whole)
        simplices, following = renumber_wide(position, simplices, following)
    return Placement(weights, simplex_of, simplices, following, levels)


def _corner_range(
    least: Float32Array, most: Float32Array, scale: Float32Array
) -> tuple[list[int], list[int]]:
    """Smallest value and number of values of each corner coordinate.

    Coordinate j of an elevated point is the sum of the components from j on less j times
    component j - 1, and every component stands between its least and its most, as does 0.
    """
    d = len(scale)
    lowest, highest = ((bound * scale).astype(np.float64) for bound in (least, most))
    low, span = [], []
    for j in range(d):
        smallest = float(lowest[j:].sum()) - (j * highest[j - 1] if j else 0.0)
        largest = float(highest[j:].sum()) - (j * lowest[j - 1] if j else 0.0)
        if max(-smallest, largest) > _COORDINATE_LIMIT:
            raise ValueError(
                "the CRF's standard deviations are too small for these pixels: "
                "float32 cannot tell their places apart"
            )
        first = math.floor(smallest / (d + 1)) - 2
        low.append(first)
        span.append(math.ceil(largest / (d + 1)) + 3 - first)
    return low, span


def _radix(span: list[int], unit: int) -> npt.NDArray[np.int64]:
    """Mixed-radix place values for digits with `span` values each, the first worth `unit`."""
    radix = []
    for values in span:
        radix.append(unit)
        unit *= values
    return np.array(radix, np.int64)
