"""A training that cannot start is found out before the stages before it take hours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pmm_ray.config import AffinityConfig, ClassifierConfig, MulticropConfig, SegmenterConfig
from pmm_ray.nets.trial import try_training
from pmm_ray.runtime.core.errors import CannotRunError

from .segmenter_models import small

SECTIONS = [ClassifierConfig, MulticropConfig, AffinityConfig, SegmenterConfig]
LITE = {"backbone": "efficientnet_lite0"}


@pytest.mark.parametrize("section", SECTIONS)
def test_weights_that_do_not_fit_are_named(section: Any, tmp_path: Path) -> None:
    weights = tmp_path / "weights.pth"
    config = section(weights=str(weights), **LITE)
    for content, message in (
        (b"<html>404</html>", "is not a file of plain tensors"),
        ({"layer.weight": torch.zeros(3)}, r"weights\.pth"),
    ):
        if isinstance(content, bytes):
            weights.write_bytes(content)
        else:
            torch.save(content, weights)
        with pytest.raises(CannotRunError, match=message):
            try_training(config)


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("weights", ["none", "imagenet"])
def test_what_can_start_passes_and_leaves_the_generator(section: Any, weights: str) -> None:
    state = torch.get_rng_state()
    try_training(section(weights=weights, **LITE))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_stride_that_the_backbone_has_not_is_named() -> None:
    config = SegmenterConfig(backbone="resnet38", weights="none", output_stride=16)
    with pytest.raises(CannotRunError, match="resnet38 has output stride 8"):
        try_training(config)


def test_a_users_segmenter_is_tried(tmp_path: Path) -> None:
    file = tmp_path / "user.py"
    config = SegmenterConfig(config=str(file), weights="none", crop_size=64)
    file.write_text(f"model = {small()}\n")
    try_training(config)
    dice = small(head="loss_decode=dict(type='DiceLoss')")
    file.write_text(f"model = {dice}\n")
    with pytest.raises(CannotRunError, match=r"set segmenter\.underfitting\.kind: none"):
        try_training(config)
    file.write_text(f"model = {small().replace('in_channels=64', 'in_channels=63')}\n")
    with pytest.raises(CannotRunError, match="cannot train on crops of 64 px"):
        try_training(config)


def test_a_users_classifier_is_built(tmp_path: Path) -> None:
    file = tmp_path / "user.py"
    file.write_text("model = dict(type='NobodyKnows')\n")
    with pytest.raises(CannotRunError, match=r"multicrop\.model: .*cannot build this model"):
        try_training(MulticropConfig(model=str(file), weights="none"))


def test_a_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "user.py").write_text(f"model = {small()}\n")
    try_training(SegmenterConfig(config="~/user.py", weights="none", crop_size=64))
