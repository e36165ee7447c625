"""Mean field through pydensecrf: the reference the lattice backend is tested against.

Needs the optional package `pydensecrf2` (the extra `pmm-ray[pydensecrf]`).
"""

# H, W: image; K: independent two-label problems; M: labels of one joint problem.

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from latticecrf.checks import Float32Array
from latticecrf.parameters import CrfParameters


def _module() -> Any:
    try:
        import pydensecrf.densecrf  # type: ignore[import-untyped, unused-ignore]
    except ImportError as error:
        raise ModuleNotFoundError(
            "the CRF backend 'pydensecrf' needs the package pydensecrf2: "
            "pip install 'pmm-ray[pydensecrf]'"
        ) from error
    if pydensecrf.densecrf.__name__ != "pydensecrf.densecrf":
        raise ModuleNotFoundError(
            "latticecrf.install() has put the lattice backend under the name of pydensecrf: "
            "use the CRF backend 'pydensecrf' in a process without it"
        )
    return pydensecrf.densecrf


class PydensecrfSolver:
    """One image; the pairwise terms are built once per number of labels and then reused.

    Raises:
        ModuleNotFoundError: pydensecrf2 is not installed, or `latticecrf.install()` hides it.
    """

    def __init__(self, image_HW3: npt.NDArray[np.uint8], parameters: CrfParameters) -> None:
        self._densecrf = _module()
        self._image_HW3 = np.ascontiguousarray(image_HW3)
        self._parameters = parameters
        self._models: dict[int, Any] = {}

    def binary(self, foreground_KHW: Float32Array, background_KHW: Float32Array) -> Float32Array:
        """Foreground posteriors of K independent two-label problems, float32 [K, H, W]."""
        posterior_KHW = np.empty(foreground_KHW.shape, np.float32)
        for k in range(len(foreground_KHW)):
            scores_2HW = np.stack([background_KHW[k], foreground_KHW[k]])
            posterior_KHW[k] = self.joint(scores_2HW)[1]
        return posterior_KHW

    def joint(self, scores_MHW: Float32Array) -> Float32Array:
        """Posteriors of one problem with M labels, float32 [M, H, W]."""
        labels = len(scores_MHW)
        model = self._model(labels)
        energy_MN = -np.log(np.clip(scores_MHW, 1e-5, 1.0)).reshape(labels, -1)
        model.setUnaryEnergy(np.ascontiguousarray(energy_MN, dtype=np.float32))
        posterior_MN = np.array(model.inference(self._parameters.iterations), dtype=np.float32)
        return posterior_MN.reshape(scores_MHW.shape)

    def _model(self, labels: int) -> Any:
        if labels not in self._models:
            height, width = self._image_HW3.shape[:2]
            p = self._parameters
            model = self._densecrf.DenseCRF2D(width, height, labels)
            model.addPairwiseGaussian(sxy=p.gaussian_sigma, compat=p.gaussian_weight)
            model.addPairwiseBilateral(
                sxy=p.bilateral_sigma,
                srgb=p.bilateral_color_sigma,
                rgbim=self._image_HW3,
                compat=p.bilateral_weight,
            )
            self._models[labels] = model
        return self._models[labels]
