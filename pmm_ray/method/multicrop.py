"""Windows of an image at many scales: where they are, how their maps are merged, what they show.

A window is a piece of the image scaled by s. `paper` geometry resizes the image and cuts windows
of one size, each `stride` after the last, so that they overlap. The `released` code cuts `stride`
wide, abutting windows (the last of an axis is `size` wide), takes them from the original image and
stretches them to `size`: an interior window is magnified by size / stride more than s says.
"""

# K: classes; H, W: the image; a window's own px are those of the image scaled by s.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from latticecrf.checks import check_array
from latticecrf.ranges import check_number

Geometry = Literal["paper", "released"]


class Box(NamedTuple):
    """Rows `top` .. `bottom - 1` and columns `left` .. `right - 1`."""

    top: int
    bottom: int
    left: int
    right: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.top, self.bottom), slice(self.left, self.right)


@dataclass(frozen=True)
class Window:
    """One window.

    Attributes:
        scale: of the image it belongs to.
        scaled_height, scaled_width: size of the whole image at that scale, px.
        scaled: its place in the scaled image.
        original: its place in the image itself, at least one px.
    """

    scale: float
    scaled_height: int
    scaled_width: int
    scaled: Box
    original: Box


def axis_windows(side: int, size: int, stride: int, geometry: Geometry) -> list[tuple[int, int]]:
    """(first, past the last) px of the windows along one axis of a scaled image.

    Args:
        side: of the scaled image, px, at least 1.
        size: of a window, px.
        stride: from window to window, px, at most `size`.
        geometry: `paper`: all windows are `size` long (the whole side where it is shorter), the
            last one ends at the border. `released`: all but the last are `stride` long.

    Raises:
        ValueError: a number out of range.

    Source: paper 3.5 (448 px, stride 300); released code.
    """
    if side < 1 or not 1 <= stride <= size:
        raise ValueError(f"windows of {size} px every {stride} px do not fit a side of {side} px")
    if geometry not in ("paper", "released"):
        raise ValueError(f"unknown geometry {geometry!r}: paper, released")
    count = 1 + math.ceil(max(0, side - size) / stride)
    length = size if geometry == "paper" else stride
    inner = [(i * stride, min(side, i * stride + length)) for i in range(count - 1)]
    return [*inner, (max(0, side - size), side)]


def windows(
    height: int,
    width: int,
    scales: Sequence[float],
    *,
    geometry: Geometry = "paper",
    size: int = 448,
    stride: int = 300,
) -> list[list[Window]]:
    """All windows of an image, by scale, columns outside, rows inside (released code's order).

    Args:
        height, width: of the image, px.
        scales: of the image.
        geometry, size, stride: see `axis_windows`.

    Returns:
        One list per scale. With the ten scales of the paper an image of 500 x 375 px has 87.

    Raises:
        ValueError: a number out of range.

    Source: paper 3.5; released code: places in the image are divided by the scale and truncated.
        `paper` rounds them outwards, so that its windows leave no px uncovered.
    """
    if height < 1 or width < 1 or not scales:
        raise ValueError(f"no windows of an image of {height} x {width} px at scales {scales}")
    found = []
    for scale in scales:
        check_number("scale", scale, 0.0, low_open=True)
        rows, columns = max(1, int(height * scale)), max(1, int(width * scale))
        down = axis_windows(rows, size, stride, geometry)
        across = axis_windows(columns, size, stride, geometry)
        found.append(
            [
                Window(
                    scale=scale,
                    scaled_height=rows,
                    scaled_width=columns,
                    scaled=Box(top, bottom, left, right),
                    original=Box(
                        *_original(top, bottom, rows, height, scale, geometry),
                        *_original(left, right, columns, width, scale, geometry),
                    ),
                )
                for left, right in across
                for top, bottom in down
            ]
        )
    return found


def _original(
    first: int, last: int, scaled: int, side: int, scale: float, geometry: Geometry
) -> tuple[int, int]:
    if geometry == "released":
        start, end = int(first / scale), int(last / scale)
    else:
        # whole px that the window touches; the scaled side may have been rounded
        start, end = first * side // scaled, -(-last * side // scaled)
    start = min(start, side - 1)
    return start, max(start + 1, min(end, side))


