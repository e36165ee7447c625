"""The two kernels of one image's CRF: a spatial and a bilateral lattice, and their weights."""

# N: pixels; L: lanes, the padded number of channels filtered together.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from latticecrf.checks import Float32Array
from latticecrf.lattice.lattice import Lattice, build_lattice, in_own_order
from latticecrf.lattice.spatial import spatial_lattice
from latticecrf.parameters import CrfParameters
from latticecrf.simd.aligned import aligned

# Rows up to this many lanes are added to where they lie, which saves an array of messages.
_NARROW = 8
# Vertices in a step of the bilateral lattice's sweep. Its chains are short, and cutting them costs
# more than a ring somewhat larger than the cache.
_BATCH = 12288


class FilterBank:
    """The lattices that take part, each built once and applied together.

    Pixels are kept in the order of one of them, the home: it filters in place. The other one
    filters into an array of its own order, whose rows are added on the way; or, where it is small
    and rows are narrow, splats first and adds its results last. Both give the same bytes.

    Attributes:
        places: The place of each pixel in every packed array, int32 [N].

    Raises:
        ValueError: A standard deviation is too small for the image, see `build_lattice`.
    """

    def __init__(self, image_HW3: npt.NDArray[np.uint8], parameters: CrfParameters) -> None:
        # A private copy: kernels are compiled for contiguous, writable arrays only.
        image = np.array(image_HW3, order="C")
        height, width = image.shape[:2]
        self.places = np.arange(height * width, dtype=np.int32)
        self._mate = np.empty(0, np.int32)
        self._home: tuple[Lattice, float] | None = None
        self._other: tuple[Lattice, float] | None = None
        if parameters.iterations == 0:
            return
        if parameters.gaussian_weight > 0.0:
            self.places, spatial = spatial_lattice(height, width, parameters.gaussian_sigma)
            self._home = (spatial, parameters.gaussian_weight)
        if parameters.bilateral_weight > 0.0:
            bilateral = build_lattice(
                image,
                parameters.bilateral_sigma,
                parameters.bilateral_color_sigma,
                self.places,
                _BATCH,
            )
            if self._home is None:
                self.places, bilateral = in_own_order(bilateral)
                self._home = (bilateral, parameters.bilateral_weight)
            else:
                self._mate = np.empty_like(self.places)
                self._mate[bilateral.link] = np.arange(self.places.size, dtype=np.int32)
                self._other = (bilateral, parameters.bilateral_weight)

    def mass(self) -> Float32Array:
        """The weighted message of a label that is certain everywhere, packed, float32 [N]."""
        total = np.zeros(self.places.size, np.float32)
        if self._home:
            total += np.float32(self._home[1]) * self._home[0].mass
        if self._other:
            total += np.float32(self._other[1]) * self._other[0].mass[self._mate]
        return total

    def scratch(self, lanes: int) -> Scratch:
        """Working memory for `apply`."""
        empty = np.empty(0, np.float32)
        return Scratch(
            home=self._home[0].scratch(lanes) if self._home else empty,
            other=self._other[0].scratch(lanes) if self._other else empty,
            message=aligned(self.places.size * lanes) if self._other else empty,
        )

    def apply(
        self,
        rows: Float32Array,
        lanes: int,
        factor: float,
        scratch: Scratch,
    ) -> None:
        """Replace N rows by the sum over the lattices of `factor * weight` times the filtered."""
        if self._home is None:
            rows[:] = 0.0
            return
        lattice, weight = self._home
        message, mate = scratch.message, self._mate
        waiting = None
        if self._other:
            other, other_weight = self._other
            if other.steps == 1 and lanes <= _NARROW:
                # The values of so few vertices can wait in the cache.
                waiting, message, mate = other, message[:0], mate[:0]
                other.spread(lanes, rows, scratch.other)
            else:
                other.filter_apart(lanes, rows, factor * other_weight, scratch.other, message)
        lattice.filter_in_place(lanes, rows, factor * weight, scratch.home, message, mate)
        if waiting:
            waiting.collect(lanes, factor * other_weight, scratch.other, rows)


class Scratch(NamedTuple):
    """Working memory of both lattices, and the rows that pass from one to the other."""

    home: Float32Array
    other: Float32Array
    message: Float32Array
