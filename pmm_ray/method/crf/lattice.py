"""The permutohedral lattice of one image, and Gaussian filtering through it.

The filter is `D^-1/2 K D^-1/2` with `K = a W B W^T`: W holds the barycentric weights, B blurs
along the d + 1 axes, `a = 1 / (1 + 2^-d)`, and `D = K 1`. `D^-1/2` and the square root of `a`
are folded into the weights once, so filtering is splat, blur and slice and nothing else.
"""

# H, W: image; N: pixels; d: feature dimensions, 2 or 5; S: simplices; M: vertices.

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pmm_ray.method.checks import Float32Array
from pmm_ray.method.crf.embedding import embed
from pmm_ray.method.crf.filtering import blur, slice_to, splat
from pmm_ray.method.crf.vertices import (
    chain_vertices,
    group_pixels,
    link_vertices,
    normalize,
    number_vertices,
)
from pmm_ray.method.crf.wide import merge_simplices, number_wide_vertices

# Keys stay below this, so that one lattice step never overflows 64 bits.
_KEY_LIMIT = 2**62
# Beyond it float32 no longer resolves a pixel's place inside a simplex.
_COORDINATE_LIMIT = 2.0**20
# Long segments are cut, so that a large flat area is summed in parts.
_LONGEST_SEGMENT = 256


@dataclass(frozen=True)
class Lattice:
    """A lattice with its pixels sorted by simplex.

    Attributes:
        starts: First sorted pixel of each segment (pixels of one simplex), int64 [segments + 1].
        simplices: The d + 1 vertices of each segment's simplex, flat int32.
        weights: Normalized barycentric weights in sorted order, flat float32 [N * (d + 1)].
        link: Place of each sorted pixel in the order of the caller's arrays, int32 [N].
        vertices: M.
        first_chain, chain_starts, chain_members: See `chain_vertices`.
        mass: The filter applied to ones, in the caller's order, float32 [N].
    """

    starts: npt.NDArray[np.int64]
    simplices: npt.NDArray[np.int32]
    weights: Float32Array
    link: npt.NDArray[np.int32]
    vertices: int
    first_chain: npt.NDArray[np.int64]
    chain_starts: npt.NDArray[np.int64]
    chain_members: npt.NDArray[np.int32]
    mass: Float32Array

    @property
    def corners(self) -> tuple[int, ...]:
        """d + 1 zeros: the tuple whose type tells kernels the dimension."""
        return (0,) * (self.first_chain.size - 1)

    def scratch(self, lanes: int) -> Float32Array:
        """An array for the vertices' rows of `lanes` channels."""
        return np.empty(self.vertices * lanes, np.float32)

    def splat(
        self,
        lanes: int,
        source: Float32Array,
        offset: int,
        scratch: Float32Array,
    ) -> None:
        """Spread the pixel rows of `source`, which start at `offset`, over the vertices."""
        splat(
            (0,) * lanes,
            self.corners,
            self.starts,
            self.simplices,
            self.weights,
            self.link,
            source,
            offset,
            scratch,
        )

    def blur_and_slice(
        self,
        lanes: int,
        factor: float,
        scratch: Float32Array,
        target: Float32Array,
        offset: int,
        add: bool,
    ) -> None:
        """Write `factor` times the filtered channels to the rows of `target`, or add them."""
        blur((0,) * lanes, self.first_chain, self.chain_starts, self.chain_members, scratch)
        slice_to(
            (0,) * lanes,
            self.corners,
            self.starts,
            self.simplices,
            self.weights,
            self.link,
            scratch,
            target,
            offset,
            np.float32(factor),
            add,
        )


