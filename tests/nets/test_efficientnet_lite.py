"""EfficientNet-lite: the pretrained network, its dilation, its taps."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pmm_ray.config import ClassifierConfig
from pmm_ray.config.backbones import BACKBONES
from pmm_ray.nets.backbone import Backbone, build_backbone
from pmm_ray.nets.efficientnet_lite import EfficientNetLite
from pmm_ray.nets.registry import build_classifier
from pmm_ray.nets.weight_files import find_weights
from pmm_ray.nets.weights import load_pretrained, read_state

from .golden import logits, with_classifier

ROW = BACKBONES["efficientnet_lite0"]
# ImageNet classes of all dog breeds
DOGS = range(151, 269)
VOC_DOG = 11


def load_public(net: Backbone, size: int = 0) -> None:
    file = str(find_weights("imagenet", f"efficientnet_lite{size}"))
    load_pretrained(net, read_state(file), file, heads=net.heads)


@pytest.mark.parametrize(
    ("size", "own", "with_seam"), [(0, 3.37, 3.45), (1, 4.14, 4.22), (2, 4.81, 4.89)]
)
def test_the_millions_of_parameters_are_those_of_the_page(
    size: int, own: float, with_seam: float
) -> None:
    """docs/reference/classifier.md."""
    name = f"efficientnet_lite{size}"
    seam = build_classifier(ClassifierConfig(backbone=name, kind="seam", weights="none"), 20)
    for net, millions in ((build_backbone(name), own), (seam, with_seam)):
        assert round(sum(p.numel() for p in net.parameters()) / 1e6, 2) == millions


@pytest.mark.parametrize(("size", "stride", "factor"), [(0, 16, 2), (0, 8, 4), (2, 16, 2)])
def test_a_dilated_network_computes_the_strided_one(size: int, stride: int, factor: int) -> None:
    strided, dilated = EfficientNetLite(size, 32), EfficientNetLite(size, stride)
    load_public(strided, size)
    load_public(dilated, size)
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        want = strided.eval().forward_features(images)[-1]
        got = dilated.eval()(images)
    assert got.shape[-2:] == (64 // stride, 96 // stride)
    # SAME padding puts the strided kernels' centres on the odd pixels
    torch.testing.assert_close(
        got[..., factor - 1 :: factor, factor - 1 :: factor], want, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(64, 64), (65, 33), (1, 1)])
def test_features_are_as_announced(stride: int, size: tuple[int, int]) -> None:
    net = EfficientNetLite(0, stride).eval()
    with torch.no_grad():
        taps = net.forward_features(torch.zeros(1, 3, *size))
    assert len(taps) == len(net.features) == 8
    for tap, info in zip(taps, net.features, strict=True):
        want = tuple(-(-side // info.stride) for side in size)
        assert tuple(tap.shape[1:]) == (info.channels, *want)
    assert net.features[-1].stride == stride


@pytest.mark.parametrize("size", [0, 1, 2])
def test_the_pretrained_network_knows_dogs(shared: Path, size: int) -> None:
    pretrained = with_classifier(EfficientNetLite(size, 32))
    load_public(pretrained, size)
    pretrained.eval()
    voc = shared / "data/voc12-mini/VOCdevkit/VOC2012"
    # a pickle, but a known one of the development data
    labels = np.load(voc / "cls_labels.npy", allow_pickle=True).item()
    dogs = sorted(i for i, label in labels.items() if label[VOC_DOG])[:25]
    hits = 0
    for image_id in dogs:
        image = cv2.imread(str(voc / "JPEGImages" / f"{image_id}.jpg"))[:, :, ::-1]
        side = min(image.shape[:2])
        top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
        crop = cv2.resize(
            image[top : top + side, left : left + side], (224, 224), interpolation=cv2.INTER_AREA
        )
        values = (crop / 255 - np.array(ROW.input_mean)) / np.array(ROW.input_std)
        with torch.no_grad():
            scores = logits(pretrained, torch.from_numpy(values.transpose(2, 0, 1)[None]).float())
        hits += int(scores.argmax()) in DOGS
    # many of these photographs show other things too; chance is 12 %
    assert hits >= 0.6 * len(dogs)
