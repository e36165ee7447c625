"""Multi-scale CAMs: whole images at several scales, their maps summed (Eq. 1)."""

# K: present classes; C: foreground classes; H, W: image; h, w: the network's maps.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from pmm_ray.config import CamsConfig
from pmm_ray.method.cams import normalize
from pmm_ray.nets.cam_network import CamNetwork
from pmm_ray.nets.halving import in_halves
from pmm_ray.nets.transfer import OnTheWay, staged
from pmm_ray.nets.views import normalise_views
from pmm_ray.runtime.core.errors import RowError


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
        stored: size of the stored CAM, px.
    """

    views: list[Tensor]
    rows: Tensor
    present: Tensor
    full: tuple[int, int]
    stored: tuple[int, int]


class ScaleCams:
    """Maps images to CAMs in three steps: `prepare` on the CPU, `scores` on the device, `stored`.

    Args:
        model: scores class maps, [B, C, h, w]; in evaluation mode, on `device`.
        config: scales, flip, storage stride.
        device: where the model is.

    Source: SEAM's multi-scale CAM (PIL bicubic views; maps brought to the view's size as the
    network does it, then to the image's; summed, negatives dropped, min-max with a margin of
    1e-5). The result is then stored smaller; images above `max_long` have that size here.
    """

    def __init__(self, model: CamNetwork, config: CamsConfig, device: torch.device) -> None:
        self._model = model
        self._config = config
        self._device = device

    def prepare(self, image_HW3: NDArray[np.uint8], labels: list[int]) -> ScaledImage:
        """The views of an image.

        Args:
            image_HW3: RGB, uint8.
            labels: present classes, contiguous ids from 1.
        """
        height, width = image_HW3.shape[:2]
        config, device = self._config, self._device
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
            stored=stored_size(height, width, config.stride),
        )

    @torch.inference_mode()
    def scores(self, image: ScaledImage) -> OnTheWay:
        """Sum of the class score maps over scales and mirror images, float32 [K, *full]."""
        config, device, model = self._config, self._device, self._model
        rows_K = image.rows.to(device, non_blocking=True)
        present_1C = image.present.to(device, non_blocking=True)
        total_KHW = torch.zeros((len(rows_K), *image.full), device=device)
        for view in image.views:
            pixels_3HW = view.to(device, non_blocking=True).permute(2, 0, 1)
            batch = torch.stack([pixels_3HW, pixels_3HW.flip(-1)] if config.flip else [pixels_3HW])
            views = normalise_views(batch, model.input_mean, model.input_std)
            present_BC = present_1C.expand(len(views), -1)
            maps = in_halves(model.cam_scores, views, present_BC).index_select(1, rows_K)
            maps = functional.interpolate(
                maps.float(), views.shape[2:], mode="bilinear", align_corners=model.align_corners
            )
            maps = functional.interpolate(maps, image.full, mode="bilinear", align_corners=False)
            total_KHW += maps[0] + maps[1].flip(-1) if config.flip else maps[0]
        return OnTheWay(total_KHW)

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
        (scores_KHW,) = self.scores(image).arrays()
        return self.stored(scores_KHW, image.stored)