def build_lattice(
    image_HW3: npt.NDArray[np.uint8],
    sigma: float,
    color_sigma: float | None,
    places: npt.NDArray[np.int32],
) -> Lattice:
    """Build the lattice of an image's pixels.

    Args:
        image_HW3: uint8 [H, W, 3], contiguous; only its size matters without `color_sigma`.
        sigma: Spatial standard deviation, pixels.
        color_sigma: Colour standard deviation, grey levels; None for a spatial lattice.
        places: The place of each pixel of the image in the caller's arrays, int32 [N].

    Raises:
        ValueError: A standard deviation is so small for this image that float32 cannot place
            its pixels.
    """
    height, width = image_HW3.shape[:2]
    pixels = height * width
    d = 2 if color_sigma is None else 5
    step_x = np.arange(width, dtype=np.float32) / np.float32(sigma)
    step_y = np.arange(height, dtype=np.float32) / np.float32(sigma)
    colors = np.arange(256, dtype=np.float32) / np.float32(color_sigma or 1.0)
    spread = float(np.float32(math.sqrt(2.0 / 3.0) * (d + 1)))
    scale = np.array([1 / math.sqrt((i + 1) * (i + 2)) * spread for i in range(d)], np.float32)
    low, span = _corner_range(np.array([step_x[-1], step_y[-1]] + [colors[-1]] * (d - 2)), scale)

    orders = (d + 1) ** d
    packed = math.prod(span) * orders < _KEY_LIMIT
    # A vertex lies within one simplex of the corner, a neighbour within one more.
    vertex_low = [(d + 1) * (value - 2) for value in low]
    vertex_span = [(d + 1) * (value + 4) for value in span]
    packed = packed and math.prod(vertex_span) < _KEY_LIMIT

    weights = np.empty((pixels, d + 1), np.float32)
    simplex_of = np.empty(pixels, np.int32)
    corner = np.empty((pixels + 1, d), np.int32)
    rank = np.empty((pixels + 1, d + 1), np.int8)
    count = embed(
        image_HW3,
        step_x,
        step_y,
        colors,
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
        simplices, vertex_keys, table = number_vertices(
            corner[:count], rank[:count], radix, np.array(vertex_low, np.int64)
        )
        following = link_vertices(vertex_keys, table, radix)
    else:
        simplices, following = number_wide_vertices(corner[:count], rank[:count])
    starts, owner, link, grouped = group_pixels(
        simplex_of, weights, places, len(simplices), _LONGEST_SEGMENT
    )
    first_chain, chain_starts, chain_members = chain_vertices(following)
    lattice = Lattice(
        starts=starts,
        simplices=simplices[owner].ravel(),
        weights=grouped,
        link=link,
        vertices=following.shape[1],
        first_chain=first_chain,
        chain_starts=chain_starts,
        chain_members=chain_members,
        mass=np.ones(pixels, np.float32),
    )
    _normalize_weights(lattice, 1.0 / (1.0 + 2.0**-d))
    return lattice


def _corner_range(
    peak: npt.NDArray[np.float32], scale: npt.NDArray[np.float32]
) -> tuple[list[int], list[int]]:
    """Smallest value and number of values of each corner coordinate.

    Coordinate j of an elevated point is the sum of the components from j on less j times
    component j - 1, and every component lies between 0 and its peak.
    """
    d = len(scale)
    highest = (peak * scale).astype(np.float64)
    low, span = [], []
    for j in range(d):
        smallest = -j * highest[j - 1] if j else 0.0
        largest = float(highest[j:].sum())
        if max(-smallest, largest) > _COORDINATE_LIMIT:
            raise ValueError(
                "the CRF's standard deviations are too small for an image of this size: "
                "float32 cannot tell its pixels' places apart"
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


def _normalize_weights(lattice: Lattice, attenuation: float) -> None:
    """Fold `D^-1/2` and the root of the attenuation into the weights; fill in `mass`."""
    scratch = lattice.scratch(1)
    lattice.splat(1, lattice.mass, 0, scratch)
    total = np.empty_like(lattice.mass)
    lattice.blur_and_slice(1, attenuation, scratch, total, 0, add=False)
    normalize(lattice.weights, lattice.link, total, np.float32(math.sqrt(attenuation)))
    lattice.splat(1, lattice.mass, 0, scratch)
    lattice.blur_and_slice(1, 1.0, scratch, lattice.mass, 0, add=False)
