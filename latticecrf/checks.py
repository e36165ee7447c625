"""Shape and type checks of arrays, for public functions; PMM-Ray's own method uses them, too.

A failed check is the caller's mistake and raises `ValueError` naming the argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.floating[Any]]
Float32Array = npt.NDArray[np.float32]

_KINDS = {"f": "floating", "u": "unsigned integers", "i": "signed integers", "b": "bool"}


def check_array(
    name: str,
    value: object,
    axes: str,
    shape: Sequence[int | None] | None = None,
    kinds: str = "f",
    finite: bool = True,
) -> npt.NDArray[Any]:
    """Return `value` as an array after checking its axes, element kind and finiteness.

    Args:
        name: What the caller calls the argument; it opens the error message.
        value: The argument; anything but a NumPy array is refused.
        axes: One letter per axis, for example `"KHW"`.
        shape: The length each axis must have; None where any length will do.
        kinds: The NumPy type kinds allowed (`f` floating, `u` unsigned, `i` signed, `b` bool).
        finite: Whether NaN and infinity are refused.

    Raises:
        ValueError: The argument does not fit.
    """
    if not isinstance(value, np.ndarray):
        raise ValueError(
            f"{name} must be a NumPy array [{axes}], got {type(value).__name__}:"
            " np.asarray makes one"
        )
    if value.ndim != len(axes):
        raise ValueError(f"{name} must have {len(axes)} axes [{axes}], got shape {value.shape}")
    if value.dtype.kind not in kinds:
        fitting = " or ".join(_KINDS[kind] for kind in kinds)
        raise ValueError(f"{name} has dtype {value.dtype}, not {fitting}: convert it by .astype")
    if shape is not None:
        for axis, got, wanted in zip(axes, value.shape, shape, strict=True):
            if wanted is not None and got != wanted:
                raise ValueError(f"{name} has length {got} on axis {axis}, expected {wanted}")
    if finite and value.dtype.kind == "f" and not np.isfinite(value).all():
        raise ValueError(f"{name} holds NaN or infinite values")
    return value


def check_rgb(name: str, value: object) -> npt.NDArray[np.uint8]:
    """Return `value` after checking that it is an RGB image, uint8 [H, W, 3]; `name` as above.

    Raises:
        ValueError: It is not.
    """
    if isinstance(value, np.ndarray) and value.dtype != np.uint8:
        raise ValueError(
            f"{name} has dtype {value.dtype}, not uint8: scale it to 0..255 and convert it by"
            " .astype(np.uint8)"
        )
    if isinstance(value, np.ndarray) and (value.ndim != 3 or value.shape[2] != 3):
        raise ValueError(
            f"{name} has shape {value.shape}, not [H, W, 3]: bring three channels to the last axis"
            " (np.dstack([grey] * 3), rgba[..., :3])"
        )
    return check_array(name, value, "HWC", kinds="u")


def check_image(image_HW3: object) -> npt.NDArray[np.uint8]:
    """Return `image_HW3` after checking that it is a non-empty RGB image, uint8 [H, W, 3].

    Raises:
        ValueError: It is not.
    """
    image = check_rgb("image_HW3", image_HW3)
    if image.shape[0] == 0 or image.shape[1] == 0:
        raise ValueError(f"image_HW3 is empty: shape {image.shape}")
    return image
