"""What every backbone offers: feature taps, the input it expects, layers that may be frozen.

Which there are: `config.backbones`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch.nn.functional as F
from torch import Tensor, nn

from pmm_ray.config.backbones import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Triple,
    backbone_row,
    imported,
)
from pmm_ray.config.base import ConfigError
from pmm_ray.nets.weights import Loaded

_STRIDES = {8: (1, 2, 1, 1), 16: (1, 2, 2, 1), 32: (1, 2, 2, 2)}
_DILATIONS = {8: (1, 1, 2, 4), 16: (1, 1, 1, 2), 32: (1, 1, 1, 1)}

PLANES = (64, 128, 256, 512)
"""A quarter of the output channels of the four layers of a ResNet."""

Row = tuple[int, int, int, int]
"""Channels of the four branches of a ScaleNet's block; 0: no branch."""
Allocation = Sequence[Sequence[Row]]
"""Rows per stage and block."""


@dataclass(frozen=True)
class Shape:
    """What of a backbone can be chosen."""

    output_stride: int = 8
    """Input px per px of the last feature."""
    dilate: bool = False
    """For segmentation: put dilation where strides were taken away (released code). CAMs have
    none. EfficientNet-lite0 is dilated either way, and then has no 1x1 head."""
    last_dilation: Literal[2, 4] = 4
    """Of the last block of the wide ResNet-38."""
    state: Mapping[str, Tensor] | None = None
    """The weights to come, see `read_state`: ScaleNet-50 and -152 need them, or `allocation`."""
    allocation: Allocation | None = None
    """Channel table of a ScaleNet, where it is known without a state."""

    @property
    def strides(self) -> Row:
        """Of the four stages of a ResNet."""
        return _STRIDES[self.output_stride]

    @property
    def dilations(self) -> Row:
        """Of the four stages of a ResNet: 1, 1, 2, 4 at output stride 8 where it is dilated."""
        return _DILATIONS[self.output_stride if self.dilate else 32]


@dataclass(frozen=True)
class FeatureInfo:
    """One tap of a backbone: the output of a stage."""

    name: str
    channels: int
    stride: int
    """Input px per feature px."""


class Backbone(nn.Module, ABC):
    """A network from photographs to feature maps.

    Input: float32 [B, 3, H, W], RGB, normalised with `input_mean` and `input_std`.
    """

    input_mean: Triple = IMAGENET_MEAN
    input_std: Triple = IMAGENET_STD
    """Its row's, see `build_backbone`."""
    first_layers: tuple[str, ...] = ()
    """Names of the layers that the released code keeps at their pretrained values."""
    heads: tuple[str, ...] = ()
    """First names of what public files hold beyond the features: classifiers of ImageNet."""
    last_norm: str = ""
    """Name of the norm that ends each block's residual branch, where blocks have one."""
    features: tuple[FeatureInfo, ...] = ()
    """What `forward_features` returns, in order."""
    kept: Mapping[str, Any] = {}
    """Fields of `Shape` that a trained network is built again with."""

    @abstractmethod
    def forward_features(self, images_B3HW: Tensor) -> list[Tensor]:
        """The taps, each [B, C, h, w], as `features` lists them."""

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """The last tap."""
        return self.forward_features(images_B3HW)[-1]


class FourLayers(Backbone):
    """What our ResNets share: a stem of stride 4, and four layers which are the taps.

    Args:
        conv1: of the stem, to 64 channels.
        counts, strides: blocks and stride of each layer.
        block: makes one of (layer, number in it, input channels, stride), the first two from 0;
            its output has four times the layer's `PLANES`.
    """

    first_layers = ("conv1", "bn1", "layer1")
    heads = ("fc",)
    last_norm = "bn3"

    def __init__(
        self,
        conv1: nn.Module,
        counts: Sequence[int],
        strides: Sequence[int],
        block: Callable[[int, int, int, int], nn.Module],
    ) -> None:
        super().__init__()
        self.conv1 = conv1
        self.bn1 = nn.BatchNorm2d(64)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1)
        channels, stride, features = 64, 4, []
        for layer, (count, step) in enumerate(zip(counts, strides, strict=True)):
            blocks = []
            for number in range(count):
                blocks.append(block(layer, number, channels, 1 if number else step))
                channels = 4 * PLANES[layer]
            stride *= step
            self.add_module(f"layer{layer + 1}", nn.Sequential(*blocks))
            features.append(FeatureInfo(f"layer{layer + 1}", channels, stride))
        self.features = tuple(features)
        initialise(self)

    def forward_features(self, images_B3HW: Tensor) -> list[Tensor]:
        x = self.maxpool(F.relu(self.bn1(self.conv1(images_B3HW))))
        taps = []
        for info in self.features:
            x = self.get_submodule(info.name)(x)
            taps.append(x)
        return taps


