"""Numbering for lattices whose coordinates do not fit one 64-bit key.

Only standard deviations far below a pixel or a grey level, or images of hundreds of megapixels,
come here. Rows of coordinates are compared in full: slower, never wrong.
"""

# N: pixels; S: simplices; M: vertices; d: feature dimensions.

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]
Int8Array = npt.NDArray[np.int8]


def merge_simplices(
    corner: Int32Array, rank: Int8Array, pixels: int
) -> tuple[Int32Array, Int32Array, Int8Array, int]:
    """Number the distinct simplices among those of all pixels.

    Args:
        corner: Corner of each pixel's simplex, int32 [N + 1, d], the last row free.
        rank: Order of its coordinates, int8 [N + 1, d + 1], the last row free.
        pixels: N.

    Returns:
        The simplex of each pixel, int32 [N]; `corner` and `rank` with the S distinct simplices
        in front; S.
    """
    rows = np.concatenate([corner[:pixels], rank[:pixels]], axis=1)
    _, first, simplex_of = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    corner[: len(first)] = corner[first]
    rank[: len(first)] = rank[first]
    return simplex_of.ravel().astype(np.int32), corner, rank, len(first)


def number_wide_vertices(
    corner: Int32Array, rank: Int8Array
) -> tuple[Int32Array, Int32Array, Int32Array]:
    """Number the vertices of every simplex and link them along the axes.

    Returns:
        simplices int32 [S, d + 1]; the next vertex along each axis, int32 [d + 1, M], -1 where
        there is none; the vertices' last coordinates, int32 [M].
    """
    count, d = corner.shape
    remainder = np.arange(d + 1)[None, :, None]
    wraps = rank[:, None, :d] > d - remainder
    coordinates = (d + 1) * corner[:, None, :] + remainder - (d + 1) * wraps
    vertices, simplices = np.unique(coordinates.reshape(-1, d), axis=0, return_inverse=True)
    following = np.empty((d + 1, len(vertices)), np.int32)
    for axis in range(d + 1):
        step = np.full(d, -1)
        if axis < d:
            step[axis] = d
        following[axis] = _find_rows(vertices, vertices + step)
    # The coordinates of a vertex sum to zero.
    height = -vertices.sum(axis=1).astype(np.int32)
    return simplices.reshape(count, d + 1).astype(np.int32), following, height


def renumber_wide(
    position: Int32Array, simplices: Int32Array, following: Int32Array
) -> tuple[Int32Array, Int32Array]:
    """Simplices and links under the new vertex numbers, see `sort_vertices`."""
    moved = np.empty_like(following)
    moved[:, position] = np.where(following >= 0, position[following], -1)
    return position[simplices], moved


def _find_rows(rows: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]) -> Int32Array:
    """The index of each wanted row among the distinct `rows`; -1 where it is absent."""
    both = np.concatenate([rows, wanted])
    _, first = np.unique(both, axis=0, return_inverse=True)
    owner = np.full(len(both), -1, np.int32)
    numbers = first.ravel()
    owner[numbers[: len(rows)]] = np.arange(len(rows))
    return owner[numbers[len(rows) :]]
