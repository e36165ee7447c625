"""A network that tests can work out by hand, and a segmenter asked of one photograph."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pmm_ray.config import PredictConfig
from pmm_ray.nets.cam_network import CamNetwork
from pmm_ray.nets.segmenter_views import SegmenterViews, checked, make_views


class Colours(CamNetwork):
    """Class i is colour channel `order[i]`: it knows every class and every place."""

    align_corners = False

    def __init__(self, order: tuple[int, ...] = (0, 1, 2)) -> None:
        torch.nn.Module.__init__(self)
        self.num_foreground = 3
        self.input_mean, self.input_std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
        self._order = list(order)

    def forward(self, images_B3HW: Any) -> tuple[torch.Tensor, torch.Tensor]:
        maps = self.cam_scores(images_B3HW)
        return maps.mean(dim=(2, 3)), maps

    def cam_scores(self, images_B3HW: Any, labels_BC: Any = None) -> torch.Tensor:
        scores: torch.Tensor = images_B3HW[:, self._order]
        return scores


def mean_probabilities(
    image_HW3: NDArray[np.uint8], model: nn.Module, config: PredictConfig, device: torch.device
) -> NDArray[np.float32]:
    """See `SegmenterViews`, of one photograph, on the CPU.

    Raises:
        RowError: `nonfinite` when the network's output is not finite.
    """
    views = make_views(image_HW3, config, device)
    photographs = [(None, views, image_HW3.shape[:2])]
    ((_, mean_CHW),) = SegmenterViews(model, config, device).probabilities(photographs)
    found: NDArray[np.float32] = mean_CHW.cpu().numpy()
    return checked(found)
