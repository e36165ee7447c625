"""The segmenter on photographs at test time: scales, mirror images, windows, softmax mean."""

# B: a view and its mirror image; C: classes with the background; H, W: the view or its window.

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from pmm_ray.config import PredictConfig
from pmm_ray.nets.batches import Batches, Piece
from pmm_ray.nets.segmenter import Description, description_of, predict_logits
from pmm_ray.nets.transfer import staged
from pmm_ray.nets.views import normalise_views
from pmm_ray.runtime.core.errors import RowError

Key = TypeVar("Key")
Place = tuple[slice, slice]
"""Rows and columns of a window."""


def view_size(height: int, width: int, base: tuple[int, int], ratio: float) -> tuple[int, int]:
    """(rows, columns) of a view: the largest that fits `base` (long, short) times `ratio`."""
    long, short = max(base) * ratio, min(base) * ratio
    scale = min(long / max(height, width), short / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def window_starts(length: int, crop: int, stride: int) -> list[int]:
    """Where the windows along one side begin: every `stride`, the last one ending with the side."""
    steps = max(0, -(-(length - crop) // stride))
    return [max(0, min(step * stride, length - crop)) for step in range(steps + 1)]


def make_views(
    image_HW3: NDArray[np.uint8], config: PredictConfig, device: torch.device
) -> list[Tensor]:
    """A photograph at each ratio of the base size, uint8 [rows, columns, 3], on the CPU.

    Args:
        image_HW3: RGB, uint8.
        config: ratios, base size.
        device: where the views will go, see `staged`.
    """
    height, width = image_HW3.shape[:2]
    sizes = [view_size(height, width, config.resize_base, ratio) for ratio in config.ratios]
    return [
        staged(cv2.resize(image_HW3, size[::-1], interpolation=cv2.INTER_LINEAR), device)
        for size in sizes
    ]


def _places(height: int, width: int, config: PredictConfig) -> list[Place]:
    """Of the windows of a view; in mode `whole` of the view itself."""
    if config.mode == "whole":
        return [(slice(0, height), slice(0, width))]
    rows, columns = min(config.crop_size, height), min(config.crop_size, width)
    return [
        (slice(y, y + rows), slice(x, x + columns))
        for y in window_starts(height, config.crop_size, config.stride)
        for x in window_starts(width, config.crop_size, config.stride)
    ]


@dataclass
class _View:
    """Logits of a view and its mirror image, as far as windows of it were seen."""

    size: tuple[int, int]
    left: int
    """Windows that were not."""
    total: Tensor | None = None
    """Of the logits, float32 [B, C, *size]."""
    count: Tensor | None = None
    """Of the windows at each px, float32 [*size]."""

    def add(self, place: Place, logits_BChw: Tensor) -> None:
        if self.total is None or self.count is None:
            self.total = logits_BChw.new_zeros((*logits_BChw.shape[:2], *self.size))
            self.count = logits_BChw.new_zeros(self.size)
        self.total[:, :, *place] += logits_BChw
        self.count[place] += 1
        self.left -= 1

    def mean(self) -> Tensor:
        """[B, C, *size]: averaged where windows overlap. Asked for once: the sums go."""
        total, count = self.total, self.count
        assert total is not None
        assert count is not None
        self.total = self.count = None
        return total / count


@dataclass
class _Subject(Generic[Key]):
    """A photograph whose probabilities are being summed."""

    key: Key
    views: Sequence[Tensor]
    size: tuple[int, int]
    about: Description
    config: PredictConfig
    device: torch.device
    total: Tensor | None = None
    """Of the probabilities, float32 [C, *size]."""

    @property
    def held(self) -> int:
        return 0 if self.total is None else self.total.nbytes

    def pieces(self) -> Iterator[Piece]:
        """The windows of all views, each with its mirror image."""
        about, flip = self.about, self.config.flip
        for seen in self.views:
            pixels_3HW = seen.to(self.device, non_blocking=True).permute(2, 0, 1)
            both = torch.stack([pixels_3HW, pixels_3HW.flip(-1)] if flip else [pixels_3HW])
            views_B3HW = normalise_views(both, about.input_mean, about.input_std)
            height, width = views_B3HW.shape[2:]
            places = _places(height, width, self.config)
            view = _View((height, width), len(places))
            for place in places:
                window = torch.stack([one[:, *place] for one in views_B3HW])
                yield Piece((window,), partial(self._add, view, place))

    def _add(self, view: _View, place: Place, logits_BChw: Tensor) -> None:
        view.add(place, logits_BChw)
        if view.left:
            return
        logits = functional.interpolate(
            view.mean(), self.size, mode="bilinear", align_corners=False
        )
        probabilities = logits.softmax(1)
        if self.config.flip:
            probabilities[1] = probabilities[1].flip(-1)
        summed = probabilities.sum(0)
        self.total = summed if self.total is None else self.total.add_(summed)

    def mean(self) -> Tensor:
        assert self.total is not None
        return self.total.div_(len(self.views) * (1 + self.config.flip))


class SegmenterViews:
    """Maps photographs to class probabilities: the mean of the softmax over views.

    Args:
        model: from `load_segmenter`, in eval mode, on `device`.
        config: flip, mode, window, stride, pixels of a pass.
        device: where the model is.

    Source: released code's test pipeline, section 4 of the paper. Windows of mode `slide` are
    clipped where a side is shorter, and the logits of windows that overlap are averaged
    (mmsegmentation's slide inference); logits are resized to the image before the softmax.
    """

    def __init__(self, model: nn.Module, config: PredictConfig, device: torch.device) -> None:
        self._about = description_of(model)
        self._config = config
        self._device = device
        self.batches = Batches(partial(predict_logits, model), config.pass_pixels, device)

    @torch.inference_mode()
    def probabilities(
        self, photographs: Iterable[tuple[Key, Sequence[Tensor], tuple[int, int]]]
    ) -> Iterator[tuple[Key, Tensor]]:
        """Means over views and their mirror images, on the device; waits for nothing.

        Args:
            photographs: a key that comes back, views from `make_views`, rows and columns.

        Yields:
            (key, float32 [C, H, W]), in the order of the photographs; sums to 1 over C. NaN where
            the network's output is not finite.
        """
        about, config, device = self._about, self._config, self._device
        subjects = (
            _Subject(key, views, size, about, config, device) for key, views, size in photographs
        )
        for subject in self.batches(subjects):
            yield subject.key, subject.mean()


def checked(mean_CHW: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities as they are.

    Raises:
        RowError: `nonfinite`.
    """
    # a sum needs no array of flags; what is not finite stays in it
    if not np.isfinite(mean_CHW.sum()):
        raise RowError("nonfinite", "the segmenter's output is not finite")
    return mean_CHW
