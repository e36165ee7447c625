"""EfficientNet-lite0, -lite1 and -lite2 with an adjustable output stride and feature taps.

Legend: B = batch, C = channels, H, W = input px, h, w = feature px.

The networks of the TensorFlow TPU repository (`efficientnet/lite`: ReLU6, no
squeeze-and-excitation), with TensorFlow's SAME padding, because their public weights were trained
with it. An output stride below 32 replaces the last strides by dilation; the dilated network then
computes the strided one's features and those in between.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from pmm_ray.nets.backbone import Backbone, FeatureInfo, Shape

_STEM = 32
_HEAD = 1280
# width and depth over lite0's
_SCALES = {0: (1.0, 1.0), 1: (1.0, 1.1), 2: (1.1, 1.2)}
# of lite0: repeats, kernel, stride of the first block, expansion, output channels
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
# TensorFlow's batch_norm_epsilon and 1 - batch_norm_momentum for this network
_NORM_EPSILON = 1e-3
_NORM_MOMENTUM = 0.01


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding: output side = ceil(input side / stride).

    Odd padding puts the extra row and column at the bottom and right.
    """

    def forward(self, input: Tensor) -> Tensor:
        pads: list[int] = []
        for axis in (1, 0):  # F.pad begins with the last axis
            side, stride = input.shape[2 + axis], self.stride[axis]
            reach = self.dilation[axis] * (self.kernel_size[axis] - 1) + 1
            total = max((-(-side // stride) - 1) * stride + reach - side, 0)
            pads += [total // 2, total - total // 2]
        if pads[0] == pads[1] and pads[2] == pads[3]:
            padding = (pads[2], pads[0])
        else:
            input, padding = F.pad(input, pads), (0, 0)
        return F.conv2d(
            input, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=_NORM_EPSILON, momentum=_NORM_MOMENTUM)


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, 1x1 projection; a shortcut where shapes agree."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int, dilation: int, expansion: int
    ) -> None:
        super().__init__()
        wide = inputs * expansion
        self.shortcut = stride == 1 and inputs == outputs
        self.expand_conv: nn.Module | None = None
        if expansion != 1:
            self.expand_conv = SameConv2d(inputs, wide, 1, bias=False)
            self.bn0 = _norm(wide)
        self.depthwise_conv = SameConv2d(
            wide, wide, kernel, stride, dilation=dilation, groups=wide, bias=False
        )
        self.bn1 = _norm(wide)
        self.project_conv = SameConv2d(wide, outputs, 1, bias=False)
        self.bn2 = _norm(outputs)

    def forward(self, input: Tensor) -> Tensor:
        x = input
        if self.expand_conv is not None:
            x = F.relu6(self.bn0(self.expand_conv(x)))
        x = F.relu6(self.bn1(self.depthwise_conv(x)))
        x = self.bn2(self.project_conv(x))
        return x + input if self.shortcut else x


def _channels(channels: int, width: float) -> int:
    """The multiple of 8 nearest to the scaled number, but no less than 90 % of it."""
    wanted = channels * width
    nearest = max(8, int(wanted + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * wanted else nearest


class EfficientNetLite(Backbone):
    """EfficientNet-lite.

    Args:
        size: 0, 1 or 2. Stem, head, and the repeats of the first and last stage are lite0's.
        output_stride: 8, 16 or 32, input px per px of the last feature.
        with_head: also build the last 1x1 convolution (to 1280 channels).

    Input of any size.
    """

    heads = ("fc", "conv_head", "bn1")
    # stem and the blocks before output stride 8: edges and textures
    first_layers = ("conv_stem", "bn0", "blocks.0", "blocks.1", "blocks.2")

    def __init__(self, size: int, output_stride: int, *, with_head: bool = True) -> None:
        super().__init__()
        width, depth = _SCALES[size]
        self.conv_stem = SameConv2d(3, _STEM, 3, 2, bias=False)
        self.bn0 = _norm(_STEM)
        blocks: list[nn.Module] = []
        self._ends: dict[int, int] = {}
        features = []
        channels, stride, dilation = _STEM, 2, 1
        for stage, (repeats, kernel, step, expansion, outputs) in enumerate(_STAGES, start=1):
            outputs = _channels(outputs, width)
            if 1 < stage < len(_STAGES):
                repeats = math.ceil(repeats * depth)
            dilated = step > 1 and stride * step > output_stride
            for repeat in range(repeats):
                # a block that lost its stride still reads the grid of the block before it
                grid = dilation
                if repeat == 0 and dilated:
                    dilation *= step
                first = step if repeat == 0 and not dilated else 1
                blocks.append(InvertedResidual(channels, outputs, kernel, first, grid, expansion))
                channels = outputs
            stride = stride if dilated else stride * step
            self._ends[len(blocks) - 1] = stage
            features.append(FeatureInfo(f"stage{stage}", channels, stride))
        self.blocks = nn.ModuleList(blocks)
        self.conv_head: nn.Module | None = None
        if with_head:
            self.conv_head = SameConv2d(channels, _HEAD, 1, bias=False)
            self.bn1 = _norm(_HEAD)
            features.append(FeatureInfo("head", _HEAD, stride))
        self.features = tuple(features)

    def forward_features(self, images_B3HW: Tensor) -> list[Tensor]:
        """The output of every stage (and of the head, if built), as `features` lists them."""
        x = F.relu6(self.bn0(self.conv_stem(images_B3HW)))
        taps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self._ends:
                taps.append(x)
        if self.conv_head is not None:
            taps.append(F.relu6(self.bn1(self.conv_head(x))))
        return taps


def efficientnet_lite0(shape: Shape, size: int = 0) -> Backbone:
    """See `Shape`; always dilated: at smaller strides its strided form has no public weights."""
    return EfficientNetLite(size, shape.output_stride, with_head=not shape.dilate)


def efficientnet_lite1(shape: Shape) -> Backbone:
    """See `efficientnet_lite0`."""
    return efficientnet_lite0(shape, 1)


def efficientnet_lite2(shape: Shape) -> Backbone:
    """See `efficientnet_lite0`."""
    return efficientnet_lite0(shape, 2)
