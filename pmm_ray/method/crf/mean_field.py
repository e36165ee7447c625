"""Mean field on permutohedral lattices: K independent binary problems, or one joint problem.

Arrays of pixels are kept in the order of the spatial lattice's segments, channels last. Every
kernel then reads its weights once, in order, and does the same work for a pixel's whole row.
"""

# H, W: image; N: pixels; K: binary problems; M: labels of a joint problem; P: padded row width.

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from pmm_ray.method.checks import Float32Array
from pmm_ray.method.crf.lattice import Lattice, build_lattice
from pmm_ray.method.crf.parameters import CrfParameters
from pmm_ray.method.crf.spatial import spatial_lattice
from pmm_ray.method.crf.updates import log_ratio, logistic, lower, pack, softmax, unpack

# The widest row a kernel handles at once: one AVX-512 register, or two of AVX2.
_WIDEST = 16
# Binary problems are solved in groups of this many at most.
_GROUP = 16
# Frozen labels may change any posterior by this much in one iteration, see `weak_labels`.
_FREEZE_BUDGET = 1e-6
_FLOOR = np.float32(1e-5)
# The logit of the padding in a row: its posterior is nothing.
_NEVER = np.float32(-1e30)


class LatticeSolver:
    """One image's lattices, shared by everything it is asked to solve.

    Raises:
        ValueError: A standard deviation is too small for the image, see `build_lattice`.
    """

    def __init__(self, image_HW3: npt.NDArray[np.uint8], parameters: CrfParameters) -> None:
        self._iterations = parameters.iterations
        # A private copy: kernels are compiled for contiguous, writable arrays only.
        image = np.array(image_HW3, order="C")
        height, width = image.shape[:2]
        self._filters: list[tuple[Lattice, float]] = []
        self._places = np.arange(height * width, dtype=np.int32)
        if self._iterations == 0:
            return
        if parameters.gaussian_weight > 0.0:
            self._places, spatial = spatial_lattice(height, width, parameters.gaussian_sigma)
            self._filters.append((spatial, parameters.gaussian_weight))
        if parameters.bilateral_weight > 0.0:
            bilateral = build_lattice(
                image, parameters.bilateral_sigma, parameters.bilateral_color_sigma, self._places
            )
            self._filters.append((bilateral, parameters.bilateral_weight))

    def binary(
        self, foreground_KHW: Float32Array, background_KHW: Float32Array, tolerance: float
    ) -> Float32Array:
        """Foreground posteriors of K independent two-label problems, float32 [K, H, W]."""
        posterior_KHW = np.empty(foreground_KHW.shape, np.float32)
        for first in range(0, len(foreground_KHW), _GROUP):
            group = slice(first, first + _GROUP)
            self._solve_group(
                foreground_KHW[group], background_KHW[group], tolerance, posterior_KHW[group]
            )
        return posterior_KHW

    def _solve_group(
        self,
        foreground_KHW: Float32Array,
        background_KHW: Float32Array,
        tolerance: float,
        posterior_KHW: Float32Array,
    ) -> None:
        count, pixels = len(foreground_KHW), self._places.size
        lanes = _padded(count)
        planes_KN = posterior_KHW.reshape(count, pixels)
        # Whole SIMD rows, whatever the number of pixels.
        size = -(-pixels * lanes // _WIDEST) * _WIDEST
        base = np.zeros(size, np.float32)
        wide = (0,) * _WIDEST
        log_ratio(wide, (0,), _flat(foreground_KHW), _flat(background_KHW), planes_KN.ravel())
        pack(planes_KN, self._places, base, lanes, 0)
        posterior = np.zeros(size, np.float32)
        logistic(wide, base, posterior)
        # K q_background = K 1 - K q_foreground, so the difference of the two messages is
        # 2 K q_foreground - K 1, and the second term never changes.
        for lattice, weight in self._filters:
            lower(base, lanes, np.float32(weight) * lattice.mass)

        scratches = self._scratches(lanes)
        still_K = np.zeros(count, np.bool_)
        rows_NL = posterior[: pixels * lanes].reshape(pixels, lanes)
        for _ in range(self._iterations):
            previous_NL = rows_NL.copy() if tolerance else rows_NL
            self._filter_in_place(posterior, 0, lanes, 2.0, scratches)
            logistic(wide, base, posterior)
            if tolerance:
                # A class that stands still keeps that state, whatever the others do.
                rows_NL[:, :count][:, still_K] = previous_NL[:, :count][:, still_K]
                still_K = np.abs(rows_NL - previous_NL).max(axis=0)[:count] <= tolerance
                if still_K.all():
                    break
        unpack(posterior, self._places, lanes, 0, planes_KN)

    def joint(self, scores_MHW: Float32Array, tolerance: float) -> Float32Array:
        """Posteriors of one problem with M labels, float32 [M, H, W]."""
        count, pixels = len(scores_MHW), self._places.size
        scores_MN = np.clip(scores_MHW, _FLOOR, 1.0).reshape(count, pixels)
        frozen_M = self.weak_labels(scores_MN)
        kept = np.flatnonzero(~frozen_M)
        lanes = _block_width(len(kept))
        blocks = range(0, len(kept), lanes)
        rest = np.empty(pixels, np.float32)
        rest[self._places] = scores_MN.sum(axis=0, where=frozen_M[:, None])
        base = np.full(len(blocks) * lanes * pixels, _NEVER, np.float32)
        for first in blocks:
            some = kept[first : first + lanes]
            pack(np.log(scores_MN[some]), self._places, base, lanes, first * pixels)
        rows = np.zeros_like(base)
        scale = np.empty(pixels, np.float32)
        row = (0,) * lanes
        softmax(row, base, rows, rest, scale)
        scratches = self._scratches(lanes)
        for _ in range(self._iterations):
            previous = rows.copy() if tolerance else rows
            for first in blocks:
                self._filter_in_place(rows, first * pixels, lanes, 1.0, scratches)
            softmax(row, base, rows, rest, scale)
            if tolerance and float(np.abs(rows - previous).max()) <= tolerance:
                break

        posterior_MN = scores_MN
        scale = scale[self._places]
        for label in np.flatnonzero(frozen_M):
            posterior_MN[label] *= scale
        planes = np.empty((lanes, pixels), np.float32)
        for first in blocks:
            some = kept[first : first + lanes]
            unpack(rows, self._places, lanes, first * pixels, planes[: len(some)])
            posterior_MN[some] = planes[: len(some)]
        return posterior_MN.reshape(scores_MHW.shape)

    def weak_labels(self, scores_MN: Float32Array) -> npt.NDArray[np.bool_]:
        """Labels that are too weak everywhere for the filters to matter to them.

        Let W be the largest total message of a label that is certain everywhere. Messages are
        never negative, so a label's posterior stays below `e d` (d: its largest normalized
        score) as long as `e d W <= 1`, and its message below `m = e d W`... tightened once:
        posterior <= d exp(m). Leaving the message out changes the denominator of the softmax by
        a share of at most `d (exp(W d exp(m)) - 1)`. The weakest labels are frozen while these
        shares add up to less than the budget.
        """
        mass = np.zeros(self._places.size, np.float32)
        for lattice, weight in self._filters:
            mass += np.float32(weight) * lattice.mass
        strongest = float(mass.max())
        total_N = scores_MN.sum(axis=0)
        share_M = np.array([float((plane / total_N).max()) for plane in scores_MN])
        message_M = math.e * share_M * strongest
        bound_M = share_M * np.expm1(strongest * share_M * np.exp(np.minimum(message_M, 1.0)))
        weakest_first = np.argsort(share_M, kind="stable")[:-1]
        frozen_M = np.zeros(len(scores_MN), np.bool_)
        fits = np.cumsum(bound_M[weakest_first]) <= _FREEZE_BUDGET
        frozen_M[weakest_first[fits & (message_M[weakest_first] <= 1.0)]] = True
        return frozen_M

    def _scratches(self, lanes: int) -> list[Float32Array]:
        return [lattice.scratch(lanes) for lattice, _ in self._filters]

    def _filter_in_place(
        self,
        rows: Float32Array,
        offset: int,
        lanes: int,
        factor: float,
        scratches: list[Float32Array],
    ) -> None:
        """Replace rows by the sum of `factor * weight` times their filtered values."""
        if not self._filters:
            rows[:] = 0.0
            return
        for (lattice, _), scratch in zip(self._filters, scratches, strict=True):
            lattice.splat(lanes, rows, offset, scratch)
        add = False
        for (lattice, weight), scratch in zip(self._filters, scratches, strict=True):
            lattice.blur_and_slice(lanes, factor * weight, scratch, rows, offset, add)
            add = True


def _flat(planes_KHW: Float32Array) -> Float32Array:
    """The planes as one writable, contiguous vector: what the kernels are compiled for."""
    return np.require(planes_KHW, requirements=["C", "W"]).ravel()


def _padded(count: int) -> int:
    """The smallest power of two that holds `count` channels."""
    return 1 << (count - 1).bit_length()


def _block_width(count: int) -> int:
    """Labels per block of a joint problem: the least padding, and wide blocks where equal."""
    if count <= _WIDEST // 2:
        return _padded(count)
    eights = -(-count // 8)
    return 8 if eights % 2 else _WIDEST
