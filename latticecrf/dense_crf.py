"""The public face of the CRF: checks the arguments and hands them to a backend."""

# H, W: image; K: independent two-label problems; M: labels of one joint problem.

from __future__ import annotations

from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from latticecrf.checks import Float32Array, FloatArray, check_array, check_image
from latticecrf.parameters import CrfParameters

Backend = Literal["lattice", "pydensecrf"]


class Solver(Protocol):
    """What a backend gives for one image; every argument has been checked."""

    def binary(self, foreground_KHW: Float32Array, background_KHW: Float32Array) -> Float32Array:
        """Foreground posteriors of K >= 1 independent two-label problems."""
        ...

    def joint(self, scores_MHW: Float32Array) -> Float32Array:
        """Posteriors of one problem with M >= 1 labels."""
        ...


class DenseCrf:
    """A fully connected CRF over one image, solved by mean field.

    The pairwise terms depend on the image and the parameters only: they are built when the
    object is made and shared by everything it is asked.

    Args:
        image_HW3: RGB image, uint8 [H, W, 3], H and W at least 1; need not be contiguous or
            writable. The lattice is not symmetric in the channels, so BGR gives slightly
            different masks.
        parameters: The kernels and the number of iterations.
        backend: `"lattice"` (Numba, the default) or `"pydensecrf"` (optional package).

    Raises:
        ValueError: An argument does not fit, or the backend is unknown.
        ModuleNotFoundError: The backend's package is not installed, or `install()` hides it.
    """

    def __init__(
        self,
        image_HW3: npt.NDArray[np.uint8],
        parameters: CrfParameters,
        backend: Backend = "lattice",
    ) -> None:
        image = check_image(image_HW3)
        self._height, self._width = image.shape[:2]
        self._solver = _make_solver(image, parameters, backend)

    def binary(self, foreground_KHW: FloatArray, background_KHW: FloatArray) -> Float32Array:
        """Solve K independent problems of two labels each (Eq. 7).

        Args:
            foreground_KHW: Scores of the classes, floating [K, H, W], finite. The unary of a
                label is `-log(clip(score, 1e-5, 1))`, so scores need not sum to one.
            background_KHW: Scores of each class's own background, like `foreground_KHW`.

        Returns:
            The posterior of the foreground label, float32 [K, H, W], 0..1. K = 0 is allowed
            and gives an empty array.

        Raises:
            ValueError: A shape, dtype or value does not fit.
        """
        shape = (None, self._height, self._width)
        foreground = check_array("foreground_KHW", foreground_KHW, "KHW", shape)
        background = check_array("background_KHW", background_KHW, "KHW", foreground.shape)
        if len(foreground) == 0:
            return np.empty(foreground.shape, np.float32)
        return self._solver.binary(
            foreground.astype(np.float32, copy=False),
            background.astype(np.float32, copy=False),
        )

    def joint(self, scores_MHW: FloatArray) -> Float32Array:
        """Solve one problem in which M labels compete (Eq. 4).

        Args:
            scores_MHW: Scores of the labels, floating [M, H, W], finite; the unary of a label
                is `-log(clip(score, 1e-5, 1))`.

        Returns:
            The posteriors, float32 [M, H, W], summing to one over M. M = 0 gives an empty array.

        Raises:
            ValueError: A shape, dtype or value does not fit.
        """
        shape = (None, self._height, self._width)
        scores = check_array("scores_MHW", scores_MHW, "MHW", shape)
        if len(scores) == 0:
            return np.empty(scores.shape, np.float32)
        return self._solver.joint(scores.astype(np.float32, copy=False))


def _make_solver(
    image_HW3: npt.NDArray[np.uint8], parameters: CrfParameters, backend: Backend
) -> Solver:
    # Imported on use, so that a worker needs only the package of the backend it runs.
    if backend == "lattice":
        from latticecrf.mean_field.solver import LatticeSolver

        return LatticeSolver(image_HW3, parameters)
    if backend == "pydensecrf":
        from latticecrf.mean_field.pydensecrf_solver import PydensecrfSolver

        return PydensecrfSolver(image_HW3, parameters)
    raise ValueError(f"unknown CRF backend {backend!r}: 'lattice' or 'pydensecrf'")
