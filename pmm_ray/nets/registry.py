"""Backbones and classifiers by name.

Legend: B = batch, C = foreground classes, H, W = input px, h, w = feature px.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pmm_ray.config import AnyClassifierConfig, ClassifierConfig
from pmm_ray.nets import scalenet
from pmm_ray.nets.backbone import Backbone, temper
from pmm_ray.nets.cam_network import CamNetwork
from pmm_ray.nets.checkpoints import load_model, stored_section
from pmm_ray.nets.efficientnet_lite import EfficientNetLite0
from pmm_ray.nets.res2net import Res2Net101
from pmm_ray.nets.resnet38 import ResNet38
from pmm_ray.nets.scalenet import ScaleNet
from pmm_ray.nets.seam import SeamNetwork
from pmm_ray.nets.weight_files import find_weights
from pmm_ray.nets.weights import load_pretrained, load_strict, read_state
from pmm_ray.runtime.core.errors import CannotRunError

_STRIDES = {8: (1, 2, 1, 1), 16: (1, 2, 2, 1), 32: (1, 2, 2, 2)}
_DILATIONS = {8: (1, 1, 2, 4), 16: (1, 1, 1, 2), 32: (1, 1, 1, 1)}
_NO_DILATION = (1, 1, 1, 1)


@dataclass(frozen=True)
class Shape:
    """What of a backbone can be chosen."""

    output_stride: int
    """Input px per px of the last feature: 8, 16 or 32."""
    dilate: bool
    """Put dilation where strides were taken away."""
    last_dilation: Literal[2, 4]
    """Of the last block of the wide ResNet-38."""
    state: Mapping[str, Tensor] | None
    """Of the network to come, where its layers depend on it."""
    allocation: scalenet.Allocation | None = None
    """Channel table of a ScaleNet, where it is known without a state."""


@dataclass(frozen=True)
class BackboneSpec:
    """How a backbone is made, and what SEAM takes from it."""

    network: type[Backbone]
    """Its class; `input_mean` and `input_std` say how images are normalised."""
    make: Callable[[Shape], Backbone]
    taps: tuple[str, str]
    """Features that the pixel correlation module compares (the paper: stages 3 and 4)."""
    dropout: float = 0.0
    """Of whole channels before SEAM's class head (released code)."""


def _scalenet(depth: int) -> Callable[[Shape], Backbone]:
    def make(shape: Shape) -> Backbone:
        if shape.allocation is not None:
            allocation = shape.allocation
        elif depth == 101:
            allocation = scalenet.SCALENET101
        elif shape.state is None:
            raise CannotRunError(
                f"scalenet{depth} has no built-in channel table: it is read from a checkpoint, "
                "so `weights` must be one"
            )
        else:
            try:
                allocation = scalenet.read_allocation(shape.state, depth)
            except ValueError as error:
                raise CannotRunError(f"the weights of scalenet{depth}: {error}") from error
        dilations = _DILATIONS[shape.output_stride] if shape.dilate else _NO_DILATION
        return ScaleNet(allocation, strides=_STRIDES[shape.output_stride], dilations=dilations)

    return make


def _resnet38(shape: Shape) -> Backbone:
    if shape.output_stride != 8:
        raise ValueError(f"resnet38 has output stride 8, not {shape.output_stride}")
    return ResNet38(shape.last_dilation)


def _res2net101(shape: Shape) -> Backbone:
    dilations = _DILATIONS[shape.output_stride] if shape.dilate else _NO_DILATION
    return Res2Net101(strides=_STRIDES[shape.output_stride], dilations=dilations)


BACKBONES = {
    "efficientnet_lite0": BackboneSpec(
        EfficientNetLite0,
        # always dilated: its strided form has no pretrained weights at smaller strides
        lambda shape: EfficientNetLite0(shape.output_stride, with_head=not shape.dilate),
        taps=("stage3", "stage5"),
    ),
    "scalenet50": BackboneSpec(ScaleNet, _scalenet(50), taps=("layer2", "layer3")),
    "scalenet101": BackboneSpec(ScaleNet, _scalenet(101), taps=("layer2", "layer3")),
    "scalenet152": BackboneSpec(ScaleNet, _scalenet(152), taps=("layer2", "layer3")),
    "resnet38": BackboneSpec(ResNet38, _resnet38, taps=("conv4", "conv5"), dropout=0.5),
    "res2net101": BackboneSpec(Res2Net101, _res2net101, taps=("layer2", "layer3")),
}
"""Every backbone, for classifiers and segmenters."""


