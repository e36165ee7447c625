"""What every classifier offers to the stages: class score maps, and what of it is trained how."""

from __future__ import annotations

from typing import Self

from torch import Tensor, nn

from pmm_ray.nets.backbone import Backbone, freeze, norms
from pmm_ray.nets.imagenet_head import ImagenetHead
from pmm_ray.nets.weights import Loaded


class CamNetwork(nn.Module):
    """A classifier whose score maps become CAMs.

    Args:
        backbone: gives the features; decides the normalisation of the input.
        num_foreground: C.
        freeze_norm: keep BatchNorm in evaluation mode and its parameters fixed while training.
        freeze_first: keep the backbone's `first_layers` fixed while training.
        freeze_backbone: keep all of it fixed.
    """

    head_layers: tuple[str, ...]
    """Names of the new layers, which start from random values and learn faster."""
    align_corners: bool
    """How `cam_scores` are brought to the input's size (bilinear)."""
    backbone: Backbone
    loaded: Loaded | None = None
    """What the weights file gave, if there was one."""

    def __init__(
        self,
        backbone: Backbone,
        num_foreground: int,
        *,
        freeze_norm: bool,
        freeze_first: bool,
        freeze_backbone: bool = False,
    ) -> None:
        super().__init__()
        self.num_foreground = num_foreground
        self.input_mean = backbone.input_mean
        self.input_std = backbone.input_std
        if freeze_first:
            freeze(backbone, backbone.first_layers)
        if freeze_backbone:
            backbone.requires_grad_(False)
        self._frozen_norms = tuple(norms(backbone)) if freeze_norm else ()
        for norm in self._frozen_norms:
            norm.requires_grad_(False)

    def cam_scores(self, images_B3HW: Tensor, labels_BC: Tensor | None = None) -> Tensor:
        """Raw class scores for CAMs, float32 [B, C, h, w]; channel i is foreground id i + 1.

        Args:
            images_B3HW: float32 [B, 3, H, W], normalised with `input_mean` and `input_std`.
            labels_BC: 0/1 [B, C], the images' classes; only `pcm.gate_labels` uses them.
        """
        raise NotImplementedError

    def start_from(self, head: ImagenetHead) -> None:
        """Give the class head the rows of the classes that are known."""
        raise NotImplementedError

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for norm in self._frozen_norms:
            norm.eval()
        return self
