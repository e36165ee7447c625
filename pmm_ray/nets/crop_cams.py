"""Multi-crop CAMs: windows of all scales in one stream of batches, merged as they come.

All windows have one size, so that batches are full whatever the photographs. An image's maps are a
running mean: memory does not grow with the number of windows.
"""

# K: present classes; C: foreground classes; H, W: image; h, w: the network's maps; S: a view.

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pmm_ray.config import CamsConfig
from pmm_ray.method.cams import normalize
from pmm_ray.method.multicrop import Window, WindowMerger
from pmm_ray.nets.batches import Batches, Piece
from pmm_ray.nets.cam_network import CamNetwork
from pmm_ray.nets.transfer import OnTheWay, staged
from pmm_ray.nets.views import crop_windows, cut_windows, normalise_views
from pmm_ray.runtime.core.errors import RowError


class Photograph(NamedTuple):
    """What a CAM is made of."""

    key: Any
    """Comes back with the CAM."""
    pixels_hw3: NDArray[np.uint8]
    """RGB, shrunk to `max_long`."""
    labels: list[int]
    """Present classes, ids from 1."""
    stored: tuple[int, int]
    """Rows and columns of the stored CAM."""


@dataclass
class _Subject:
    """A photograph on its way through the batches."""

    photograph: Photograph
    config: CamsConfig
    model: CamNetwork
    device: torch.device
    rows: Tensor = field(init=False)
    """Of the present classes among the network's C maps, on the device like what follows."""
    present: Tensor = field(init=False)
    """0/1."""
    pixels_13hw: Tensor = field(init=False)
    merger: WindowMerger = field(init=False)

    def __post_init__(self) -> None:
        height, width = self.photograph.pixels_hw3.shape[:2]
        of_classes = np.array(self.photograph.labels) - 1
        present = np.zeros(self.model.num_foreground, np.float32)
        present[of_classes] = 1.0
        self.rows, self.present, pixels_HW3 = (
            staged(array, self.device).to(self.device, non_blocking=True)
            for array in (of_classes, present, self.photograph.pixels_hw3)
        )
        self.pixels_13hw = pixels_HW3.permute(2, 0, 1)[None]
        self.merger = WindowMerger(len(of_classes), height, width, self.device)

    @property
    def held(self) -> int:
        return self.merger.nbytes

    def pieces(self) -> Iterator[Piece]:
        """Windows and their mirror images, one by one."""
        crops, model = self.config.crops, self.model
        height, width = self.photograph.pixels_hw3.shape[:2]
        for of_scale in crop_windows(height, width, crops):
            cut = cut_windows(self.pixels_13hw, of_scale, crops.geometry, crops.size)
            for window, piece in zip(of_scale, cut, strict=True):
                pixels = self._padded(normalise_views(piece, model.input_mean, model.input_std)[0])
                for mirrored in (False, True) if self.config.flip else (False,):
                    seen = torch.stack([pixels.flip(-1) if mirrored else pixels])
                    yield Piece((seen, self.present[None]), partial(self._add, window, mirrored))

    def _padded(self, piece_3hw: Tensor) -> Tensor:
        """[3, S, S]: an image smaller than a window is amid zeros, the mean colour.

        In training it is at a random place of them.
        """
        size = self.config.crops.size
        (top, bottom), (left, right) = (_margins(side, size) for side in piece_3hw.shape[1:])
        return functional.pad(piece_3hw, (left, right, top, bottom))

    def _add(self, window: Window, mirrored: bool, scores_1Chw: Tensor) -> None:
        """Merge the maps of the present classes at the size of a window's place in the image."""
        size = self.config.crops.size
        maps_1Khw = scores_1Chw[0].index_select(0, self.rows)[None].float()
        # first to the view's own size, as the network's own forward does, then to the place's
        maps_1KSS = functional.interpolate(
            maps_1Khw, (size, size), mode="bilinear", align_corners=self.model.align_corners
        )
        if mirrored:
            maps_1KSS = maps_1KSS.flip(-1)
        if self.config.crops.geometry == "paper":
            height, width = window.scaled.height, window.scaled.width
            top, left = _margins(height, size)[0], _margins(width, size)[0]
            maps_1KSS = maps_1KSS[:, :, top : top + height, left : left + width]
        place = (window.original.height, window.original.width)
        maps_1KHW = functional.interpolate(maps_1KSS, place, mode="bilinear", align_corners=False)
        self.merger.add(maps_1KHW[0], window.original)


class CropCams:
    """Maps photographs to CAMs, window by window.

    Args:
        model: in evaluation mode, on `device`.
        config: windows, mirror images, pixels of a pass.
        device: where the model is.
    """

    def __init__(self, model: CamNetwork, config: CamsConfig, device: torch.device) -> None:
        self._model = model
        self.config = config
        self._device = device
        self.batches = Batches(model.cam_scores, config.pass_pixels, device)

    def __call__(
        self, photographs: Iterable[Photograph]
    ) -> Iterator[tuple[Any, NDArray[np.float16]]]:
        """CAMs of photographs.

        Yields:
            (key, float16 [K, *stored], 0..1) in the order of the photographs; see `stored_map`.
        """
        for photograph, mean_KHW in self.merged(photographs):
            (array_KHW,) = OnTheWay(mean_KHW).arrays()
            yield photograph.key, stored_map(photograph, array_KHW)

    @torch.inference_mode()
    def merged(self, photographs: Iterable[Photograph]) -> Iterator[tuple[Photograph, Tensor]]:
        """Maps before they are normalised and stored.

        Yields:
            (photograph, float32 [K, H, W] on the model's device), in the order of the photographs:
            the mean over all views of a px, mirror images included.

        Source: paper 3.5; released code.
        """
        config, model, device = self.config, self._model, self._device
        subjects = (_Subject(photograph, config, model, device) for photograph in photographs)
        for subject in self.batches(subjects):
            yield subject.photograph, subject.merger.mean()


def stored_map(photograph: Photograph, mean_KHW: NDArray[np.float32]) -> NDArray[np.float16]:
    """The finished CAM at storage size, 0..1.

    Args:
        photograph: whose map it is.
        mean_KHW: from `CropCams.merged`.

    Raises:
        RowError: `nonfinite`.

    Source: released code (the "multi_crop" normalisation over the whole image).
    """
    if not np.isfinite(mean_KHW).all():
        raise RowError("nonfinite", "the classifier's scores are not finite")
    height, width = photograph.stored
    maps = [
        cv2.resize(map_HW, (width, height), interpolation=cv2.INTER_AREA)
        for map_HW in normalize(mean_KHW, "multi_crop")
    ]
    return np.stack(maps).astype(np.float16)


def _margins(side: int, size: int) -> tuple[int, int]:
    """Zeros before and after a side that is shorter than the window's."""
    before = (size - side) // 2
    return before, size - side - before
