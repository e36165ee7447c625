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
from pmm_ray.method.crf.filtering import blur, slice_to, splat
from pmm_ray.method.crf.placing import place_pixels
from pmm_ray.method.crf.vertices import chain_vertices, group_pixels, normalize

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
    weights, simplex_of, simplices, following = place_pixels(image_HW3, sigma, color_sigma)
    corners, vertices = following.shape
    first_chain, chain_starts, chain_members = chain_vertices(following)
    # Large images: what is done with goes before the next arrays come.
    del following
    starts, owner, link, grouped = group_pixels(
        simplex_of, weights, places, len(simplices), _LONGEST_SEGMENT
    )
    del weights, simplex_of
    lattice = Lattice(
        starts=starts,
        simplices=simplices[owner].ravel(),
        weights=grouped,
        link=link,
        vertices=vertices,
        first_chain=first_chain,
        chain_starts=chain_starts,
        chain_members=chain_members,
        mass=np.ones(link.size, np.float32),
    )
    _normalize_weights(lattice, 1.0 / (1.0 + 2.0 ** (1 - corners)))
    return lattice


def _normalize_weights(lattice: Lattice, attenuation: float) -> None:
    """Fold `D^-1/2` and the root of the attenuation into the weights; fill in `mass`."""
    scratch = lattice.scratch(1)
    lattice.splat(1, lattice.mass, 0, scratch)
    total = np.empty_like(lattice.mass)
    lattice.blur_and_slice(1, attenuation, scratch, total, 0, add=False)
    normalize(lattice.weights, lattice.link, total, np.float32(math.sqrt(attenuation)))
    lattice.splat(1, lattice.mass, 0, scratch)
    lattice.blur_and_slice(1, 1.0, scratch, lattice.mass, 0, add=False)