class WindowMerger:
    """Running mean of the windows' maps: memory does not grow with their number.

    Args:
        classes: K.
        height, width: of the image, px.
        device: where the maps are.
    """

    def __init__(
        self, classes: int, height: int, width: int, device: torch.device | str = "cpu"
    ) -> None:
        # float64 as in the released code: hundreds of overlapping views are summed
        self._sum_KHW = torch.zeros(classes, height, width, dtype=torch.float64, device=device)
        self._count_HW = torch.zeros(height, width, dtype=torch.int32, device=device)

    @property
    def nbytes(self) -> int:
        """Of the sums and counts."""
        return self._sum_KHW.nbytes + self._count_HW.nbytes

    def add(self, maps_KHW: Tensor, place: Box) -> None:
        """Add a window's maps.

        Args:
            maps_KHW: floating [K, rows, columns] of the place, turned back if it was mirrored.
            place: in the image.

        Raises:
            ValueError: the maps do not fit the place.
        """
        rows, columns = place.slices
        sums = self._sum_KHW[:, rows, columns]
        if maps_KHW.shape != sums.shape or maps_KHW.shape[1:] != (place.height, place.width):
            raise ValueError(f"maps {list(maps_KHW.shape)} do not fit {place}")
        sums += maps_KHW
        self._count_HW[rows, columns] += 1

    def mean(self) -> Tensor:
        """float32 [K, H, W]: the mean of what covered each px; 0 where nothing did.

        Source: released code (a px that no window covered is divided by one).
        """
        return (self._sum_KHW / self._count_HW.clamp(min=1)).float()


def relabel(
    base_HW: npt.NDArray[np.integer[Any]],
    place: Box,
    share: float = 0.1,
    totals: Mapping[int, int] | None = None,
) -> list[int]:
    """The classes that a window shows, by its base mask.

    Args:
        base_HW: base mask, class ids, 0 where no class is confident; other ids are classes.
        place: of the window.
        share: a class counts if the window holds more than this share of the class's px in the
            image, or if more than this share of the window is of the class, 0..1.
        totals: px of each class in the image, if they are known already.

    Returns:
        Class ids, ascending; empty where no class counts.

    Raises:
        ValueError: the place is outside the mask, or the share is out of range.

    Source: paper 3.5 (10 %); released code (strictly more).
    """
    check_array("base_HW", base_HW, "HW", kinds="iu")
    check_number("share", share, 0.0, 1.0)
    rows, columns = place.slices
    inside = base_HW[rows, columns]
    if inside.shape != (place.height, place.width) or inside.size == 0:
        raise ValueError(f"{place} is outside a mask of {base_HW.shape}")
    totals = class_sizes(base_HW) if totals is None else totals
    return [
        label
        for label, count in sorted(class_sizes(inside).items())
        if count > share * totals[label] or count > share * inside.size
    ]


def class_sizes(base_HW: npt.NDArray[np.integer[Any]]) -> dict[int, int]:
    """Px of each class id above 0."""
    ids, counts = np.unique(base_HW, return_counts=True)
    return {int(i): int(n) for i, n in zip(ids, counts, strict=True) if i > 0}


def random_window(
    choices: Sequence[Sequence[Window]],
    base_HW: npt.NDArray[np.integer[Any]],
    rng: np.random.Generator,
    share: float = 0.1,
) -> tuple[Window, list[int]]:
    """A training window with its labels: a scale, then a window of it, each equally likely.

    A window that shows no class is chosen again within its scale, at most as often as the scale has
    windows; the last one is kept even then.

    Args:
        choices: from `windows`.
        base_HW: see `relabel`; a value of 255 or more in it is an ordinary class id.
        rng: the only source of randomness.
        share: see `relabel`.

    Returns:
        The window and its class ids, ascending.

    Raises:
        ValueError: see `relabel`.

    Source: released code.
    """
    totals = class_sizes(base_HW)
    of_scale = choices[int(rng.integers(len(choices)))]
    for _ in of_scale:
        window = of_scale[int(rng.integers(len(of_scale)))]
        labels = relabel(base_HW, window.original, share, totals)
        if labels:
            break
    return window, labels
