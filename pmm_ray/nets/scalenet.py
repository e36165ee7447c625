"""ScaleNet: a ResNet whose 3x3 convolutions look at the image at four scales.

Legend: B = batch, C = channels, H, W = input px, h, w = map px.

In every block four branches pool the map by 1, 2, 4 and 7, convolve it and bring it back to size.
Pruning found how many channels each branch has, and no formula gives it: ScaleNet-101's table is
here, those of 50 and 152 are read from a checkpoint. Source: Li et al., "Data-Driven
Neuron Allocation for Scale Aggregation Networks", CVPR 2019, and its released code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmm_ray.nets.backbone import PLANES, Allocation, Backbone, FourLayers, Row, Shape
from pmm_ray.runtime.core.errors import CannotRunError

POOLS = (1, 2, 4, 7)
BLOCKS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
"""Blocks per stage, by depth."""
# side of the maps of each stage for an input of 224 px
_NOMINAL_SIDES = (56, 28, 14, 7)

SCALENET101: Allocation = (
    ((61, 11, 7, 7), (56, 23, 4, 3), (59, 24, 3, 0)),
    ((123, 41, 1, 6), (126, 38, 1, 6), (127, 41, 3, 0), (127, 41, 3, 0)),
    (
        (220, 86, 35, 0),
        (186, 64, 55, 36),
        (156, 25, 53, 107),
        (191, 44, 52, 54),
        (181, 53, 83, 24),
        (221, 82, 34, 4),
        (177, 62, 90, 12),
        (130, 75, 102, 34),
        (206, 71, 55, 9),
        (203, 83, 53, 2),
        (207, 73, 54, 7),
        (245, 84, 12, 0),
        (221, 103, 17, 0),
        (221, 100, 20, 0),
        (158, 99, 84, 0),
        (220, 106, 15, 0),
        (173, 92, 73, 3),
        (135, 122, 84, 0),
        (109, 71, 132, 29),
        (147, 94, 93, 7),
        (191, 108, 42, 0),
        (127, 95, 113, 6),
        (203, 117, 21, 0),
    ),
    ((282, 377, 23, 0), (279, 388, 15, 0), (84, 442, 155, 1)),
)
"""Source: the released `scalenet101.json`."""


def read_allocation(state: Mapping[str, Tensor], depth: int) -> Allocation:
    """The table of a trained ScaleNet: a branch has as many channels as its norm has weights.

    Args:
        state: state dict of the backbone, names as in the public checkpoints.
        depth: 50, 101 or 152.

    Raises:
        ValueError: the state dict is not one of a ScaleNet of this depth.
    """

    def row(stage: int, block: int) -> Row:
        names = [f"layer{stage}.{block}.bn2.{branch}.weight" for branch in range(4)]
        first, second, third, fourth = (len(state[n]) if n in state else 0 for n in names)
        if not first + second + third + fourth:
            raise ValueError(
                f"not a ScaleNet-{depth}: layer{stage}.{block}.bn2.*.weight are missing"
            )
        return first, second, third, fourth

    stages = enumerate(BLOCKS[depth], start=1)
    return [[row(stage, block) for block in range(blocks)] for stage, blocks in stages]


class ScaleBlock(nn.Module):
    """1x1 convolution, four 3x3 convolutions at four scales, 1x1 convolution, and a shortcut.

    Args:
        inputs: channels of the input.
        planes: channels between the convolutions.
        row: channels of the branches.
        stride: the input is max-pooled by it.
        dilation: of the 3x3 convolutions.
        nominal_side: of this block's map for an input of 224 px; a branch whose map would then
            be one pixel convolves 1x1.
    """

    def __init__(
        self, inputs: int, planes: int, row: Row, stride: int, dilation: int, nominal_side: int
    ) -> None:
        super().__init__()
        outputs = 4 * planes
        self.stride = stride
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
            )
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.branches = tuple(branch for branch, channels in enumerate(row) if channels)
        # the names of the public files leave out the branches that are absent
        self.conv2 = nn.ModuleDict()
        self.bn2 = nn.ModuleDict()
        for branch in self.branches:
            single = nominal_side / 2**branch <= 1
            self.conv2[str(branch)] = nn.Conv2d(
                planes,
                row[branch],
                1 if single else 3,
                padding=0 if single else dilation,
                dilation=1 if single else dilation,
                bias=False,
            )
            self.bn2[str(branch)] = nn.BatchNorm2d(row[branch])
        self.conv3 = nn.Conv2d(sum(row), outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, input: Tensor) -> Tensor:
        x = max_pooled(input, self.stride)
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        size = (x.shape[2], x.shape[3])
        scales = []
        for branch in self.branches:
            name = str(branch)
            maps = self.conv2[name](_pooled_branch(x, POOLS[branch]))
            scales.append(self.bn2[name](_restored(maps, size)))
        x = self.bn3(self.conv3(F.relu(torch.cat(scales, dim=1))))
        return F.relu(x + shortcut)


class ScaleNet(FourLayers):
    """ScaleNet-50, -101 or -152.

    Args:
        allocation: channels of every block's branches, `SCALENET101` or from `read_allocation`.
        strides: of the four stages. ImageNet: 1, 2, 2, 2; CAMs and segmentation: 1, 2, 1, 1.
        dilations: of the four stages. CAMs: all 1; segmentation: 1, 1, 2, 4.

    Input of any size. Taps `layer1` to `layer4`.
    """

    def __init__(
        self,
        allocation: Allocation = SCALENET101,
        *,
        strides: Sequence[int] = (1, 2, 1, 1),
        dilations: Sequence[int] = (1, 1, 1, 1),
    ) -> None:
        conv1 = nn.Conv2d(3, 64, 7, 2, padding=3, bias=False)

        def block(layer: int, number: int, inputs: int, stride: int) -> ScaleBlock:
            row, side = allocation[layer][number], _NOMINAL_SIDES[layer]
            return ScaleBlock(inputs, PLANES[layer], row, stride, dilations[layer], side)

        super().__init__(conv1, [len(rows) for rows in allocation], strides, block)


def scalenet101(shape: Shape) -> Backbone:
    """See `Shape`."""
    return _scalenet(shape.allocation or SCALENET101, shape)


def scalenet50(shape: Shape) -> Backbone:
    """See `Shape`; its channels are the weights'."""
    return _from_weights(50, shape)


