"""In the loop over an image's views nothing makes a CPU wait for a GPU, or sends it a constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latticecrf import CrfParameters
from latticecrf.mean_field.merging import mergeable_share
from pmm_ray.config import (
    AffinityConfig,
    CamsConfig,
    ClassifierConfig,
    PredictConfig,
    SegmenterConfig,
    UnderfittingConfig,
)
from pmm_ray.nets.affinity import build_affinity
from pmm_ray.nets.cam_network import CamNetwork
from pmm_ray.nets.crop_cams import CropCams, Photograph
from pmm_ray.nets.registry import build_classifier
from pmm_ray.nets.scale_cams import ScaleCams
from pmm_ray.nets.seam import SeamNetwork
from pmm_ray.nets.segmenter import build_segmenter
from pmm_ray.nets.segmenter_views import SegmenterViews, make_views
from pmm_ray.nets.weak_labels import split_scores
from pmm_ray.runtime.training.task import LossModule
from pmm_ray.stages.train_affinity import AffinityLoss
from pmm_ray.stages.train_classifier import ClassifierLoss, SiameseLoss
from pmm_ray.stages.train_segmenter import SegmenterLoss
from pmm_ray.stages.walk_cams import WalkInput, affinities

from .waits import drain, noted_in, waits

CPU = torch.device("cpu")
SEGMENTATION = CrfParameters.segmentation()
IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)


@pytest.mark.parametrize(
    "waiting",
    [
        lambda t: t.sum().item(),
        lambda t: t.tolist(),
        lambda t: t.cpu(),
        lambda t: t.numpy(),
        lambda t: float(t.sum()),
        lambda t: 1 if t.any() else 0,
        lambda t: torch.tensor([1.0], device=t.device),
        lambda t: t.to("cpu"),
        lambda t: t.to(device=t.device),
        lambda t: t[[0, 1]],
        lambda t: t[t > 0],
        lambda t: t.nonzero(),
        lambda t: t.__setitem__([0], 1.0),
    ],
)
def test_what_waits_is_noted(waiting: Callable[[Tensor], Any]) -> None:
    with waits() as noted:
        waiting(torch.ones(3))
    assert noted


def test_what_does_not_wait_is_not_noted() -> None:
    rows = torch.tensor([0, 2])
    with waits() as noted:
        maps = torch.ones(3).to(CPU, non_blocking=True).float()[rows][None].flip(-1)
        (torch.zeros(2, device=CPU) + maps[0, 1:]).to(torch.float16).argsort(stable=True)
    assert noted == []


@pytest.fixture(scope="module", params=["plain", "seam"])
def classifier(request: pytest.FixtureRequest) -> CamNetwork:
    torch.manual_seed(0)
    values = {"kind": request.param, "output_stride": 32, "weights": "none"}
    return build_classifier(ClassifierConfig.model_validate(values), 4).eval()


@pytest.mark.parametrize("pixels", ["auto", 10**6])
def test_multi_scale_cams(classifier: CamNetwork, pixels: Any) -> None:
    cams = ScaleCams(classifier, CamsConfig(scales=(0.5, 1.0), pass_pixels=pixels), CPU)
    images = [(n, cams.prepare(IMAGE, [1, 3])) for n in range(2)]
    assert noted_in(lambda: drain(cams.scores(images))) == []


def test_multi_crop_cams(classifier: CamNetwork) -> None:
    crops = {"scales": [0.5, 1.0], "size": 64, "stride": 44}
    for geometry in ("paper", "released"):
        config = CamsConfig.model_validate(
            {
                "kind": "multi_crop",
                "crops": {**crops, "geometry": geometry},
                "pass_pixels": 5 * 64**2,
            }
        )
        cams = CropCams(classifier, config, CPU)
        images = [Photograph(n, IMAGE, [1 + n, 4], (15, 23)) for n in range(2)]
        assert noted_in(lambda c=cams, i=images: drain(c.merged(i))) == []  # type: ignore[misc]


@pytest.fixture(scope="module")
def segmenter() -> nn.Module:
    torch.manual_seed(0)
    config = SegmenterConfig(channels=8, output_stride=16, auxiliary_weight=0, weights="none")
    return build_segmenter(config, 5, 255).eval()


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_views_of_the_segmenter_and_the_choice_of_classes(segmenter: nn.Module, mode: str) -> None:
    config = PredictConfig.model_validate(
        {"ratios": [0.5, 1.0], "resize_base": [128, 96], "mode": mode, "crop_size": 64}
        | {"stride": 48, "pass_pixels": 10**6}
    )
    photographs = [(n, make_views(IMAGE, config, CPU), (60, 90)) for n in range(2)]
    views = SegmenterViews(segmenter, config, CPU)

    def work() -> None:
        for _, scores in views.probabilities(photographs):
            split_scores(scores, mergeable_share(SEGMENTATION))

    assert noted_in(work) == []


def test_the_choice_among_classes_of_which_any_may_be_merged() -> None:
    assert noted_in(lambda: split_scores(torch.rand(9, 8, 7), 0.9)) == []


def test_affinities() -> None:
    network = build_affinity(AffinityConfig.model_validate({"weights": "none"})).eval()
    cam = np.ones((1, 60, 90), np.float32)
    subject = WalkInput.of(IMAGE, cam, AffinityConfig().walk, CPU)
    assert noted_in(lambda: affinities(subject, network, 3, CPU)) == []


def _step(module: LossModule, targets: Tensor) -> Callable[[], None]:
    """A pass of a training, forwards and back, and what is watched of it."""
    images = torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))

    def work() -> None:
        module(images, targets).backward()
        module.watched()

    return work


def test_a_training_of_the_classifier(classifier: CamNetwork) -> None:
    present = torch.tensor([[1, 0, 1, 0]] * 4).float()
    siamese = isinstance(classifier, SeamNetwork)
    module = SiameseLoss(classifier) if siamese else ClassifierLoss(classifier, [0, 2])
    assert noted_in(_step(module, present)) == []


def test_a_training_of_the_affinity_network() -> None:
    network = build_affinity(AffinityConfig.model_validate({"weights": "none"})).train()
    labels = torch.zeros(4, 64, 64, dtype=torch.uint8)
    assert noted_in(_step(AffinityLoss(network, 3, 255), labels)) == []


@pytest.mark.parametrize("scope", ["group", "worker", "image"])
def test_a_training_of_the_segmenter(scope: Any) -> None:
    config = SegmenterConfig(channels=8, output_stride=16, weights="none")
    network = build_segmenter(config, 5, 255, underfitting=UnderfittingConfig(scope=scope)).train()
    assert noted_in(_step(SegmenterLoss(network), torch.zeros(4, 64, 64, dtype=torch.int64))) == []
