"""Wide ResNet-38 and SEAM on it: the public networks' names and numbers, any size of image."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pmm_ray.nets import seam as seam_module
from pmm_ray.nets.resnet38 import ResNet38
from pmm_ray.nets.seam import SeamNetwork

from .golden import (
    TOLERANCE,
    Golden,
    check_taps,
    filled,
    recorded,
    shapes,
    taps,
    unfilled,
)

HEADS = {"fc8_raw_cam": "fc8", "f8_3_pre_relu": "f8_3", "f8_4_pre_relu": "f8_4", "f9": "f9"}


@pytest.fixture(scope="module")
def seam(golden: Golden) -> SeamNetwork:
    def make() -> SeamNetwork:
        return SeamNetwork(ResNet38(4), 20, taps=("conv4", "conv5"), dropout=0.5)

    return filled(make, golden.state(unfilled(make)))


def test_names_and_shapes_are_the_public_ones(golden: Golden, seam: SeamNetwork) -> None:
    for net, name in ((seam, "resnet38_seam"), (seam.backbone, "resnet38")):
        assert shapes(net) == golden.keys(name)
    for net, millions in ((seam, 105.36), (seam.backbone, 105.07)):
        assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(
    "image",
    [
        "1x3x97x113#4",
        pytest.param("1x3x96x96#4", marks=pytest.mark.slow),
        pytest.param("1x3x134x134#4", marks=pytest.mark.slow),
    ],
)
def test_every_step_gives_seam_s_values(
    golden: Golden, seam: SeamNetwork, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = golden.values("resnet38_seam_b7dil4")
    prefix = f"c21/{image}"
    stored = taps(values, prefix)
    inside: dict[str, Tensor] = {}
    real_maps, real_correlate = seam_module.dominant_maps, seam_module.correlate

    def maps(cam: Tensor, labels: Tensor | None) -> Tensor:
        return inside.setdefault("pcm_in_cam", real_maps(cam, labels))

    def correlate(maps: Tensor, keys: Tensor) -> Tensor:
        return inside.setdefault("pcm_out", real_correlate(maps, keys))

    monkeypatch.setattr(seam_module, "dominant_maps", maps)
    monkeypatch.setattr(seam_module, "correlate", correlate)
    seam.f9.register_forward_pre_hook(lambda _, inputs: inside.update(pcm_in_feat=inputs[0]))
    layers = HEADS | {tap: tap for tap in stored if tap.startswith("b")} | {"conv1a": "conv1a"}
    images = golden.input(image)
    with torch.no_grad(), recorded(seam, layers) as found:
        cam, refined = seam(images)
        features = seam.backbone.forward_features(images)
    names = [info.name for info in seam.backbone.features]
    found |= inside | {"cam": cam, "cam_rv": refined} | dict(zip(names, features, strict=True))
    assert len(stored) == 31
    check_taps(values, prefix, found, stored)
    for tap in ("cam", "cam_rv"):
        wanted = values[f"{prefix}/{tap}_chan_minmax"]
        got = torch.stack([found[tap].amin((2, 3)), found[tap].amax((2, 3))], dim=2).numpy()
        assert np.abs(got - wanted).max() <= TOLERANCE * np.abs(wanted).max()


def test_the_last_block_s_dilation_changes_the_features_and_no_name(seam: SeamNetwork) -> None:
    four = seam.backbone
    two = filled(lambda: ResNet38(2), four.state_dict())
    images = torch.randn(1, 3, 40, 33, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        taps_two, taps_four = two.forward_features(images), four.forward_features(images)
    assert all(torch.equal(a, b) for a, b in zip(taps_two[:3], taps_four[:3], strict=True))
    assert not torch.allclose(taps_two[3], taps_four[3])
    for tap, info in zip(taps_two, two.features, strict=True):
        want = tuple(-(-side // info.stride) for side in (40, 33))
        assert tuple(tap.shape[1:]) == (info.channels, *want)
