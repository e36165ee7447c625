"""Numbering for lattices whose keys, by what coordinates may occur, do not fit 64 bits.

Features of six to eight dimensions come here at common standard deviations; images of three
channels only at deviations far below a pixel or a grey level, or of hundreds of megapixels. Keys
are made of the coordinates that do occur; slower than in `vertices`, never wrong.
"""

# N: pixels; S: simplices; M: vertices; d: feature dimensions.

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Int32Array = npt.NDArray[np.int32]
Int64Array = npt.NDArray[np.int64]
Int8Array = npt.NDArray[np.int8]
Columns = Sequence[npt.NDArray[np.integer[Any]]]

_KEY_LIMIT = 2**62


class _Rows:
    """Rows of integers, numbered in lexicographic order.

    A row's key is a mixed-radix number. Where the next digit does not fit, the number of the
    digits so far takes their place.

    Args:
        columns: Integers [n], at least one row.

    Attributes:
        numbers: The number of each row, int64 [n].
        first: The first row of each number, int64.
    """

    def __init__(self, columns: Columns) -> None:
        self._digits: list[tuple[int, int, Int64Array | None]] = []
        keys, size = np.zeros(1, np.int64), 1
        for column in columns:
            # Rows one step away have keys, too.
            low, span, known = int(column.min()) - 1, int(np.ptp(column)) + 3, None
            if size * span > _KEY_LIMIT:
                known, keys = np.unique(keys, return_inverse=True)
                size = len(known)
            keys = keys * span + (column - low)
            size *= span
            self._digits.append((low, span, known))
        self._known, self.first, self.numbers = np.unique(
            keys, return_index=True, return_inverse=True
        )

    def find(self, columns: Columns) -> Int64Array:
        """The numbers of rows at most one step away from others, int64; -1 where a row is new."""
        keys = np.zeros(1, np.int64)
        for (low, span, known), column in zip(self._digits, columns, strict=True):
            if known is not None:
                keys = _positions(known, keys)
            # What is below 0 stays there.
            keys = keys * span + (column - low)
        return _positions(self._known, keys)


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
    rows = _Rows([*corner[:pixels].T, *rank[:pixels].T])
    count = len(rows.first)
    corner[:count] = corner[rows.first]
    rank[:count] = rank[rows.first]
    return rows.numbers.astype(np.int32), corner, rank, count


def number_wide_vertices(
    corner: Int32Array, rank: Int8Array
) -> tuple[Int32Array, Int32Array, Int32Array]:
    """Number the vertices of every simplex and link them along the axes.

    Returns:
        simplices int32 [S, d + 1]; the next vertex along each axis, int32 [d + 1, M], -1 where
        there is none; the vertices' last coordinates, int32 [M].
    """
    count, d = corner.shape
    # All coordinates of a vertex leave the same remainder when divided by d + 1.
    remainder = np.tile(np.arange(d + 1, dtype=np.int32), count)
    wraps = rank[:, None, :d] > d - np.arange(d + 1)[:, None]
    quotients = (corner[:, None, :] - wraps).reshape(-1, d).T
    rows = _Rows([quotients[0], remainder, *quotients[1:]])
    simplices = rows.numbers.reshape(count, d + 1).astype(np.int32)
    remainder, quotients = remainder[rows.first], quotients[:, rows.first]
    # The coordinates of a vertex sum to zero.
    height = -(d * remainder + (d + 1) * quotients.sum(axis=0, dtype=np.int32))
    # A step takes 1 from every coordinate but that of its axis, which gains d.
    quotients -= remainder == 0
    remainder = (remainder - 1) % (d + 1)
    following = np.empty((d + 1, len(height)), np.int32)
    for axis in range(d + 1):
        gains = quotients[axis : axis + 1]  # the last coordinate is no column
        gains += 1
        following[axis] = rows.find([quotients[0], remainder, *quotients[1:]])
        gains -= 1
    return simplices, following, height


def renumber_wide(
    position: Int32Array, simplices: Int32Array, following: Int32Array
) -> tuple[Int32Array, Int32Array]:
    """Simplices and links under the new vertex numbers, see `sort_vertices`."""
    moved = np.empty_like(following)
    moved[:, position] = np.where(following >= 0, position[following], -1)
    return position[simplices], moved


def _positions(known: Int64Array, wanted: Int64Array) -> Int64Array:
    """Where each wanted key stands among the sorted, distinct `known`; -1 where it is absent."""
    found = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
    found[known[found] != wanted] = -1
    return found
