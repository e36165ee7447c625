"""Res2Net-101 v1b, 26w x 4s: a ResNet whose 3x3 convolutions work in a hierarchy of four groups.

Legend: B = batch, C = channels, H, W = input px.

Source: Gao et al., "Res2Net: A New Multi-scale Backbone Architecture", TPAMI 2021, with the layer
names of its public checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmm_ray.nets.backbone import PLANES, Backbone, FourLayers, Shape

BLOCKS = (3, 4, 23, 3)
GROUPS = 4
_BASE_WIDTH = 26


class HierarchyBlock(nn.Module):
    """1x1 convolution, three 3x3 convolutions of which each sees the one before, 1x1 convolution.

    Args:
        inputs: channels of the input.
        planes: a quarter of the output's channels.
        stride: of the 3x3 convolutions.
        dilation: of the 3x3 convolutions.
        first: whether the block begins a stage: its groups are independent, its fourth is pooled.
    """

    def __init__(
        self, inputs: int, planes: int, stride: int, dilation: int, *, first: bool
    ) -> None:
        super().__init__()
        width = planes * _BASE_WIDTH // 64
        outputs = 4 * planes
        self.first = first
        self.conv1 = nn.Conv2d(inputs, width * GROUPS, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width * GROUPS)
        self.pool = nn.AvgPool2d(3, stride, padding=1) if first else nn.Identity()
        self.convs = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride, padding=dilation, dilation=dilation, bias=False)
            for _ in range(GROUPS - 1)
        )
        self.bns = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(GROUPS - 1))
        self.conv3 = nn.Conv2d(width * GROUPS, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False),
                nn.Conv2d(inputs, outputs, 1, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, input: Tensor) -> Tensor:
        shortcut = input if self.downsample is None else self.downsample(input)
        *groups, last = F.relu(self.bn1(self.conv1(input))).chunk(GROUPS, dim=1)
        parts: list[Tensor] = []
        for group, conv, norm in zip(groups, self.convs, self.bns, strict=True):
            x = group if self.first or not parts else parts[-1] + group
            parts.append(F.relu(norm(conv(x))))
        x = self.bn3(self.conv3(torch.cat([*parts, self.pool(last)], dim=1)))
        return F.relu(x + shortcut)


class Res2Net101(FourLayers):
    """Res2Net-101 v1b, 26w x 4s.

    Args:
        strides: of the four stages. ImageNet: 1, 2, 2, 2; CAMs and segmentation: 1, 2, 1, 1.
        dilations: of the four stages. Segmentation: 1, 1, 2, 4.

    Input of any size. Taps `layer1` to `layer4`.
    """

    def __init__(
        self,
        *,
        strides: Sequence[int] = (1, 2, 1, 1),
        dilations: Sequence[int] = (1, 1, 1, 1),
    ) -> None:
        conv1 = nn.Sequential(
            nn.Conv2d(3, 32, 3, 2, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
        )

        def block(layer: int, number: int, inputs: int, stride: int) -> HierarchyBlock:
            first = number == 0
            return HierarchyBlock(inputs, PLANES[layer], stride, dilations[layer], first=first)

        super().__init__(conv1, BLOCKS, strides, block)


def res2net101(shape: Shape) -> Backbone:
    """See `Shape`."""
    return Res2Net101(strides=shape.strides, dilations=shape.dilations)
