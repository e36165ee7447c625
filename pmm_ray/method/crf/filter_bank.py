"""The two kernels of one image's CRF: a spatial and a bilateral lattice, and their weights."""

# N: pixels; L: lanes, the padded number of channels filtered together.

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from pmm_ray.method.checks import Float32Array
from pmm_ray.method.crf.lattice import Lattice, build_lattice
from pmm_ray.method.crf.parameters import CrfParameters
from pmm_ray.method.crf.spatial import spatial_lattice


class FilterBank:
    """The lattices that take part, each built once and applied together.

    Attributes:
        places: The place of each pixel in every packed array, int32 [N]: the order of the
            spatial lattice's segments.

    Raises:
        ValueError: A standard deviation is too small for the image, see `build_lattice`.
    """

    def __init__(self, image_HW3: npt.NDArray[np.uint8], parameters: CrfParameters) -> None:
        # A private copy: kernels are compiled for contiguous, writable arrays only.
        image = np.array(image_HW3, order="C")
        height, width = image.shape[:2]
        self._filters: list[tuple[Lattice, float]] = []
        self.places = np.arange(height * width, dtype=np.int32)
        if parameters.iterations == 0:
            return
        if parameters.gaussian_weight > 0.0:
            self.places, spatial = spatial_lattice(height, width, parameters.gaussian_sigma)
            self._filters.append((spatial, parameters.gaussian_weight))
        if parameters.bilateral_weight > 0.0:
            bilateral = build_lattice(
                image, parameters.bilateral_sigma, parameters.bilateral_color_sigma, self.places
            )
            self._filters.append((bilateral, parameters.bilateral_weight))

    def mass(self) -> Float32Array:
        """The weighted message of a label that is certain everywhere, packed, float32 [N]."""
        total = np.zeros(self.places.size, np.float32)
        for lattice, weight in self._filters:
            total += np.float32(weight) * lattice.mass
        return total

    def scratches(self, lanes: int) -> list[Float32Array]:
        """Working memory for `apply`."""
        return [lattice.scratch(lanes) for lattice, _ in self._filters]

    def apply(
        self,
        rows: Float32Array,
        offset: int,
        lanes: int,
        factor: float,
        scratches: list[Float32Array],
    ) -> None:
        """Replace N rows by the sum over the lattices of `factor * weight` times the filtered."""
        if not self._filters:
            rows[:] = 0.0
            return
        for (lattice, _), scratch in zip(self._filters, scratches, strict=True):
            lattice.splat(lanes, rows, offset, scratch)
        add = False
        for (lattice, weight), scratch in zip(self._filters, scratches, strict=True):
            lattice.blur_and_slice(lanes, factor * weight, scratch, rows, offset, add)
            add = True
