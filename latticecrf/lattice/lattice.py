"""The permutohedral lattice of one image, and Gaussian filtering through it.

The filter is `K = a W B W^T`: W holds the barycentric weights, B blurs along the d + 1 axes, and
`a = 1 / (1 + 2^-d)`. With `D = K 1` it is normalized to `D^-1/2 K D^-1/2`, or as `Normalization`
says. What normalizes, and the square root of `a`, are folded into the weights once, so filtering is
splat, blur and slice and nothing else.
"""

# N: pixels; d: feature dimensions; S: simplices; M: vertices; T: steps.

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from latticecrf.checks import Float32Array
from latticecrf.lattice.features import Features
from latticecrf.lattice.filtering import collect, filter_apart, filter_in_place, spread
from latticecrf.lattice.placing import place_pixels
from latticecrf.lattice.sweep import (
    CARRY,
    chain_pieces,
    corner_slots,
    cut_steps,
    first_steps,
    ring_slots,
    schedule,
)
from latticecrf.lattice.vertices import group_pixels, scale_weights
from latticecrf.simd.aligned import aligned

Normalization = Literal["none", "before", "after", "symmetric"]

# Long segments are cut, so that a large flat area is summed in parts.
_LONGEST_SEGMENT = 256
# Vertices in a step of a sweep, and the largest lattice that is filtered in one step: the rows of
# 16 channels, or those of one channel, then fit the second-level cache.
_BATCH = 4096
# The same in more than two dimensions. Chains are short there, and cutting them costs more than a
# ring somewhat larger than the cache.
_BATCH_OF_SHORT_CHAINS = 12288
_WHOLE = 32768


@dataclass(frozen=True)
class Lattice:
    """A lattice with its pixels sorted by simplex, in the order of its sweep.

    Attributes:
        plan: What the kernels read: the schedule int64 [T, 8], see `schedule`; the ring's number of
            rows; the first sorted pixel of each segment (pixels of one simplex), int64
            [segments + 1]; the ring slots of each segment's d + 1 vertices, flat int32; normalized
            barycentric weights in sorted order, flat float32 [N * (d + 1)], those that splat and
            those that slice, one array if they are equal; the starts and slots of `chain_pieces`.
        link: Place of each sorted pixel in the order of the caller's arrays, int32 [N].
        vertices: M.
        rows: Rows of working memory.
        axes: d + 1.
        mass: The filter applied to ones, in sorted order, float32 [N].
    """

    plan: tuple[
        npt.NDArray[np.int64],
        int,
        npt.NDArray[np.int64],
        npt.NDArray[np.int32],
        Float32Array,
        Float32Array,
        npt.NDArray[np.int64],
        npt.NDArray[np.int32],
    ]
    link: npt.NDArray[np.int32]
    vertices: int
    rows: int
    axes: int
    mass: Float32Array

    def scratch(self, lanes: int) -> Float32Array:
        """Working memory for filtering `lanes` channels."""
        return aligned(self.rows * lanes)

    def filter_apart(
        self,
        lanes: int,
        source: Float32Array,
        factor: float,
        scratch: Float32Array,
        target: Float32Array,
    ) -> None:
        """Filter the pixel rows of `source` into `target`.

        The source is in the caller's order, the target in the lattice's.
        """
        filter_apart(
            (0,) * lanes,
            (0,) * self.axes,
            self.plan,
            self.link,
            source,
            np.float32(factor),
            scratch,
            target,
        )

    @property
    def steps(self) -> int:
        """How many steps the lattice is filtered in."""
        return len(self.plan[0])

    def spread(self, lanes: int, source: Float32Array, scratch: Float32Array) -> None:
        """Splat the pixel rows of `source`; for a lattice of one step."""
        spread((0,) * lanes, (0,) * self.axes, self.plan, self.link, source, scratch)

    def collect(
        self, lanes: int, factor: float, scratch: Float32Array, target: Float32Array
    ) -> None:
        """Add what was spread, filtered, to the rows of `target`, in the caller's order."""
        corners = (0,) * self.axes
        collect((0,) * lanes, corners, self.plan, self.link, np.float32(factor), scratch, target)

    def filter_in_place(
        self,
        lanes: int,
        rows: Float32Array,
        factor: float,
        scratch: Float32Array,
        extra: Float32Array,
        mate: npt.NDArray[np.int32],
    ) -> None:
        """Filter rows that are in the lattice's order.

        Row `mate[p]` of `extra` is added to row p; an empty `mate` adds nothing.
        """
        filter_in_place(
            (0,) * lanes,
            (0,) * self.axes,
            self.plan,
            rows,
            np.float32(factor),
            scratch,
            extra,
            mate,
        )


