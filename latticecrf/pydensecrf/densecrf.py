"""`pydensecrf.densecrf`: CRFs on pixels with Gaussian pairwise energies."""

# H, W: image; N: pixels; M: labels; d: feature dimensions.

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np

from latticecrf.checks import Float32Array, check_array
from latticecrf.lattice.features import color_features, grid_features, point_features
from latticecrf.lattice.lattice import Normalization
from latticecrf.mean_field.energies import Attraction, divergence, softmax, solve_energies, update
from latticecrf.mean_field.filter_bank import FilterBank, Gaussian
from latticecrf.mean_field.recent import recent_bank
from latticecrf.pydensecrf import arguments


class KernelType(IntEnum):
    """What of a kernel pydensecrf can learn; inference is the same."""

    CONST_KERNEL = 0
    DIAG_KERNEL = 1
    FULL_KERNEL = 2


class NormalizationType(IntEnum):
    """How a kernel's filter is normalized."""

    NO_NORMALIZATION = 0
    NORMALIZE_BEFORE = 1
    NORMALIZE_AFTER = 2
    NORMALIZE_SYMMETRIC = 3


CONST_KERNEL = KernelType.CONST_KERNEL
DIAG_KERNEL = KernelType.DIAG_KERNEL
FULL_KERNEL = KernelType.FULL_KERNEL
NO_NORMALIZATION = NormalizationType.NO_NORMALIZATION
NORMALIZE_BEFORE = NormalizationType.NORMALIZE_BEFORE
NORMALIZE_AFTER = NormalizationType.NORMALIZE_AFTER
NORMALIZE_SYMMETRIC = NormalizationType.NORMALIZE_SYMMETRIC

_NORMALIZATIONS: dict[int, Normalization] = {
    NO_NORMALIZATION: "none",
    NORMALIZE_BEFORE: "before",
    NORMALIZE_AFTER: "after",
    NORMALIZE_SYMMETRIC: "symmetric",
}


class ConstUnary:
    """Unary energies for `DenseCRF.setUnary`.

    Args:
        u: Floating [M, N]; a copy is kept.

    Raises:
        ValueError: They do not fit, see `arguments.energies`.
    """

    def __init__(self, u: Any) -> None:
        self.energies = arguments.energies(u)


