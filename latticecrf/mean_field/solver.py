"""Mean field on permutohedral lattices: K independent binary problems, or one joint problem."""

# H, W: image; K: binary problems; M: labels of a joint problem.

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from latticecrf.checks import Float32Array
from latticecrf.lattice.features import color_features, grid_features
from latticecrf.mean_field.binary import solve_binary
from latticecrf.mean_field.binary_updates import FLOOR, log_ratio
from latticecrf.mean_field.filter_bank import FilterBank, Gaussian
from latticecrf.mean_field.joint import solve_joint
from latticecrf.parameters import CrfParameters
from latticecrf.simd.rows import WIDE


class LatticeSolver:
    """One image's lattices, shared by everything it is asked to solve.

    Raises:
        ValueError: A standard deviation is too small for the image, see `build_lattice`.
    """

    def __init__(self, image_HW3: npt.NDArray[np.uint8], parameters: CrfParameters) -> None:
        self._iterations = parameters.iterations
        kernels, self._weights = _kernels(image_HW3, parameters)
        self._bank = FilterBank(kernels, image_HW3.shape[0] * image_HW3.shape[1])

    def binary(self, foreground_KHW: Float32Array, background_KHW: Float32Array) -> Float32Array:
        """Foreground posteriors of K independent two-label problems, float32 [K, H, W]."""
        posterior_KHW = np.empty(foreground_KHW.shape, np.float32)
        logits_KN = posterior_KHW.reshape(len(posterior_KHW), -1)
        log_ratio(WIDE, (0,), _flat(foreground_KHW), _flat(background_KHW), logits_KN.ravel())
        # K q_background = K 1 - K q_foreground, so the difference of the two messages is
        # 2 K q_foreground - K 1, and the second term never changes.
        mass_N = self._bank.mass(self._weights)
        factors = [2.0 * weight for weight in self._weights]
        solve_binary(self._bank, logits_KN, mass_N, factors, self._iterations)
        return posterior_KHW

    def joint(self, scores_MHW: Float32Array) -> Float32Array:
        """Posteriors of one problem with M labels, float32 [M, H, W]."""
        scores_MN = _flat(scores_MHW).reshape(len(scores_MHW), -1)
        posterior_MN = np.empty_like(scores_MN)
        solve_joint(self._bank, scores_MN, FLOOR, self._weights, self._iterations, posterior_MN)
        return posterior_MN.reshape(scores_MHW.shape)


def _kernels(
    image_HW3: npt.NDArray[np.uint8], parameters: CrfParameters
) -> tuple[list[Gaussian], list[float]]:
    """The kernels that take part, the spatial one first, and their weights."""
    kernels, weights = [], []
    if parameters.iterations and parameters.gaussian_weight > 0.0:
        sigmas = (parameters.gaussian_sigma,) * 2
        kernels.append(Gaussian(grid_features(image_HW3.shape[0], image_HW3.shape[1], sigmas)))
        weights.append(parameters.gaussian_weight)
    if parameters.iterations and parameters.bilateral_weight > 0.0:
        sigmas = (parameters.bilateral_sigma,) * 2
        color_sigmas = (parameters.bilateral_color_sigma,) * 3
        kernels.append(Gaussian(color_features(image_HW3, sigmas, color_sigmas)))
        weights.append(parameters.bilateral_weight)
    return kernels, weights


def _flat(planes_KHW: Float32Array) -> Float32Array:
    """The planes as one writable, contiguous vector: what the kernels are compiled for."""
    return np.require(planes_KHW, requirements=["C", "W"]).ravel()
