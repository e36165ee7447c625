"""Res2Net-101 v1b: the public network's names and numbers, any size of image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pmm_ray.nets.backbone import Backbone
from pmm_ray.nets.res2net import Res2Net101

from .golden import (
    Golden,
    check_taps,
    filled,
    logits,
    recorded,
    shapes,
    taps,
    unfilled,
    with_classifier,
)

GAIN = 0.6
STEM = {"conv1_stem_raw": "conv1", "stem_maxpool": "maxpool"}


def make(case: str) -> Backbone:
    if case == "imagenet":
        return with_classifier(Res2Net101(strides=(1, 2, 2, 2)))
    return Res2Net101(strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))


def test_names_and_shapes_are_the_public_ones(golden: Golden) -> None:
    net = unfilled(lambda: make("imagenet"))
    assert shapes(net) == golden.keys("res2net101_v1b_26w_4s")


@pytest.fixture(scope="module")
def state(golden: Golden) -> dict[str, Tensor]:
    return golden.state(unfilled(lambda: make("imagenet")), GAIN)


@pytest.mark.parametrize(
    ("case", "image"),
    [
        ("imagenet", "1x3x96x96"),
        ("os8_s1211_d1124", "1x3x97x113"),
        pytest.param("imagenet", "1x3x97x113", marks=pytest.mark.slow),
        pytest.param("os8_s1211_d1124", "1x3x96x96", marks=pytest.mark.slow),
    ],
)
def test_every_block_gives_the_public_network_s_values(
    golden: Golden, state: dict[str, Tensor], case: str, image: str
) -> None:
    values = golden.values("res2net101_v1b_26w_4s")
    prefix = f"{case}/{image}"
    stored = taps(values, prefix)
    own = {k: t for k, t in state.items() if case == "imagenet" or not k.startswith("fc.")}
    net = filled(lambda: make(case), own)
    layers = STEM | {tap: tap for tap in stored if tap.startswith("layer")}
    images = golden.input(image)
    with torch.no_grad(), recorded(net, layers) as found:
        if case == "imagenet":
            found["fc"] = logits(net, images)
        else:
            found |= {f"out{i}": tap for i, tap in enumerate(net.forward_features(images))}
    check_taps(values, prefix, found, stored)


def test_features_are_as_announced() -> None:
    net = Res2Net101(strides=(1, 2, 1, 1)).eval()
    for size in ((1, 1), (3, 40), (33, 50)):
        with torch.no_grad():
            found = net.forward_features(torch.zeros(1, 3, *size))
        for tap, info in zip(found, net.features, strict=True):
            want = tuple(-(-side // info.stride) for side in size)
            assert tuple(tap.shape[1:]) == (info.channels, *want)