class DenseCRF:
    """A fully connected CRF over N variables.

    Args:
        nvar: N, variables.
        nlabels: M, labels.

    Raises:
        ValueError: Either is no number of at least 1. Fractions are cut off.
    """

    def __init__(self, nvar: int, nlabels: int) -> None:
        self._pixels = arguments.whole("the number of variables", nvar)
        self._labels = arguments.whole("nlabels", nlabels)
        self._energies: Float32Array = np.zeros((self._labels, self._pixels), np.float32)
        self._terms: list[tuple[Gaussian, Attraction]] = []
        self._bank: FilterBank | None = None

    def setUnary(self, unary: ConstUnary) -> None:
        """Set the unary energies, see `setUnaryEnergy`.

        Raises:
            ValueError: It is no `ConstUnary`, or of another number of labels or pixels.
        """
        if not isinstance(unary, ConstUnary):
            raise ValueError(f"unary is a {type(unary).__name__}: give a ConstUnary(energies)")
        shape = (self._labels, self._pixels)
        self._energies = check_array("the unary energy", unary.energies, "MN", shape, finite=False)

    def setUnaryEnergy(self, u: Any, f: None = None) -> None:
        """Set the unary energies.

        Args:
            u: Floating [M, N]; they are taken as they are.
            f: Features of a logistic unary, which is not supported.

        Raises:
            ValueError: They do not fit, see `arguments.energies`, or there are features.
        """
        if f is not None:
            raise ValueError("f: there are no logistic unaries here; give the energies, u @ f")
        self.setUnary(ConstUnary(u))

    def addPairwiseEnergy(
        self,
        features: Any,
        compat: Any,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a Gaussian over features.

        Args:
            features: Each divided by its standard deviation, floating [d, N], d of 1 to 8.
            compat: The Potts weight; or energies of label pairs, [M] (a diagonal) or [M, M].
            kernel: Changes nothing.
            normalization: See `NormalizationType`.

        Raises:
            ValueError: An argument does not fit.
        """
        checked = arguments.points(features, self._pixels)
        self._add(point_features(checked), compat, kernel, normalization)

    def inference(self, niter: int) -> Float32Array:
        """The posteriors after `niter` mean-field iterations, float32 [M, N].

        Args:
            niter: A finite number. Fractions are cut off; below 0 is 0.

        Raises:
            ValueError: It is none, or a kernel's deviations are too small for its pixels.
        """
        count = arguments.iterations(niter)
        # Without iterations nothing is filtered.
        bank, attractions = self._filters() if count else (FilterBank([], self._pixels), [])
        return solve_energies(bank, self._energies, attractions, count)

    def startInference(self) -> tuple[Float32Array, Float32Array, Float32Array]:
        """The posteriors before the first iteration, and two arrays that `stepInference` takes."""
        nothing = np.zeros((0, 0), np.float32)
        return softmax(-self._energies), nothing, nothing.copy()

    def stepInference(self, Q: Float32Array, tmp1: Any, tmp2: Any) -> None:
        """Bring the posteriors `Q` of `startInference` one iteration further, in place."""
        self._check_posterior(Q)
        Q[:] = update(*self._field(), Q)

    def klDivergence(self, Q: Float32Array) -> float:
        """The Kullback-Leibler divergence of `Q` to the field, up to a constant."""
        self._check_posterior(Q)
        return divergence(*self._field(), Q)

    def _add(self, features: Any, compat: Any, kernel: int, normalization: int) -> None:
        if normalization not in _NORMALIZATIONS:
            raise ValueError(f"normalization = {normalization!r} is no NormalizationType")
        if kernel not in list(KernelType):
            raise ValueError(f"kernel = {kernel!r} is no KernelType")
        attraction = arguments.attraction(compat, self._labels)
        gaussian = Gaussian(features, _NORMALIZATIONS[normalization])
        self._terms.append((gaussian, attraction))
        self._bank = None

    def _filters(self) -> tuple[FilterBank, list[Attraction]]:
        # Grids first: their lattices are kept. The sum does not depend on the order.
        terms = sorted(
            self._terms,
            key=lambda term: (not term[0].features.is_grid, term[0].features.dimensions),
        )
        if self._bank is None:
            self._bank = recent_bank([gaussian for gaussian, _ in terms], self._pixels)
        return self._bank, [attraction for _, attraction in terms]

    def _field(self) -> tuple[FilterBank, Float32Array, list[Attraction]]:
        bank, attractions = self._filters()
        return bank, self._energies, attractions

    def _check_posterior(self, Q: Any) -> None:
        check_array("Q", Q, "MN", (self._labels, self._pixels))


class DenseCRF2D(DenseCRF):
    """A fully connected CRF over an image.

    Args:
        w: Width.
        h: Height.
        nlabels: M, labels.

    Raises:
        ValueError: One is no number of at least 1. Fractions are cut off.
    """

    def __init__(self, w: int, h: int, nlabels: int) -> None:
        self._width = arguments.whole("w", w)
        self._height = arguments.whole("h", h)
        super().__init__(self._width * self._height, nlabels)

    def addPairwiseGaussian(
        self,
        sxy: Any,
        compat: Any,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a Gaussian over the pixels' places.

        Args:
            sxy: Standard deviation, or those of x and y, pixels, above 0, also infinite.
            compat, kernel, normalization: See `addPairwiseEnergy`.

        Raises:
            ValueError: An argument does not fit.
        """
        sigmas = arguments.sigmas("sxy", sxy, 2)
        self._add(grid_features(self._height, self._width, sigmas), compat, kernel, normalization)

    def addPairwiseBilateral(
        self,
        sxy: Any,
        srgb: Any,
        rgbim: Any,
        compat: Any,
        kernel: int = DIAG_KERNEL,
        normalization: int = NORMALIZE_SYMMETRIC,
    ) -> None:
        """Add a Gaussian over the pixels' places and colours.

        Args:
            sxy: See `addPairwiseGaussian`.
            srgb: Standard deviation of the colours, or those of the three channels, grey levels,
                above 0, also infinite.
            rgbim: uint8 or bool [H, W, 3].
            compat, kernel, normalization: See `addPairwiseEnergy`.

        Raises:
            ValueError: An argument does not fit.
        """
        features = color_features(
            arguments.image(rgbim, self._height, self._width),
            arguments.sigmas("sxy", sxy, 2),
            arguments.sigmas("srgb", srgb, 3),
        )
        self._add(features, compat, kernel, normalization)
