"""The Gaussian kernels of one image's CRF: a lattice each, filtered together."""

# N: pixels; L: lanes, the padded number of channels filtered together.

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from latticecrf.checks import Float32Array
from latticecrf.lattice.features import Features
from latticecrf.lattice.filtering import add_rows, add_scaled
from latticecrf.lattice.lattice import Lattice, Normalization, build_lattice, in_own_order
from latticecrf.lattice.spatial import spatial_lattice
from latticecrf.simd.aligned import aligned

# Rows up to this many lanes are added to where they lie, which saves an array of messages.
_NARROW = 8


class Gaussian(NamedTuple):
    """One Gaussian kernel between the pixels.

    Attributes:
        features: What tells the pixels apart.
        normalization: How its filter is normalized, see `build_lattice`.
    """

    features: Features
    normalization: Normalization = "symmetric"


class FilterBank:
    """The lattices of some kernels, each built once and applied together.

    Pixels are kept in the order of the first kernel's lattice, the home: it filters in place. Each
    other one filters into an array of its own order, whose rows are added; or, where it is small
    and rows are narrow, splats first and adds its results last. Both give the same bytes.

    Args:
        kernels: The kernels, the one with the most vertices to a pixel last.
        pixels: N.

    Attributes:
        places: The place of each pixel in every packed array, int32 [N].

    Raises:
        ValueError: A standard deviation is too small for the image, see `build_lattice`.
    """

    def __init__(self, kernels: Sequence[Gaussian], pixels: int) -> None:
        self.places = np.arange(pixels, dtype=np.int32)
        self._lattices: list[Lattice] = []
        for kernel in kernels:
            if not self._lattices:
                self.places, lattice = _home(kernel, self.places)
            else:
                lattice = build_lattice(kernel.features, self.places, kernel.normalization)
            self._lattices.append(lattice)

    @cached_property
    def _mates(self) -> list[npt.NDArray[np.int32]]:
        """Which row of each other lattice belongs to each of the home's pixels, int32 [N]."""
        return [_inverse(lattice.link) for lattice in self._lattices[1:]]

    def mass(self, weights: Sequence[float]) -> Float32Array:
        """The weighted message of a label that is certain everywhere, packed, float32 [N].

        Args:
            weights: One for each kernel.
        """
        total = np.zeros(self.places.size, np.float32)
        for lattice, weight in zip(self._lattices, weights, strict=True):
            add_scaled(lattice.mass, np.float32(weight), lattice.link, total)
        return total

    def scratch(self, lanes: int) -> Scratch:
        """Working memory for `apply`."""
        others = self._lattices[1:]
        return Scratch(
            values=[lattice.scratch(lanes) for lattice in self._lattices],
            messages=[aligned(self.places.size * lanes) for _ in others],
        )

    def apply(
        self, rows: Float32Array, lanes: int, factors: Sequence[float], scratch: Scratch
    ) -> None:
        """Replace N rows by the sum over the kernels of `factor` times the filtered rows."""
        if not self._lattices:
            rows[:] = 0.0
            return
        home, *others = self._lattices
        messages = scratch.messages
        # The values of a small lattice's few vertices can wait in the cache.
        waits = len(others) == 1 and others[0].steps == 1 and lanes <= _NARROW
        for i, other in enumerate(others):
            values = scratch.values[i + 1]
            if waits:
                other.spread(lanes, rows, values)
            else:
                other.filter_apart(lanes, rows, factors[i + 1], values, messages[i])
        # The home adds the first of the others' messages on the way.
        added = others and not waits
        extra = messages[0] if added else rows[:0]
        mate = self._mates[0] if added else self.places[:0]
        home.filter_in_place(lanes, rows, factors[0], scratch.values[0], extra, mate)
        if waits:
            others[0].collect(lanes, factors[1], scratch.values[1], rows)
        for i in range(1, len(others)):
            add_rows((0,) * lanes, rows, messages[i], self._mates[i])

    def filter_each(
        self, rows: Float32Array, lanes: int, scratch: Scratch
    ) -> list[tuple[Float32Array, npt.NDArray[np.int32]]]:
        """The rows as each kernel filters them.

        Returns:
            For each kernel the filtered rows, flat float32 [N * L], and which of them belongs to
            each pixel in raster order, int32 [N].
        """
        found = []
        for which, lattice in enumerate(self._lattices):
            filtered = np.empty_like(rows)
            lattice.filter_apart(lanes, rows, 1.0, scratch.values[which], filtered)
            mate = self.places if which == 0 else self._mates[which - 1][self.places]
            found.append((filtered, mate))
        return found


class Scratch(NamedTuple):
    """Working memory of every lattice, and the rows that pass from the others to the home."""

    values: list[Float32Array]
    messages: list[Float32Array]


def _home(kernel: Gaussian, raster: npt.NDArray[np.int32]) -> tuple[npt.NDArray[np.int32], Lattice]:
    """The order of a kernel's lattice, see `in_own_order`, and the lattice."""
    if kernel.features.is_grid:
        return spatial_lattice(kernel.features, kernel.normalization)
    return in_own_order(build_lattice(kernel.features, raster, kernel.normalization))


def _inverse(link: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    inverse = np.empty_like(link)
    inverse[link] = np.arange(link.size, dtype=np.int32)
    return inverse
