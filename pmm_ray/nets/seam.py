"""SEAM's network: a backbone, a class head, and the pixel correlation module.

Legend: B = batch, C = classes with background, H, W = input px, h, w = feature px.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from pmm_ray.nets.backbone import Backbone
from pmm_ray.nets.cam_network import CamNetwork
from pmm_ray.nets.pixel_correlation import PixelCorrelation


class SeamNetwork(CamNetwork):
    """SEAM: class maps of a backbone, and the same refined by the pixel correlation module.

    The layers of backbone and module are this network's own: its state dict has the names of the
    public checkpoints (`conv1.weight`, ..., `fc8.weight`, `f8_3.weight`, `f8_4.weight`,
    `f9.weight`).

    Args:
        backbone: any of the registry.
        num_foreground: C - 1.
        taps: names of the two features that the module correlates, the earlier first.
        dropout: of whole channels before the class head (released code: 0.5 for ResNet38, else 0).
        gate_labels: only the image's classes compete inside the module (released code: all do).
        frozen: see `OnBackbone`; released code: the first layers are kept.

    Source: released SEAM code; the paper's classifier is the same with another backbone.
    """

    head_layers = ("fc8", *PixelCorrelation.layers)
    align_corners = True
    correlation: PixelCorrelation

    def __init__(
        self,
        backbone: Backbone,
        num_foreground: int,
        *,
        taps: tuple[str, str],
        dropout: float = 0.0,
        gate_labels: bool = False,
        **frozen: bool,
    ) -> None:
        super().__init__(backbone, num_foreground, **frozen)
        self.gate_labels = gate_labels
        names = [info.name for info in backbone.features]
        self._low, self._high = (names.index(name) for name in taps)
        channels = [info.channels for info in backbone.features]
        correlation = PixelCorrelation(channels[self._low], channels[self._high])
        self._dropout = nn.Dropout2d(dropout)
        self.adopt("backbone", backbone)
        self.fc8 = nn.Conv2d(channels[-1], 1 + num_foreground, 1, bias=False)
        nn.init.xavier_uniform_(self.fc8.weight)
        self.adopt("correlation", correlation)

    def forward(
        self, images_B3HW: Tensor, labels_BC: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Raw and refined class maps at input size (bilinear, align_corners).

        Args:
            images_B3HW: float32 [B, 3, H, W], normalised with `input_mean` and `input_std`.
            labels_BC: 0/1 [B, C - 1], the images' classes; needed with `gate_labels`, else unused.

        Returns:
            (cam, cam_rv), both [B, C, H, W]; channel 0 is the background, channel i class id i.
            cam has any sign, cam_rv is >= 0. Gradients of cam reach the backbone and fc8, those of
            cam_rv the module's f8_3, f8_4 and f9 only.

        Raises:
            ValueError: `gate_labels` without labels.
        """
        cam, refined = self.maps(images_B3HW, labels_BC)
        size = images_B3HW.shape[2:]
        return (
            F.interpolate(cam, size, mode="bilinear", align_corners=self.align_corners),
            F.interpolate(refined, size, mode="bilinear", align_corners=self.align_corners),
        )

    def maps(self, images_B3HW: Tensor, labels_BC: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(cam, cam_rv) as `forward` gives them, at feature size [B, C, h, w]."""
        if self.gate_labels and labels_BC is None:
            raise ValueError("pcm.gate_labels needs the labels of the images")
        taps = self.backbone.forward_features(images_B3HW)
        cam = self.fc8(self._dropout(taps[-1]))
        refined = self.correlation(
            cam,
            images_B3HW,
            taps[self._low],
            taps[self._high],
            labels_BC if self.gate_labels else None,
        )
        return cam, refined

    def cam_scores(self, images_B3HW: Tensor, labels_BC: Tensor | None = None) -> Tensor:
        """Refined class maps without the background, float32 [B, C - 1, h, w]; see `CamNetwork`.

        Raises:
            ValueError: `gate_labels` without labels.
        """
        return self.maps(images_B3HW, labels_BC)[1][:, 1:].float()

    def image_scores(self, images_B3HW: Tensor, labels_BC: Tensor | None = None) -> Tensor:
        """Of the maps that are not refined: the ones that learn from image-level labels."""
        return self.maps(images_B3HW, labels_BC)[0][:, 1:].mean(dim=(2, 3)).float()