def scalenet152(shape: Shape) -> Backbone:
    """See `Shape`; its channels are the weights'."""
    return _from_weights(152, shape)


def _from_weights(depth: int, shape: Shape) -> ScaleNet:
    if shape.allocation is None and shape.state is None:
        raise CannotRunError(
            f"scalenet{depth} has no built-in channel table: it is read from a checkpoint, "
            "so `weights` must be one"
        )
    try:
        allocation = shape.allocation or read_allocation(shape.state or {}, depth)
    except ValueError as error:
        raise CannotRunError(f"the weights of scalenet{depth}: {error}") from error
    network = _scalenet(allocation, shape)
    network.kept = {"allocation": [[list(row) for row in stage] for stage in allocation]}
    return network


def _scalenet(allocation: Allocation, shape: Shape) -> ScaleNet:
    return ScaleNet(allocation, strides=shape.strides, dilations=shape.dilations)


def max_pooled(maps_BChw: Tensor, stride: int) -> Tensor:
    """Max-pooled by `stride`; a side shorter than it becomes one pixel."""
    if stride == 1:
        return maps_BChw
    height, width = maps_BChw.shape[2:]
    return F.max_pool2d(maps_BChw, (min(stride, height), min(stride, width)))


def _pooled_branch(maps_BChw: Tensor, pool: int) -> Tensor:
    """Max-pooled by `pool`; a map that is shorter than it on a side becomes one pixel.

    Source: released classifier code for square maps, which on others fails or drops a part.
    """
    if pool == 1:
        return maps_BChw
    height, width = maps_BChw.shape[2:]
    return F.max_pool2d(maps_BChw, (height, width) if min(height, width) < pool else pool)


def _restored(maps_BChw: Tensor, size: tuple[int, int]) -> Tensor:
    """At `size`: copied where both sides are exact multiples, else interpolated.

    Source: the released code's outputs for maps of odd sides.
    """
    height, width = maps_BChw.shape[2:]
    if (height, width) == size:
        return maps_BChw
    if size[0] % height == 0 and size[1] % width == 0:
        return F.interpolate(maps_BChw, size, mode="nearest")
    return F.interpolate(maps_BChw, size, mode="bilinear", align_corners=False)
