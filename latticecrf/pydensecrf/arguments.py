"""What `DenseCRF` takes, checked and brought into the engine's terms."""

# N: pixels; M: labels.

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from latticecrf.checks import Float32Array, check_array, check_rgb
from latticecrf.mean_field.energies import Attraction
from latticecrf.parameters import MOST_WEIGHT


def whole(name: str, value: Any) -> int:
    """A number of at least 1, its fraction cut off, as in pydensecrf.

    Raises:
        ValueError: It is none.
    """
    number = _number(value)
    if number is None or not 1 <= number < math.inf:
        raise ValueError(f"{name} = {value!r} is not a number of at least 1")
    return int(number)


def iterations(value: Any) -> int:
    """A number of iterations, its fraction cut off; below zero means none, as in pydensecrf.

    Raises:
        ValueError: It is none, or not finite.
    """
    number = _number(value)
    if number is None or not math.isfinite(number):
        raise ValueError(f"the number of iterations is {value!r}, not a finite number")
    return max(0, int(number))


def energies(value: Any) -> Float32Array:
    """Unary energies, float32 [M, N], a copy.

    Raises:
        ValueError: It is no floating array [M, N], a value is NaN or minus infinity, or a pixel
            allows no label.
    """
    checked = check_array("the unary energy", value, "MN", finite=False)
    with np.errstate(over="ignore"):
        copy = np.array(checked, np.float32, order="C")
    if not (copy > -np.inf).all():
        raise ValueError("the unary energy holds NaN or minus infinity")
    if not np.isfinite(copy.min(axis=0, initial=np.inf)).all():
        raise ValueError("the unary energy of a pixel is infinite for every label")
    return copy


def points(value: Any, pixels: int) -> Float32Array:
    """Features of a pairwise energy, float32 [d, N] with d of 1 to 8, a copy.

    Raises:
        ValueError: The shape or type is wrong, or a value is not finite.
    """
    checked = check_array("the features", value, "dN", (None, pixels), "f")
    if not 1 <= len(checked) <= 8:
        raise ValueError(f"the features have {len(checked)} dimensions: 1 to 8 are possible")
    return np.array(checked, np.float32, order="C")


def image(value: Any, height: int, width: int) -> npt.NDArray[np.uint8]:
    """A colour image, uint8 [H, W, 3]; of a bool one True is 1.

    Raises:
        ValueError: The shape or type is wrong.
    """
    if isinstance(value, np.ndarray) and value.dtype == np.bool_:
        value = value.view(np.uint8)
    try:
        checked = check_rgb("rgbim", value)
    except ValueError as error:
        raise ValueError(
            f"{error}; other images go through utils.create_pairwise_bilateral and"
            " addPairwiseEnergy"
        ) from None
    return check_array("rgbim", checked, "HWC", (height, width, 3), kinds="u")


def sigmas(name: str, value: Any, count: int) -> tuple[float, ...]:
    """Standard deviations: a number for all, or a sequence whose first `count` are taken.

    Of an infinite one the feature is 0 everywhere.

    Raises:
        ValueError: There are too few, or one is not above 0.
    """
    every = _number(value)
    try:
        found = [_number(value[i]) if every is None else every for i in range(count)]
    except (TypeError, IndexError, KeyError):
        found = []
    chosen = tuple(sigma for sigma in found if sigma is not None)
    if len(chosen) < count:
        raise ValueError(f"{name} = {value!r} is neither a number nor {count} numbers")
    # Its square root of the smallest float32 keeps a grey level over it finite.
    if not all(sigma > 1e-19 for sigma in chosen):
        raise ValueError(f"{name} = {value!r}: a standard deviation must be above 0")
    return chosen


def attraction(compat: Any, labels: int) -> Attraction:
    """What a kernel adds to the logits: `compat` as it is if a number, else with its sign turned.

    Raises:
        ValueError: It is neither a number nor numbers [M] or [M, M], or one is NaN or beyond 1e30.
    """
    number = _number(compat)
    if number is not None:
        if not abs(number) <= MOST_WEIGHT:
            raise ValueError(f"compat = {compat!r} is not within -{MOST_WEIGHT} to {MOST_WEIGHT}")
        return number
    try:
        with np.errstate(over="ignore"):
            array = np.array(compat, np.float32)
    except (TypeError, ValueError):
        array = np.empty((), np.float32)
    if array.ndim == 0:
        raise ValueError(
            f"compat = {compat!r} is no number: give one, or an array of shape ({labels},) or"
            f" ({labels}, {labels})"
        )
    if array.shape not in ((labels,), (labels, labels)):
        raise ValueError(
            f"compat has shape {array.shape}; a number, ({labels},) or ({labels}, {labels}) fit"
            f" {labels} labels"
        )
    if not (np.abs(array) <= MOST_WEIGHT).all():
        raise ValueError(f"compat holds NaN, or a value beyond -{MOST_WEIGHT} to {MOST_WEIGHT}")
    # pydensecrf takes the symmetric part of a matrix, and subtracts what it takes from a number.
    return -array if array.ndim == 1 else (array + array.T) * np.float32(-0.5)


def _number(value: Any) -> float | None:
    """What is a number: of Python, of NumPy, or an array or tensor without axes."""
    try:
        return None if isinstance(value, (str, bytes)) or np.ndim(value) else float(value)
    except (TypeError, ValueError, OverflowError):
        return None
