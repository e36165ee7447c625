"""What tells pixels apart: their features, each divided by its standard deviation."""

# H, W: image; N: pixels; d: feature dimensions.

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from latticecrf.checks import Float32Array


class Features(NamedTuple):
    """Features of an image's pixels, as kernels read them: x, y and colours, or points as given.

    Attributes:
        image: uint8 [H, W, 3], contiguous; read only for colours.
        step_x: x over its sigma, float32 [W].
        step_y: y over its sigma, float32 [H].
        colors: Grey level over its sigma, float32 [3, 256]; [0, 256] leaves colours out.
        points: float32 [d, N]; [0, 0] for an image. Then all the others are empty.
    """

    image: npt.NDArray[np.uint8]
    step_x: Float32Array
    step_y: Float32Array
    colors: Float32Array
    points: Float32Array

    @property
    def pixels(self) -> int:
        """N."""
        return self.points.shape[1] if len(self.points) else self.step_x.size * self.step_y.size

    @property
    def is_grid(self) -> bool:
        """Whether only places tell the pixels apart."""
        return not len(self.points) and not len(self.colors)

    @property
    def dimensions(self) -> int:
        """d."""
        return len(self.points) or 2 + len(self.colors)

    def equal(self, other: Features) -> bool:
        """Whether the other pixels have the same features."""
        pairs: Iterable[tuple[Any, Any]] = zip(self, other, strict=True)
        return all(np.array_equal(mine, its) for mine, its in pairs)

    def ranges(self) -> tuple[Float32Array, Float32Array]:
        """The smallest and the largest value of every feature that may occur, or 0; float32 [d]."""
        zeros = np.zeros(self.dimensions, np.float32)
        if len(self.points):
            return np.minimum(self.points.min(1), zeros), np.maximum(self.points.max(1), zeros)
        peaks = [self.step_x[-1], self.step_y[-1], *self.colors[:, -1]]
        return zeros, np.array(peaks, np.float32)


_NO_POINTS = np.zeros((0, 0), np.float32)


def grid_features(height: int, width: int, sigmas: Sequence[float]) -> Features:
    """The places of a grid's pixels; `sigmas` are those of x and y, pixels."""
    image = np.zeros((1, 1, 3), np.uint8)
    return Features(
        image,
        np.arange(width, dtype=np.float32) / np.float32(sigmas[0]),
        np.arange(height, dtype=np.float32) / np.float32(sigmas[1]),
        np.zeros((0, 256), np.float32),
        _NO_POINTS,
    )


def color_features(
    image_HW3: npt.NDArray[np.uint8], sigmas: Sequence[float], color_sigmas: Sequence[float]
) -> Features:
    """Places and colours of an image's pixels.

    Args:
        image_HW3: uint8 [H, W, 3]; a copy is kept.
        sigmas: Of x and y, pixels.
        color_sigmas: Of the three channels, grey levels.
    """
    height, width = image_HW3.shape[:2]
    levels = np.arange(256, dtype=np.float32)
    colors = np.stack([levels / np.float32(sigma) for sigma in color_sigmas])
    # Kernels are compiled for contiguous, writable arrays only.
    image = np.array(image_HW3, order="C")
    return grid_features(height, width, sigmas)._replace(image=image, colors=colors)


def point_features(points: Float32Array) -> Features:
    """Features as they are, finite, float32 [d, N]; a copy is kept."""
    none = np.zeros(0, np.float32)
    blank = np.zeros((1, 1, 3), np.uint8)
    colors = np.zeros((0, 256), np.float32)
    return Features(blank, none, none, colors, np.array(points, np.float32, order="C"))