class OnBackbone(nn.Module):
    """A network on a backbone, some of whose values it may keep while training.

    Args:
        backbone: gives the features; decides the normalisation of the input.
        freeze_norm: keep BatchNorm in evaluation mode and its parameters fixed while training.
        freeze_first: keep the backbone's `first_layers` fixed while training.
        freeze_backbone: keep all of it fixed.
    """

    backbone: Backbone
    loaded: Loaded | None = None
    """What the weights file gave, if there was one."""

    def __init__(
        self,
        backbone: Backbone,
        *,
        freeze_norm: bool = True,
        freeze_first: bool = True,
        freeze_backbone: bool = False,
    ) -> None:
        super().__init__()
        self.input_mean, self.input_std = backbone.input_mean, backbone.input_std
        if freeze_backbone:
            backbone.requires_grad_(False)
        for layer in backbone.first_layers if freeze_first else ():
            backbone.get_submodule(layer).requires_grad_(False)
        self._frozen_norms = tuple(norms(backbone)) if freeze_norm else ()
        for norm in self._frozen_norms:
            norm.requires_grad_(False)

    def adopt(self, name: str, part: nn.Module) -> None:
        """Make a part's layers our own, under their own names, and keep the part as a function."""
        self.__dict__[name] = part
        for layer, module in part.named_children():
            self.add_module(layer, module)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for norm in self._frozen_norms:
            norm.eval()
        return self


def build_backbone(name: str, shape: Shape | None = None) -> Backbone:
    """A backbone without pretrained weights; its taps are `features`.

    Args:
        name: see `config.backbones`.
        shape: what of it is chosen.

    Raises:
        ConfigError: an unknown name or output stride, or a row that does not fit its network.
        CannotRunError: a ScaleNet without its checkpoint.
    """
    row = backbone_row(name)
    shape = shape or Shape()
    if shape.output_stride not in row.output_strides:
        raise ConfigError(f"{name} has {row.strides_text}, not {shape.output_stride}")
    network = imported(row.make, f"backbone {name}")(shape)
    if not isinstance(network, Backbone):
        raise ConfigError(f"backbone {name}: {row.make} gives no Backbone, but {network!r}")
    has = {info.name: info.channels for info in network.features}
    odd = [tap for tap in row.taps if tap not in has]
    odd += [
        f"{tap} of {size} channels" for tap, size in row.features.items() if has.get(tap) != size
    ]
    if odd:
        raise ConfigError(f"backbone {name}: its row names {', '.join(odd)}; its network has {has}")
    network.input_mean, network.input_std = row.input_mean, row.input_std
    return network


def norms(module: nn.Module) -> Iterator[nn.BatchNorm2d]:
    """Every BatchNorm of a network."""
    return (child for child in module.modules() if isinstance(child, nn.BatchNorm2d))


def initialise(module: nn.Module) -> None:
    """Convolutions normal with variance 2 / (k * k * output channels), norms 1 and 0.

    Source: released ScaleNet, Res2Net and ResNet code (He et al. 2015, fan out).
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d):
            nn.init.kaiming_normal_(child.weight, mode="fan_out", nonlinearity="relu")


def temper(backbone: Backbone) -> None:
    """Scale down the residual branches of a network that starts from random values.

    With norms that are frozen before they saw any image each block would double the variance, and
    a hundred layers overflow at the first update. The sum of B branches is kept at order one.
    """
    if not backbone.last_norm:
        return
    last = [n for name, n in backbone.named_modules() if name.endswith(f".{backbone.last_norm}")]
    for norm in last:
        assert isinstance(norm, nn.BatchNorm2d)
        nn.init.constant_(norm.weight, len(last) ** -0.5)
