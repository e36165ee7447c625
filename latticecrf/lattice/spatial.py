"""Spatial lattices depend on the image's size only: the last few are kept per process."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt

from latticecrf.lattice.features import Features
from latticecrf.lattice.lattice import Lattice, Normalization, build_lattice, in_own_order

Places = npt.NDArray[np.int32]

# VOC has a handful of common sizes. Larger images are rare, and their lattices big.
_KEPT = 4
_KEPT_PIXELS = 1_000_000

_lock = threading.Lock()
_recent: OrderedDict[tuple[Any, ...], tuple[Places, Lattice]] = OrderedDict()


def spatial_lattice(
    features: Features, normalization: Normalization = "symmetric"
) -> tuple[Places, Lattice]:
    """The lattice of a pixel grid and the order it keeps pixels in.

    Args:
        features: Those of a grid.
        normalization: See `build_lattice`.

    Returns:
        The place of each pixel in the lattice's order, int32 [N], and the lattice, whose `link`
        refers to that order. Both are shared: never write to them.
    """
    key = (features.step_x.tobytes(), features.step_y.tobytes(), normalization)
    with _lock:
        if key in _recent:
            _recent.move_to_end(key)
            return _recent[key]
    raster = np.arange(features.pixels, dtype=np.int32)
    built = in_own_order(build_lattice(features, raster, normalization))
    if features.pixels <= _KEPT_PIXELS:
        with _lock:
            _recent[key] = built
            if len(_recent) > _KEPT:
                _recent.popitem(last=False)
    return built