def build_backbone(
    name: str,
    *,
    output_stride: int = 8,
    dilate: bool = False,
    last_dilation: Literal[2, 4] = 4,
    state: Mapping[str, Tensor] | None = None,
    allocation: scalenet.Allocation | None = None,
) -> Backbone:
    """A backbone without pretrained weights; its taps are `features`.

    Args:
        name: a key of `BACKBONES`.
        output_stride: 8, 16 or 32; `resnet38` has 8 only.
        dilate: for segmentation: dilations 1, 1, 2, 4 at output stride 8 (released code). CAMs
            have none. EfficientNet-lite0 is dilated either way, and then has no 1x1 head.
        last_dilation: of the last block of `resnet38`.
        state: the weights to come, see `read_state`; `scalenet50` and `scalenet152` need them,
            or their `allocation`.
        allocation: channel table of a ScaleNet, instead of what it is otherwise read from.

    Raises:
        ValueError: an unknown name or output stride.
        CannotRunError: a ScaleNet without its checkpoint.
    """
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}: {', '.join(BACKBONES)}")
    if output_stride not in _STRIDES:
        raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")
    return BACKBONES[name].make(Shape(output_stride, dilate, last_dilation, state, allocation))


class CamClassifier(CamNetwork):
    """A backbone and a bias-free 1x1 convolution; its maps are the CAM scores.

    Args:
        backbone: gives `forward(images) -> [B, channels, h, w]`.
        num_foreground: C.
        freeze_norm, freeze_first: see `CamNetwork`.
    """

    head_layers = ("head",)
    align_corners = False

    def __init__(
        self,
        backbone: Backbone,
        num_foreground: int,
        *,
        freeze_norm: bool,
        freeze_first: bool = False,
    ) -> None:
        super().__init__(
            backbone, num_foreground, freeze_norm=freeze_norm, freeze_first=freeze_first
        )
        self.backbone = backbone
        self.head = nn.Conv2d(backbone.features[-1].channels, num_foreground, 1, bias=False)
        nn.init.xavier_uniform_(self.head.weight)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Image-level logits and class score maps.

        Args:
            images_B3HW: float32 [B, 3, H, W], normalised with `input_mean` and `input_std`.

        Returns:
            (logits [B, C], scores [B, C, h, w]); logits are the scores' spatial mean.
        """
        scores_BChw = self.head(self.backbone(images_B3HW))
        return scores_BChw.mean(dim=(2, 3)), scores_BChw

    def cam_scores(self, images_B3HW: Tensor, labels_BC: Tensor | None = None) -> Tensor:
        """The score maps, not rectified and not normalised; see `CamNetwork`."""
        return self.forward(images_B3HW)[1].float()


def build_classifier(config: AnyClassifierConfig, num_foreground: int) -> CamNetwork:
    """The classifier that a configuration names, pretrained weights loaded.

    A file may hold SEAM's heads too: they are loaded where they fit the classes. The rest of the
    heads is drawn from torch's global generator: seed it for a reproducible network.

    Returns:
        `CamClassifier` or `SeamNetwork`, by `config.kind`; its `loaded` tells what the file gave.

    Raises:
        CannotRunError: the weights are missing or do not fit.
    """
    uri = find_weights(config.weights, config.backbone)
    state = None if uri is None else read_state(uri)
    network = _build(config, num_foreground, state)
    if state is None and config.freeze_norm:
        temper(network.backbone)
    if uri is not None and state is not None:
        heads = network.backbone.heads
        if isinstance(network, SeamNetwork):
            network.loaded = load_pretrained(
                network, state, uri, fresh=network.head_layers, heads=heads
            )
        else:
            network.loaded = load_pretrained(network.backbone, state, uri, heads=heads)
    return network


def load_classifier(checkpoint_uri: str) -> tuple[CamNetwork, dict[str, Any]]:
    """A trained classifier in evaluation mode on the CPU, and its description.

    Returns:
        (module, meta); meta holds `config` (the section), `label_space` (JSON text) and
        `training` (final loss, steps, images/s).

    Raises:
        CannotRunError: the file is not a trained classifier.
    """
    state, meta = load_model(checkpoint_uri, "classifier")
    config = stored_section(ClassifierConfig, meta, checkpoint_uri)
    bare = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    with torch.random.fork_rng(devices=[]):
        module = _build(config, int(meta["num_foreground"]), bare)
    load_strict(module, state, checkpoint_uri)
    return module.eval(), meta


def _build(
    config: AnyClassifierConfig, num_foreground: int, state: Mapping[str, Tensor] | None
) -> CamNetwork:
    # the others give CAMs at stride 8 only
    stride = config.output_stride if config.backbone == "efficientnet_lite0" else 8
    backbone = build_backbone(
        config.backbone,
        output_stride=stride,
        last_dilation=config.resnet38_dilation,
        state=state,
    )
    if config.kind == "plain":
        return CamClassifier(
            backbone,
            num_foreground,
            freeze_norm=config.freeze_norm,
            freeze_first=config.freeze_first,
        )
    spec = BACKBONES[config.backbone]
    return SeamNetwork(
        backbone,
        num_foreground,
        taps=spec.taps,
        dropout=spec.dropout,
        gate_labels=config.pcm.gate_labels,
        freeze_norm=config.freeze_norm,
        freeze_first=config.freeze_first,
    )
