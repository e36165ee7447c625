"""Mean field on permutohedral lattices: K independent binary problems, or one joint problem.

Arrays of pixels are kept in the order of the spatial lattice's segments, channels last. Every
kernel then reads its weights once, in order, and does the same work for a pixel's whole row.
"""

# H, W: image; N: pixels; K: binary problems; M: labels of a joint problem.

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from latticecrf.checks import Float32Array
from latticecrf.mean_field.binary_updates import (
    log_ratio,
    logistic,
    lower,
    pack,
    padded,
    unpack,
)
from latticecrf.mean_field.filter_bank import FilterBank
from latticecrf.mean_field.joint import solve_joint
from latticecrf.parameters import CrfParameters
from latticecrf.simd.aligned import aligned

# The widest row a kernel handles at once, one AVX-512 register or two of AVX2, and the most
# binary problems solved together.
_WIDEST = 16


class LatticeSolver:
    """One image's lattices, shared by everything it is asked to solve.

    Raises:
        ValueError: A standard deviation is too small for the image, see `build_lattice`.
    """

    def __init__(self, image_HW3: npt.NDArray[np.uint8], parameters: CrfParameters) -> None:
        self._iterations = parameters.iterations
        self._bank = FilterBank(image_HW3, parameters)

    def binary(self, foreground_KHW: Float32Array, background_KHW: Float32Array) -> Float32Array:
        """Foreground posteriors of K independent two-label problems, float32 [K, H, W]."""
        posterior_KHW = np.empty(foreground_KHW.shape, np.float32)
        first = 0
        while first < len(foreground_KHW):
            group = slice(first, first + _together(len(foreground_KHW) - first))
            self._solve_group(foreground_KHW[group], background_KHW[group], posterior_KHW[group])
            first = group.stop
        return posterior_KHW

    def joint(self, scores_MHW: Float32Array) -> Float32Array:
        """Posteriors of one problem with M labels, float32 [M, H, W]."""
        scores_MN = _flat(scores_MHW).reshape(len(scores_MHW), -1)
        posterior_MN = np.empty_like(scores_MN)
        solve_joint(self._bank, scores_MN, self._iterations, posterior_MN)
        return posterior_MN.reshape(scores_MHW.shape)

    def _solve_group(
        self,
        foreground_KHW: Float32Array,
        background_KHW: Float32Array,
        posterior_KHW: Float32Array,
    ) -> None:
        count, pixels = len(foreground_KHW), self._bank.places.size
        lanes = padded(count)
        channels = np.arange(count)
        planes_KN = posterior_KHW.reshape(count, pixels)
        # Whole SIMD rows, whatever the number of pixels.
        size = -(-pixels * lanes // _WIDEST) * _WIDEST
        base = aligned(size)
        base[:] = 0.0
        wide = (0,) * _WIDEST
        log_ratio(wide, (0,), _flat(foreground_KHW), _flat(background_KHW), planes_KN.ravel())
        pack(planes_KN, channels, self._bank.places, base, lanes, 0)
        posterior = aligned(size)
        posterior[:] = 0.0
        logistic(wide, base, posterior)
        # K q_background = K 1 - K q_foreground, so the difference of the two messages is
        # 2 K q_foreground - K 1, and the second term never changes.
        lower(base, lanes, self._bank.mass())
        rows = posterior[: pixels * lanes]
        scratch = self._bank.scratch(lanes)
        for _ in range(self._iterations):
            self._bank.apply(rows, lanes, 2.0, scratch)
            logistic(wide, base, posterior)
        unpack(posterior, self._bank.places, lanes, 0, planes_KN, channels)


def _together(count: int) -> int:
    """How many of `count` problems to solve at once: five in eight lanes save little time and cost
    much memory."""
    return 4 if count == 5 else min(count, _WIDEST)


def _flat(planes_KHW: Float32Array) -> Float32Array:
    """The planes as one writable, contiguous vector: what the kernels are compiled for."""
    return np.require(planes_KHW, requirements=["C", "W"]).ravel()
