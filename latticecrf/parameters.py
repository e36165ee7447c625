"""The numbers of a dense CRF, and the presets used in the paper and its predecessors."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral

from latticecrf.ranges import check_number

# A float32 holds the messages of weights up to it.
MOST_WEIGHT = 1e30


@dataclass(frozen=True)
class CrfParameters:
    """What a fully connected CRF with one spatial and one bilateral Gaussian kernel needs.

    Attributes:
        iterations: Mean-field iterations, 0 or more. 0 returns the normalized scores.
        gaussian_sigma: Standard deviation of the spatial kernel, pixels, > 0.
        gaussian_weight: Potts weight of the spatial kernel (`compat` elsewhere), 0 to 1e30.
        bilateral_sigma: Spatial standard deviation of the bilateral kernel, pixels, > 0.
        bilateral_color_sigma: Its colour standard deviation, grey levels 0..255, > 0.
        bilateral_weight: Potts weight of the bilateral kernel, 0 to 1e30.

    Raises:
        ValueError: A value is out of its range.
    """

    iterations: int
    gaussian_sigma: float
    gaussian_weight: float
    bilateral_sigma: float
    bilateral_color_sigma: float
    bilateral_weight: float

    def __post_init__(self) -> None:
        if not isinstance(self.iterations, Integral) or self.iterations < 0:
            raise ValueError(f"iterations = {self.iterations} is not an integer >= 0")
        for name in ("gaussian_sigma", "bilateral_sigma", "bilateral_color_sigma"):
            check_number(name, getattr(self, name), 0.0, low_open=True)
        for name in ("gaussian_weight", "bilateral_weight"):
            check_number(name, getattr(self, name), 0.0, MOST_WEIGHT)

    @classmethod
    def seam(cls) -> CrfParameters:
        """SEAM's and PSA's refinement of CAMs (released code: `imutils` of both)."""
        return cls(10, 3.0, 3.0, 80.0, 13.0, 10.0)

    @classmethod
    def base_mask(cls) -> CrfParameters:
        """The base mask of multi-crop training, all labels jointly (released code of PMM)."""
        return cls.seam()

    @classmethod
    def ppmg(cls) -> CrfParameters:
        """Proportional pseudo-masks, two labels per class (Eq. 7; released code of PMM)."""
        return cls(10, 3.0, 10.0, 80.0, 13.0, 10.0)

    @classmethod
    def segmentation(cls) -> CrfParameters:
        """The segmenter at test time and for cyclic masks (released code; DeepLab-v2 values)."""
        return cls(10, 1.0, 3.0, 67.0, 3.0, 4.0)
