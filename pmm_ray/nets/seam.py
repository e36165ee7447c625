"""SEAM's network: a backbone, a class head, and the pixel correlation module.

Legend: B = batch, C = classes with background, F = feature channels, H, W = input px, h, w =
feature px, N = h * w, M = a chunk of the N columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmm_ray.method.seam_losses import winner_takes_all
from pmm_ray.nets.backbone import Backbone
from pmm_ray.nets.cam_network import CamNetwork

_MARGIN = 1e-5
LOW, HIGH, KEYS = 64, 128, 192
"""Channels of the two projected taps and of the correlated features (released code)."""
# without gradients, correlations are computed in pieces of so many values: 64 MB
_CHUNK_VALUES = 2**24


@torch.no_grad()
def dominant_maps(cam_BChw: Tensor, labels_BC: Tensor | None = None) -> Tensor:
    """Class maps as the correlation mixes them: normalised, winner takes all.

    Every foreground map is divided by its maximum, then see `winner_takes_all`.

    Args:
        cam_BChw: raw class scores, float [B, C, h, w], channel 0 the background.
        labels_BC: 0/1 [B, C - 1], the classes that may compete; None lets all of them.

    Returns:
        float32 [B, C, h, w], 0..1; no gradient.

    Source: released SEAM code; the restriction to the image's labels is ours.
    """
    scores = F.relu(cam_BChw.float())
    maps = F.relu(scores - _MARGIN) / (scores.amax(dim=(2, 3), keepdim=True) + _MARGIN)
    if labels_BC is not None:
        maps[:, 1:] *= labels_BC[:, :, None, None].to(maps.dtype)
    return winner_takes_all(maps)


def correlate(maps_BChw: Tensor, keys_BFhw: Tensor) -> Tensor:
    """Every pixel's class scores as the mean over all pixels, weighted by their similarity.

    Weights are the positive part of the cosine of the keys; those of a pixel sum to 1.

    Args:
        maps_BChw: float [B, C, h, w].
        keys_BFhw: float [B, F, h, w].

    Returns:
        float32 [B, C, h, w]. Without gradients memory is bounded whatever h * w is.

    Source: released SEAM code, `A = relu(K^T K)`, columns divided by their sum + 1e-5.
    """
    batch, _, height, width = maps_BChw.shape
    pixels = height * width
    # half precision would lose the sums over thousands of pixels
    with torch.autocast(maps_BChw.device.type, enabled=False):
        keys_BFN = keys_BFhw.float().flatten(2)
        keys_BFN = keys_BFN / (torch.linalg.vector_norm(keys_BFN, dim=1, keepdim=True) + _MARGIN)
        maps_BCN = maps_BChw.float().flatten(2)
        # a map of ones is mixed along: it becomes the sum of the weights
        maps_BCN = torch.cat([maps_BCN, torch.ones_like(maps_BCN[:, :1])], dim=1)
        step = pixels if torch.is_grad_enabled() else max(1, _CHUNK_VALUES // (pixels * batch))
        queries_BNF = keys_BFN.transpose(1, 2)
        mixed = torch.cat(
            [maps_BCN @ F.relu(queries_BNF @ keys_BFM) for keys_BFM in keys_BFN.split(step, dim=2)],
            dim=2,
        )
        mixed = mixed[:, :-1] / (mixed[:, -1:] + _MARGIN)
    return mixed.reshape(batch, -1, height, width)


class PixelCorrelation(nn.Module):
    """Projections of two taps and the image -> keys -> class maps mixed among similar pixels.

    Its convolutions are the only parameters that its output trains: taps, image and class maps
    enter without gradient.

    Args:
        low_channels: of the earlier tap (512 in the released networks).
        high_channels: of the later tap (1024).

    Source: released SEAM code, the same in the paper's.
    """

    layers = ("f8_3", "f8_4", "f9")

    def __init__(self, low_channels: int, high_channels: int) -> None:
        super().__init__()
        self.f8_3 = nn.Conv2d(low_channels, LOW, 1, bias=False)
        self.f8_4 = nn.Conv2d(high_channels, HIGH, 1, bias=False)
        self.f9 = nn.Conv2d(3 + LOW + HIGH, KEYS, 1, bias=False)
        nn.init.kaiming_normal_(self.f8_3.weight)
        nn.init.kaiming_normal_(self.f8_4.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def forward(
        self,
        cam_BChw: Tensor,
        images_B3HW: Tensor,
        low: Tensor,
        high: Tensor,
        labels_BC: Tensor | None = None,
    ) -> Tensor:
        """Refined class maps.

        Args:
            cam_BChw: raw class scores, channel 0 the background.
            images_B3HW: the network's input, normalised.
            low: the earlier tap, [B, low_channels, *, *]; resized to h x w where it differs.
            high: the later tap, [B, high_channels, *, *]; likewise.
            labels_BC: see `dominant_maps`.

        Returns:
            float32 [B, C, h, w], >= 0.
        """
        size = cam_BChw.shape[2:]
        parts = [
            _resized(images_B3HW.detach(), size),
            _resized(F.relu(self.f8_3(low.detach())), size),
            _resized(F.relu(self.f8_4(high.detach())), size),
        ]
        keys = self.f9(torch.cat(parts, dim=1))
        return correlate(dominant_maps(cam_BChw.detach(), labels_BC), keys)


def _resized(maps_BChw: Tensor, size: torch.Size) -> Tensor:
    if maps_BChw.shape[2:] == size:
        return maps_BChw
    return F.interpolate(maps_BChw, size, mode="bilinear", align_corners=True)


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
