"""Multi-scale CAMs: whole images at several scales, their maps summed (Eq. 1)."""

# K: present classes; C: foreground classes; H, W: image; h, w: the network's maps.

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pmm_ray.config import CamsConfig
from pmm_ray.method.cams import normalize
from pmm_ray.nets.batches import Batches, Piece
from pmm_ray.nets.cam_network import CamNetwork
from pmm_ray.nets.transfer import OnTheWay, staged
from pmm_ray.nets.views import normalise_views
from pmm_ray.runtime.core.errors import RowError

Key = TypeVar("Key")


def stored_size(height: int, width: int, stride: int) -> tuple[int, int]:
    """Rows and columns of the stored CAM: the image's, divided by `stride` and rounded up."""
    return -(-height // stride), -(-width // stride)


def view_sizes(height: int, width: int, config: CamsConfig) -> list[tuple[int, int]]:
    """(rows, columns) of each scale's view, px, after `max_long` has shrunk large images."""
    shrink = min(1.0, config.max_long / max(height, width))
    return [
        (max(1, round(height * shrink * scale)), max(1, round(width * shrink * scale)))
        for scale in config.scales
    ]


@dataclass(frozen=True)
class ScaledImage:
    """What the network takes of an image, on the CPU.

    Attributes:
        views: one a scale, uint8 [rows, columns, 3].
        rows: of the present classes among the network's C maps, int64 [K].
        present: 0/1, float32 [1, C].
        full: size of the summed maps, px.
    """

    views: list[Tensor]
    rows: Tensor
    present: Tensor
    full: tuple[int, int]


@dataclass
class _Subject(Generic[Key]):
    """A photograph whose maps are being summed."""

    key: Key
    image: ScaledImage
    model: CamNetwork
    flip: bool
    device: torch.device
    total: Tensor = field(init=False)
    """Of the maps so far, float32 [K, *full]."""

    def __post_init__(self) -> None:
        shape = (len(self.image.rows), *self.image.full)
        self.total = torch.zeros(shape, device=self.device)

    @property
    def held(self) -> int:
        return self.total.nbytes

    def pieces(self) -> Iterator[Piece]:
        """A view of each scale with its mirror image."""
        device, model = self.device, self.model
        rows_K = self.image.rows.to(device, non_blocking=True)
        present_1C = self.image.present.to(device, non_blocking=True)
        for view in self.image.views:
            pixels_3HW = view.to(device, non_blocking=True).permute(2, 0, 1)
            batch = torch.stack([pixels_3HW, pixels_3HW.flip(-1)] if self.flip else [pixels_3HW])
            views = normalise_views(batch, model.input_mean, model.input_std)
            present_BC = present_1C.expand(len(views), -1)
            height, width = views.shape[2:]
            yield Piece((views, present_BC), partial(self._add, rows_K, (height, width)))

    def _add(self, rows_K: Tensor, size: tuple[int, int], scores_BChw: Tensor) -> None:
        maps = scores_BChw.index_select(1, rows_K)
        maps = functional.interpolate(
            maps.float(), size, mode="bilinear", align_corners=self.model.align_corners
        )
        maps = functional.interpolate(maps, self.image.full, mode="bilinear", align_corners=False)
        self.total += maps[0] + maps[1].flip(-1) if self.flip else maps[0]


class ScaleCams:
    """Maps images to CAMs in three steps: `prepare` on the CPU, `scores` on the device, `stored`.

    Args:
        model: scores class maps, [B, C, h, w]; in evaluation mode, on `device`.
        config: scales, flip, storage stride, pixels of a pass.
        device: where the model is.

    Source: SEAM's multi-scale CAM (PIL bicubic views; maps brought to the view's size as the
    network does it, then to the image's; summed, negatives dropped, min-max with a margin of
    1e-5). The result is then stored smaller; images above `max_long` have that size here.
    """

    def __init__(self, model: CamNetwork, config: CamsConfig, device: torch.device) -> None:
        self._model = model
        self.config = config
        self._device = device
        self.batches = Batches(model.cam_scores, config.pass_pixels, device)

    def prepare(self, image_HW3: NDArray[np.uint8], labels: list[int]) -> ScaledImage:
        """The views of an image.

        Args:
            image_HW3: RGB, uint8.
            labels: present classes, contiguous ids from 1.
        """
        height, width = image_HW3.shape[:2]
        config, device = self.config, self._device
        image = Image.fromarray(image_HW3)
        (full,) = view_sizes(height, width, config.model_copy(update={"scales": (1.0,)}))
        rows = np.array(labels) - 1
        present_1C = np.zeros((1, self._model.num_foreground), np.float32)
        present_1C[:, rows] = 1.0
        return ScaledImage(
            views=[
                staged(np.array(image.resize(size[::-1], Image.Resampling.BICUBIC)), device)
                for size in view_sizes(height, width, config)
            ],
            rows=staged(rows, device),
            present=staged(present_1C, device),
            full=full,
        )

    @torch.inference_mode()
    def scores(self, images: Iterable[tuple[Key, ScaledImage]]) -> Iterator[tuple[Key, OnTheWay]]:
        """Sums of the class score maps over scales and mirror images.

        Args:
            images: each with a key that comes back with its sum.

        Yields:
            (key, float32 [K, *full]), in the order of the images.
        """
        flip, device = self.config.flip, self._device
        subjects = (_Subject(key, image, self._model, flip, device) for key, image in images)
        for subject in self.batches(subjects):
            yield subject.key, OnTheWay(subject.total)

    def stored(self, scores_KHW: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.float16]:
        """The summed maps normalised, then at storage size, float16 [K, *size], 0..1.

        Raises:
            RowError: `nonfinite` when the model's scores are not finite.
        """
        if not np.isfinite(scores_KHW).all():
            raise RowError("nonfinite", "the classifier's scores are not finite")
        # before storing: extremes of fewer px would stretch the map otherwise
        normal_1KHW = torch.from_numpy(normalize(scores_KHW, "multi_scale"))[None]
        stored = functional.interpolate(normal_1KHW, size, mode="bilinear", align_corners=False)
        return stored[0].numpy().astype(np.float16)

    def __call__(self, image_HW3: NDArray[np.uint8], labels: list[int]) -> NDArray[np.float16]:
        """The CAM of one image, see the three steps."""
        image = self.prepare(image_HW3, labels)
        ((_, on_the_way),) = self.scores([(None, image)])
        (scores_KHW,) = on_the_way.arrays()
        height, width = image_HW3.shape[:2]
        return self.stored(scores_KHW, stored_size(height, width, self.config.stride))
