"""Spatial lattices depend on the image's size only: the last few are kept per process."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import numpy.typing as npt

from latticecrf.lattice.lattice import Lattice, build_lattice, in_own_order

Places = npt.NDArray[np.int32]

# VOC has a handful of common sizes. Larger images are rare, and their lattices big.
_KEPT = 4
_KEPT_PIXELS = 1_000_000

_lock = threading.Lock()
_recent: OrderedDict[tuple[int, int, float], tuple[Places, Lattice]] = OrderedDict()


def spatial_lattice(height: int, width: int, sigma: float) -> tuple[Places, Lattice]:
    """The lattice of a pixel grid and the order it keeps pixels in.

    Args:
        height: Rows.
        width: Columns.
        sigma: Standard deviation, pixels.

    Returns:
        The place of each pixel in the lattice's order, int32 [N], and the lattice, whose `link`
        refers to that order. Both are shared: never write to them.
    """
    key = (height, width, sigma)
    with _lock:
        if key in _recent:
            _recent.move_to_end(key)
            return _recent[key]
    built = _build(height, width, sigma)
    if height * width <= _KEPT_PIXELS:
        with _lock:
            _recent[key] = built
            if len(_recent) > _KEPT:
                _recent.popitem(last=False)
    return built


def _build(height: int, width: int, sigma: float) -> tuple[Places, Lattice]:
    raster = np.arange(height * width, dtype=np.int32)
    # Only the shape of the image is read, so one byte can stand for all of them.
    blank_HW3 = np.zeros((height, width, 3), np.uint8)
    return in_own_order(build_lattice(blank_HW3, sigma, None, raster))
