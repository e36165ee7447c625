"""What every backbone offers: feature taps, the input it expects, layers that may be frozen."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, nn

# of the public ImageNet weights, RGB in 0..1
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class FeatureInfo:
    """One tap of a backbone: the output of a stage."""

    name: str
    channels: int
    stride: int
    """Input px per feature px."""


class Backbone(nn.Module):
    """A network from photographs to feature maps.

    Input: float32 [B, 3, H, W], RGB, normalised with `input_mean` and `input_std`.
    """

    input_mean: tuple[float, float, float] = IMAGENET_MEAN
    input_std: tuple[float, float, float] = IMAGENET_STD
    first_layers: tuple[str, ...] = ()
    """Names of the layers that the released code keeps at their pretrained values."""
    heads: tuple[str, ...] = ()
    """First names of what public files hold beyond the features: classifiers of ImageNet."""
    last_norm: str = ""
    """Name of the norm that ends each block's residual branch, where blocks have one."""
    features: tuple[FeatureInfo, ...] = ()
    """What `forward_features` returns, in order."""

    def forward_features(self, images_B3HW: Tensor) -> list[Tensor]:
        """The taps, each [B, C, h, w], as `features` lists them."""
        raise NotImplementedError

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """The last tap."""
        return self.forward_features(images_B3HW)[-1]


def norms(module: nn.Module) -> Iterator[nn.BatchNorm2d]:
    """Every BatchNorm of a network."""
    return (child for child in module.modules() if isinstance(child, nn.BatchNorm2d))


def freeze(module: nn.Module, layers: Iterable[str]) -> None:
    """Keep the parameters of the named layers as they are while training."""
    for name in layers:
        module.get_submodule(name).requires_grad_(False)


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
