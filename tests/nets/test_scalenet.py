"""ScaleNet: the public network's names and numbers, any size of image, tables from checkpoints."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from pmm_ray.nets.scalenet import (
    BLOCKS,
    SCALENET101,
    Row,
    ScaleBlock,
    ScaleNet,
    max_pooled,
    read_allocation,
)

from .golden import Golden, check_taps, filled, recorded, shapes, taps, unfilled, with_classifier

TINY = [[(3, 2, 1, 1)]] * 4
STEM = {"conv1": "conv1", "bn1_pre_relu": "bn1", "stem_maxpool": "maxpool"}


@pytest.fixture(scope="module")
def state(golden: Golden) -> dict[str, Tensor]:
    return golden.state(unfilled(ScaleNet))


def test_names_and_shapes_are_the_public_ones(golden: Golden) -> None:
    net = unfilled(ScaleNet)
    assert shapes(net) == golden.keys("scalenet101_pmm")
    with_classes = unfilled(lambda: with_classifier(ScaleNet()))
    assert shapes(with_classes) == golden.keys("scalenet101_imagenet")
    assert round(sum(p.numel() for p in net.parameters()) / 1e6, 3) == 52.743


@pytest.mark.parametrize(
    ("dilations", "image"),
    [
        ((1, 1, 1, 1), "1x3x97x113"),
        ((1, 1, 2, 4), "1x3x80x80"),
        pytest.param((1, 1, 1, 1), "1x3x48x48", marks=pytest.mark.slow),
        pytest.param((1, 1, 1, 1), "1x3x80x80", marks=pytest.mark.slow),
        pytest.param((1, 1, 1, 1), "1x3x96x96", marks=pytest.mark.slow),
        pytest.param((1, 1, 2, 4), "1x3x96x96", marks=pytest.mark.slow),
        pytest.param((1, 1, 2, 4), "1x3x97x113", marks=pytest.mark.slow),
    ],
)
def test_every_block_gives_the_public_network_s_values(
    golden: Golden, state: dict[str, Tensor], dilations: tuple[int, ...], image: str
) -> None:
    values = golden.values("scalenet101")
    prefix = f"d{''.join(map(str, dilations))}/{image}"
    stored = taps(values, prefix)
    assert len(stored) == 44
    net = filled(lambda: ScaleNet(dilations=dilations), state)
    layers = STEM | {tap: tap for tap in stored if tap.startswith("layer")}
    with torch.no_grad(), recorded(net, layers) as found:
        net(golden.input(image))
    check_taps(values, prefix, found, stored)


def test_a_low_map_is_pooled_whole(golden: Golden, state: dict[str, Tensor]) -> None:
    """Where the released code loses columns: equal before, and no column is lost."""
    values = golden.values("scalenet101")
    prefix = "d1111/1x3x40x72"
    before = [tap for tap in taps(values, prefix) if tap.startswith(("conv", "bn", "stem"))]
    before += [tap for tap in taps(values, prefix) if tap.startswith("layer1")]
    before += [f"layer2.0.conv2.{branch}" for branch in range(3)]
    net = filled(ScaleNet, state)
    layers = STEM | {tap: tap for tap in before if tap.startswith("layer")}
    with torch.no_grad(), recorded(net, layers) as found:
        net(golden.input("1x3x40x72"))
    check_taps(values, prefix, found, before)


@pytest.mark.parametrize("size", [(5, 9), (9, 5), (6, 6)])
def test_the_coarsest_branch_sees_every_pixel(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    block = ScaleBlock(4, 4, (0, 0, 0, 4), 1, 1, 56).eval()
    # the shortcut is taken away: every pixel reaches the output through the pooled branch only
    block.downsample = None
    image = torch.rand(1, 16, *size)
    block.conv1 = nn.Conv2d(16, 4, 1, bias=False)
    nn.init.constant_(block.conv1.weight, 1.0)
    with torch.no_grad():
        plain = block(image) - image
        for corner in ((0, 0), (0, -1), (-1, 0), (-1, -1)):
            bright = image.clone()
            bright[0, :, corner[0], corner[1]] += 9
            assert not torch.allclose(block(bright) - bright, plain, atol=1e-3)


@pytest.mark.parametrize("size", [(1, 1), (3, 40), (33, 50), (64, 96)])
@pytest.mark.parametrize("strides", [(1, 2, 1, 1), (1, 2, 2, 2)])
def test_features_are_as_announced(size: tuple[int, int], strides: tuple[int, ...]) -> None:
    net = ScaleNet(TINY, strides=strides).eval()
    with torch.no_grad():
        found = net.forward_features(torch.zeros(1, 3, *size))
    quarter = [math.ceil(math.ceil(side / 2) / 2) for side in size]
    for tap, info, stride in zip(found, net.features, strides, strict=True):
        quarter = [max(1, side // stride) for side in quarter]
        assert tuple(tap.shape[1:]) == (info.channels, *quarter)
    assert [info.stride for info in net.features] == [
        4 * strides[0],
        4 * strides[0] * strides[1],
        4 * strides[0] * strides[1] * strides[2],
        4 * strides[0] * strides[1] * strides[2] * strides[3],
    ]


def test_maps_that_divide_evenly_are_copied_and_others_interpolated() -> None:
    """Pooled by 4, side 10 becomes 2, of which it is 5 times; side 9 too, of which it is not."""
    torch.manual_seed(0)
    block = ScaleBlock(16, 4, (0, 0, 2, 0), 1, 1, 56).eval()
    steps = {}
    for side in (10, 9):
        with torch.no_grad(), recorded(block, {"norm": "bn2.2"}) as found:
            block(torch.rand(1, 16, side, side))
        steps[side] = int((found["norm"][0, 0, 0].diff().abs() > 1e-6).sum())
    assert steps[10] == 1
    assert steps[9] > 1


def test_a_table_is_read_from_the_norms() -> None:
    assert read_allocation(unfilled(ScaleNet).state_dict(), 101) == [
        list(rows) for rows in SCALENET101
    ]
    rows: list[list[Row]] = [
        [(2 + block % 2, 1, 0, block % 2) for block in range(blocks)] for blocks in BLOCKS[50]
    ]
    net = unfilled(lambda: ScaleNet(rows))
    table = read_allocation(net.state_dict(), 50)
    assert table == rows
    assert shapes(unfilled(lambda: ScaleNet(table))) == shapes(net)
    with pytest.raises(ValueError, match=r"layer2\.4\.bn2"):
        read_allocation(net.state_dict(), 152)


def test_pooling_never_empties_a_map() -> None:
    assert max_pooled(torch.zeros(1, 1, 5, 1), 2).shape == (1, 1, 2, 1)
    assert max_pooled(torch.zeros(1, 1, 5, 7), 2).shape == (1, 1, 2, 3)
