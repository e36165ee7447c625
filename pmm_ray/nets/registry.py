"""Classifiers by name: a backbone, a 1x1 class head, and class scores for the CAMs.

Legend: B = batch, C = foreground classes, H, W = input px, h, w = feature px.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pmm_ray.config import ClassifierConfig
from pmm_ray.nets import efficientnet_lite
from pmm_ray.nets.checkpoints import load_model, stored_section
from pmm_ray.nets.weights import load_backbone_weights, load_strict


class CamClassifier(nn.Module):
    """A backbone and a bias-free 1x1 convolution; its maps are the CAM scores (reference: SEAM).

    Args:
        backbone: gives `forward(images) -> [B, channels, h, w]`.
        channels: channels of that feature.
        num_foreground: C.
        input_mean, input_std: normalisation of RGB in 0..1 that the backbone expects.
        freeze_norm: keep BatchNorm in evaluation mode and its parameters fixed while training.
    """

    def __init__(
        self,
        backbone: nn.Module,
        channels: int,
        num_foreground: int,
        *,
        input_mean: tuple[float, float, float],
        input_std: tuple[float, float, float],
        freeze_norm: bool,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Conv2d(channels, num_foreground, 1, bias=False)
        nn.init.xavier_uniform_(self.head.weight)
        self.num_foreground = num_foreground
        self.input_mean = input_mean
        self.input_std = input_std
        self._freeze_norm = freeze_norm
        if freeze_norm:
            for norm in self._norms():
                norm.requires_grad_(False)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Image-level logits and class score maps.

        Args:
            images_B3HW: float32 [B, 3, H, W], normalised with `input_mean` and `input_std`.

        Returns:
            (logits [B, C], scores [B, C, h, w]); logits are the scores' spatial mean.
        """
        scores_BChw = self.head(self.backbone(images_B3HW))
        return scores_BChw.mean(dim=(2, 3)), scores_BChw

    def cam_scores(self, images_B3HW: Tensor) -> Tensor:
        """Raw class scores for CAMs, float32 [B, C, h, w]; channel i is foreground id i + 1.

        Not rectified and not normalised: views are summed first (Eq. 1 comes after).
        """
        return self.forward(images_B3HW)[1].float()

    def train(self, mode: bool = True) -> CamClassifier:
        super().train(mode)
        if self._freeze_norm:
            for norm in self._norms():
                norm.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [m for m in self.backbone.modules() if isinstance(m, nn.BatchNorm2d)]


def _efficientnet_lite0(config: ClassifierConfig, num_foreground: int) -> CamClassifier:
    backbone = efficientnet_lite.EfficientNetLite0(config.output_stride)
    load_backbone_weights(backbone, config.weights)
    return CamClassifier(
        backbone,
        backbone.features[-1].channels,
        num_foreground,
        input_mean=efficientnet_lite.INPUT_MEAN,
        input_std=efficientnet_lite.INPUT_STD,
        freeze_norm=config.freeze_norm,
    )


CLASSIFIERS = {"efficientnet_lite0": _efficientnet_lite0}


def build_classifier(config: ClassifierConfig, num_foreground: int) -> CamClassifier:
    """The classifier that a configuration names, its backbone's weights loaded.

    The head is drawn from torch's global generator: seed it for a reproducible network.

    Raises:
        CannotRunError: the weights are missing or do not fit.
    """
    return CLASSIFIERS[config.backbone](config, num_foreground)


def load_classifier(checkpoint_uri: str) -> tuple[CamClassifier, dict[str, Any]]:
    """A trained classifier in evaluation mode on the CPU, and its description.

    Returns:
        (module, meta); meta holds `config` (the section), `label_space` (JSON text) and
        `training` (final loss, steps, images/s).

    Raises:
        CannotRunError: the file is not a trained classifier.
    """
    state, meta = load_model(checkpoint_uri, "classifier")
    config = stored_section(ClassifierConfig, meta, checkpoint_uri)
    with torch.random.fork_rng(devices=[]):
        module = build_classifier(config, int(meta["num_foreground"]))
    load_strict(module, state, checkpoint_uri)
    return module.eval(), meta
