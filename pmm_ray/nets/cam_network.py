"""What every classifier offers to the stages: class score maps, and what of it is trained how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from pmm_ray.nets.backbone import Backbone, OnBackbone
from pmm_ray.nets.imagenet_head import ImagenetHead


def present_classes(labels: Sequence[int], num_foreground: int) -> Tensor:
    """Labels 1..C as 0/1 float32 [C]."""
    present_C = torch.zeros(num_foreground)
    present_C[[label - 1 for label in labels]] = 1.0
    return present_C


class CamNetwork(OnBackbone, ABC):
    """A classifier whose score maps become CAMs.

    Args:
        num_foreground: C.
        frozen: see `OnBackbone`.
    """

    head_layers: tuple[str, ...]
    """Names of the new layers, which learn faster: the class head, whose last C rows are the
    foreground's, and what else starts from random values."""
    align_corners: bool
    """How `cam_scores` are brought to the input's size (bilinear)."""

    def __init__(self, backbone: Backbone, num_foreground: int, **frozen: bool) -> None:
        super().__init__(backbone, **frozen)
        self.num_foreground = num_foreground

    @abstractmethod
    def cam_scores(self, images_B3HW: Tensor, labels_BC: Tensor | None = None) -> Tensor:
        """Raw class scores for CAMs, float32 [B, C, h, w]; channel i is foreground id i + 1.

        Args:
            images_B3HW: float32 [B, 3, H, W], normalised with `input_mean` and `input_std`.
            labels_BC: 0/1 [B, C], the images' classes; only `pcm.gate_labels` uses them.
        """

    def image_scores(self, images_B3HW: Tensor, labels_BC: Tensor | None = None) -> Tensor:
        """Image-level class scores before the sigmoid, float32 [B, C]; arguments of `cam_scores`.

        The mean of the maps, where a network has no other.
        """
        return self.cam_scores(images_B3HW, labels_BC).mean(dim=(2, 3))

    def start_from(self, start: ImagenetHead) -> None:
        """Give the class head the rows, and the biases where it has some, of the known classes."""
        head = cast(nn.Conv2d, self.get_submodule(self.head_layers[0]))
        known = torch.tensor(start.known)
        with torch.no_grad():
            head.weight[-len(known) :][known] = start.weight[known][:, :, None, None]
            if head.bias is not None:
                head.bias[known] = start.bias[known]
