"""Wide ResNet-38, model A1: few, wide, pre-activated blocks; output stride 8.

Legend: B = batch, C = channels, H, W = input px.

Source: Wu et al., "Wider or Deeper: Revisiting the ResNet Model for Visual Recognition", 2016, with
the layer names of the released PSA and SEAM code.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from pmm_ray.nets.backbone import Backbone, FeatureInfo, Shape, initialise

# name, input, middle and output channels, stride, dilation of the first and second convolution
_BLOCKS = (
    ("b2", 64, 128, 128, 2, 1, 1),
    ("b2_1", 128, 128, 128, 1, 1, 1),
    ("b2_2", 128, 128, 128, 1, 1, 1),
    ("b3", 128, 256, 256, 2, 1, 1),
    ("b3_1", 256, 256, 256, 1, 1, 1),
    ("b3_2", 256, 256, 256, 1, 1, 1),
    ("b4", 256, 512, 512, 2, 1, 1),
    *((f"b4_{block}", 512, 512, 512, 1, 1, 1) for block in range(1, 6)),
    ("b5", 512, 512, 1024, 1, 1, 2),
    ("b5_1", 1024, 512, 1024, 1, 2, 2),
    ("b5_2", 1024, 512, 1024, 1, 2, 2),
)


class WideBlock(nn.Module):
    """Two 3x3 convolutions, each after norm and ReLU, and a shortcut."""

    def __init__(
        self, inputs: int, middle: int, outputs: int, stride: int, first: int, second: int
    ) -> None:
        super().__init__()
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(
            inputs, middle, 3, stride, padding=first, dilation=first, bias=False
        )
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = nn.Conv2d(
            middle, outputs, 3, padding=second, dilation=second, bias=False
        )
        self.conv_branch1: nn.Module | None = None
        if inputs != outputs or stride != 1:
            self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """(output, activated input); some taps are activated inputs."""
        active = F.relu(self.bn_branch2a(input))
        shortcut = input if self.conv_branch1 is None else self.conv_branch1(active)
        x = self.conv_branch2a(active)
        x = self.conv_branch2b1(F.relu(self.bn_branch2b1(x)))
        return x + shortcut, active


class WideBottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, each after norm and ReLU, with dropout, and a shortcut."""

    def __init__(self, inputs: int, outputs: int, dilation: int, dropout: float) -> None:
        super().__init__()
        narrow, middle = outputs // 4, outputs // 2
        self.bn_branch2a = nn.BatchNorm2d(inputs)
        self.conv_branch2a = nn.Conv2d(inputs, narrow, 1, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(narrow)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = nn.Conv2d(
            narrow, middle, 3, padding=dilation, dilation=dilation, bias=False
        )
        self.bn_branch2b2 = nn.BatchNorm2d(middle)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """(output, activated input)."""
        active = F.relu(self.bn_branch2a(input))
        x = self.conv_branch2a(active)
        x = self.dropout_2b1(F.relu(self.bn_branch2b1(x)))
        x = self.conv_branch2b1(x)
        x = self.dropout_2b2(F.relu(self.bn_branch2b2(x)))
        return self.conv_branch2b2(x) + self.conv_branch1(active), active


class ResNet38(Backbone):
    """Wide ResNet-38 (A1).

    Args:
        last_dilation: of block `b7`: 2 in the paper's classifier, 4 in PSA, SEAM and segmentation.

    Input of any size. Taps: `conv3`, `conv4` and `conv5`, the activated inputs of b4, b5 and b6,
    and `conv6`, the activated output.
    """

    first_layers = ("conv1a", "b2", "b2_1", "b2_2")
    heads = ("linear1000",)
    features = (
        FeatureInfo("conv3", 256, 4),
        FeatureInfo("conv4", 512, 8),
        FeatureInfo("conv5", 1024, 8),
        FeatureInfo("conv6", 4096, 8),
    )
    _tapped = ("b4", "b5", "b6")

    def __init__(self, last_dilation: Literal[2, 4] = 4) -> None:
        super().__init__()
        self.conv1a = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        for name, *sizes in _BLOCKS:
            self.add_module(name, WideBlock(*sizes))
        self.b6 = WideBottleneck(1024, 2048, 4, 0.3)
        self.b7 = WideBottleneck(2048, 4096, last_dilation, 0.5)
        self.bn7 = nn.BatchNorm2d(4096)
        self._order = (*(name for name, *_ in _BLOCKS), "b6", "b7")
        initialise(self)

    def forward_features(self, images_B3HW: Tensor) -> list[Tensor]:
        x = self.conv1a(images_B3HW)
        taps = []
        for name in self._order:
            x, active = self.get_submodule(name)(x)
            if name in self._tapped:
                taps.append(active)
        return [*taps, F.relu(self.bn7(x))]


def resnet38(shape: Shape) -> Backbone:
    """See `Shape`."""
    return ResNet38(shape.last_dilation)
