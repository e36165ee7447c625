"""Classifiers by name, and the files they are kept in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pmm_ray.config import ClassifierConfig, SegmenterConfig
from pmm_ray.nets.checkpoints import load_model, save_model, stored_section
from pmm_ray.nets.registry import build_classifier, load_classifier
from pmm_ray.nets.weights import load_torch
from pmm_ray.runtime.errors import CannotRunError

CONFIG = ClassifierConfig(weights="none")
META = {"config": CONFIG.model_dump(mode="json"), "num_foreground": 3}


@pytest.mark.parametrize("stride", [8, 16, 32])
@pytest.mark.parametrize("size", [(33, 50), (1, 1)])
def test_scores_cover_the_image_at_the_output_stride(stride: int, size: tuple[int, int]) -> None:
    net = build_classifier(CONFIG.model_copy(update={"output_stride": stride}), 5).eval()
    with torch.no_grad():
        logits, scores = net(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5)
    assert scores.shape == (2, 5, *(-(-side // stride) for side in size))


def test_cam_scores_keep_their_sign_and_widen_half_precision() -> None:
    net = build_classifier(CONFIG, 3).eval().to(torch.bfloat16)
    with torch.no_grad():
        scores = net.cam_scores(torch.randn(1, 3, 48, 48, dtype=torch.bfloat16))
    assert scores.dtype == torch.float32
    assert (scores < 0).any()
    assert (scores > 0).any()


@pytest.mark.parametrize("freeze", [True, False])
def test_norms_stay_in_evaluation_only_where_frozen(freeze: bool) -> None:
    net = build_classifier(CONFIG.model_copy(update={"freeze_norm": freeze}), 3)
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for _ in range(2):
        net.train()
        assert net.head.training
        assert [norm.training for norm in norms] == [not freeze] * len(norms)
        net.eval()
        assert not any(norm.training for norm in norms)
    assert all(p.requires_grad != freeze for norm in norms for p in norm.parameters())


def test_the_head_follows_the_seed_and_loading_leaves_the_generator_alone(tmp_path: Path) -> None:
    heads = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        heads.append(build_classifier(CONFIG, 3).head.weight)
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    uri = str(tmp_path / "model.pt")
    save_model(uri, "classifier", build_classifier(CONFIG, 3), META)
    torch.manual_seed(7)
    want = torch.rand(4)
    torch.manual_seed(7)
    load_classifier(uri)
    assert torch.equal(torch.rand(4), want)


def test_a_file_holds_every_tensor_exactly(tmp_path: Path) -> None:
    uri = str(tmp_path / "model.pt")
    net = build_classifier(CONFIG, 3)
    save_model(uri, "classifier", net, META)
    state, meta = load_model(uri, "classifier")
    assert meta == META
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def change(content: dict[str, Any], name: str) -> Any:
    if name == "no dictionary":
        return [content]
    if name == "other version":
        return {**content, "version": 99}
    if name == "unknown option":
        config = {**content["meta"]["config"], "later_option": 1}
        return {**content, "meta": {**content["meta"], "config": config}}
    content["state_dict"].pop("head.weight")
    return content


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no dictionary", "not a trained classifier"),
        ("other version", "version 99"),
        ("unknown option", "later_option"),
        ("a tensor less", "1 missing: head.weight"),
    ],
)
def test_other_files_are_refused_by_name(tmp_path: Path, name: str, message: str) -> None:
    uri = str(tmp_path / "model.pt")
    save_model(uri, "classifier", build_classifier(CONFIG, 3), META)
    torch.save(change(load_torch(uri), name), uri)
    with pytest.raises(CannotRunError, match=message) as error:
        load_classifier(uri)
    assert uri in str(error.value)


def test_a_stored_configuration_does_not_ask_for_weights() -> None:
    meta = {"config": {**META["config"], "weights": "/absent.pth"}}
    assert stored_section(ClassifierConfig, meta, "x") == CONFIG
    with pytest.raises(CannotRunError, match="x was trained with"):
        stored_section(SegmenterConfig, {}, "x")