def build_lattice(
    features: Features,
    places: npt.NDArray[np.int32],
    normalization: Normalization = "symmetric",
    batch: int | None = None,
    whole: int = _WHOLE,
) -> Lattice:
    """Build the lattice of some pixels.

    Args:
        features: What tells the pixels apart.
        places: The place of each pixel in the caller's arrays, int32 [N].
        normalization: What the filter multiplies before and after.
        batch: See `cut_steps`; None for what is fast.
        whole: The largest lattice that is filtered in one step, vertices.

    Raises:
        ValueError: A standard deviation is so small that float32 cannot place the pixels.
    """
    weights, simplex_of, simplices, following, levels = place_pixels(features, whole)
    axes, vertices = following.shape
    if batch is None:
        batch = _BATCH if features.dimensions <= 2 else _BATCH_OF_SHORT_CHAINS
    steps = cut_steps(levels, axes - 1, batch)
    piece_starts, slots, pieces, carries = chain_pieces(following, levels, steps.ends, steps.ring)
    # Large images: what is done with goes before the next arrays come.
    del following
    step_of = first_steps(simplices, levels, steps.ends)
    starts, owner, link, grouped, segments = group_pixels(
        simplex_of, weights, places, step_of, len(steps.ends), _LONGEST_SEGMENT
    )
    del weights, simplex_of
    lattice = Lattice(
        plan=(
            schedule(steps, segments, pieces),
            steps.ring,
            starts,
            corner_slots(simplices, owner, ring_slots(vertices, steps.ring)),
            grouped,
            grouped if normalization == "symmetric" else grouped.copy(),
            piece_starts,
            slots,
        ),
        link=link,
        vertices=vertices,
        rows=steps.ring + CARRY + carries,
        axes=axes,
        mass=np.empty(link.size, np.float32),
    )
    _normalize_weights(lattice, 1.0 / (1.0 + 2.0 ** (1 - axes)), normalization)
    return lattice


def in_own_order(lattice: Lattice) -> tuple[npt.NDArray[np.int32], Lattice]:
    """The place of each raster pixel in the lattice's order, int32 [N], and the lattice for it.

    Args:
        lattice: A lattice whose `link` refers to raster order.
    """
    raster = np.arange(lattice.link.size, dtype=np.int32)
    places = np.empty_like(raster)
    places[lattice.link] = raster
    return places, replace(lattice, link=raster)


def _normalize_weights(lattice: Lattice, attenuation: float, normalization: Normalization) -> None:
    """Fold the normalization and the root of the attenuation into the weights; fill in `mass`."""
    _filter_ones(lattice, attenuation)
    root = np.float32(math.sqrt(attenuation))
    splatting, slicing = lattice.plan[4:6]
    if normalization == "symmetric":
        scale_weights(splatting, lattice.mass, root, False)
    else:
        ones = np.ones_like(lattice.mass)
        before, after = normalization == "before", normalization == "after"
        scale_weights(splatting, lattice.mass if before else ones, root, True)
        scale_weights(slicing, lattice.mass if after else ones, root, True)
    _filter_ones(lattice, 1.0)


def _filter_ones(lattice: Lattice, factor: float) -> None:
    """Make `mass` what the weights as they are make of ones."""
    mass = lattice.mass
    mass[:] = 1.0
    lattice.filter_in_place(1, mass, factor, lattice.scratch(1), mass[:0], lattice.link[:0])
