"""Classifiers by name, and the files they are kept in."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from pmm_ray.config import ClassifierConfig, SegmenterConfig
from pmm_ray.config.backbones import BACKBONES
from pmm_ray.nets.backbone import Shape, build_backbone
from pmm_ray.nets.cam_network import CamNetwork
from pmm_ray.nets.checkpoints import load_model, save_model, stored_section
from pmm_ray.nets.registry import (
    CamClassifier,
    build_classifier,
    load_classifier,
)
from pmm_ray.nets.scalenet import BLOCKS, ScaleNet
from pmm_ray.nets.seam import SeamNetwork
from pmm_ray.nets.weights import load_torch
from pmm_ray.runtime.core.errors import CannotRunError

from .golden import unfilled

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


def make(backbone: str, kind: str = "plain", **options: Any) -> CamNetwork:
    values = {"backbone": backbone, "kind": kind, "weights": "none", **options}
    return build_classifier(ClassifierConfig.model_validate(values), 3)


def test_other_backbones_and_output_strides_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown backbone 'vgg'"):
        build_backbone("vgg")
    with pytest.raises(ValueError, match="8, 16 or 32"):
        build_backbone("scalenet101", Shape(4))
    with pytest.raises(ValueError, match="resnet38 has output stride 8"):
        build_backbone("resnet38", Shape(16))


@pytest.mark.parametrize(
    ("name", "channels", "tapped", "frozen"),
    [
        ("efficientnet_lite0", 1280, (40, 112), ()),
        ("scalenet101", 2048, (512, 1024), ("conv1", "bn1", "layer1")),
        ("resnet38", 4096, (512, 1024), ("conv1a", "b2", "b2_1", "b2_2")),
        ("res2net101", 2048, (512, 1024), ("conv1", "bn1", "layer1")),
    ],
)
def test_classifiers_are_built_on_every_backbone(
    name: str, channels: int, tapped: tuple[int, int], frozen: tuple[str, ...]
) -> None:
    plain = unfilled(lambda: make(name, freeze_first=True))
    seam = unfilled(lambda: make(name, "seam", freeze_first=True))
    assert isinstance(plain, CamClassifier)
    assert isinstance(seam, SeamNetwork)
    assert plain.head.weight.shape == (3, channels, 1, 1)
    assert seam.fc8.weight.shape == (4, channels, 1, 1)
    sizes = (64, tapped[0], 1, 1), (128, tapped[1], 1, 1)
    names = ("f8_3.weight", "f8_4.weight")
    assert tuple(seam.state_dict()[layer].shape for layer in names) == sizes
    row = BACKBONES[name]
    for net in (plain, seam):
        assert (net.input_mean, net.input_std) == (row.input_mean, row.input_std)
        learning = {n for n, p in net.named_parameters() if p.requires_grad}
        inside = {n.removeprefix("backbone.").split(".")[0] for n in learning}
        assert not inside & set(frozen)
        assert set(net.head_layers) <= inside
        assert all(p.ndim > 1 for p in net.parameters() if p.requires_grad)
    free = unfilled(lambda: make(name))
    first = {n.split(".")[1] for n, p in free.named_parameters() if p.requires_grad}
    assert {layer for layer in frozen if not layer.startswith("bn")} <= first


@pytest.mark.parametrize("name", ["efficientnet_lite0", "scalenet101", "resnet38", "res2net101"])
@pytest.mark.slow
def test_seam_computes_maps_of_any_image_on_every_backbone(name: str) -> None:
    net = make(name, "seam").eval()
    images = torch.randn(1, 3, 45, 70)
    with torch.no_grad():
        cam, refined = net(images)
        scores = net.cam_scores(images)
    assert cam.shape == refined.shape == (1, 4, 45, 70)
    assert torch.isfinite(cam).all()
    assert torch.isfinite(refined).all()
    assert scores.shape[:2] == (1, 3)
    assert (refined >= 0).all()


@pytest.mark.parametrize("name", ["efficientnet_lite0", "scalenet101", "resnet38", "res2net101"])
def test_segmentation_keeps_stride_8_and_dilates(name: str) -> None:
    net = unfilled(lambda: build_backbone(name, Shape(dilate=True)))
    assert net.features[-1].stride == 8
    widest = max(m.dilation[0] for m in net.modules() if isinstance(m, torch.nn.Conv2d))
    assert widest == 4
    narrow = unfilled(lambda: build_backbone("scalenet101"))
    assert {m.dilation for m in narrow.modules() if isinstance(m, torch.nn.Conv2d)} == {(1, 1)}


def test_the_dilation_of_resnet38_is_the_configuration_s() -> None:
    for dilation in (2, 4):
        net = unfilled(partial(make, "resnet38", resnet38_dilation=dilation))
        assert net.backbone.get_submodule("b7.conv_branch2b1").dilation == (dilation,) * 2
        assert net.backbone.get_submodule("b6.conv_branch2b1").dilation == (4, 4)


def test_gating_follows_the_configuration() -> None:
    for gate in (False, True):
        net = unfilled(partial(make, "scalenet101", "seam", pcm={"gate_labels": gate}))
        assert isinstance(net, SeamNetwork)
        assert net.gate_labels is gate


@pytest.mark.parametrize("kind", ["plain", "seam"])
def test_scalenet50_takes_its_channels_from_the_file(tmp_path: Path, kind: str) -> None:
    with pytest.raises(CannotRunError, match="no built-in channel table"):
        make("scalenet50")
    rows = [[(1, 1, 0, block % 2) for block in range(blocks)] for blocks in BLOCKS[50]]
    saved = ScaleNet(rows)  # type: ignore[arg-type]
    weights, model = str(tmp_path / "w.pth"), str(tmp_path / "model.pt")
    torch.save(saved.state_dict(), weights)
    config = ClassifierConfig.model_validate(
        {"backbone": "scalenet50", "kind": kind, "weights": weights}
    )
    net = build_classifier(config, 3).eval()
    save_model(model, "classifier", net, {**META, "config": config.model_dump(mode="json")})
    again, _ = load_classifier(model)
    images = torch.randn(1, 3, 33, 40)
    with torch.no_grad():
        assert torch.equal(net.cam_scores(images), again.cam_scores(images))
    short = {n: t for n, t in saved.state_dict().items() if not n.startswith("layer4")}
    torch.save(short, weights)
    with pytest.raises(CannotRunError, match=r"weights of scalenet50: not a ScaleNet-50"):
        build_classifier(config, 3)


@pytest.mark.parametrize(
    "name", [pytest.param("scalenet101", marks=pytest.mark.slow), "res2net101"]
)
def test_random_weights_with_frozen_norms_survive_an_update(name: str) -> None:
    torch.manual_seed(0)
    net = make(name, "seam")
    assert isinstance(net, SeamNetwork)
    images = torch.randn(1, 3, 40, 56)
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.02)
    cam, _ = net.train()(images)
    assert cam.abs().max() < 1e3
    cam.square().mean().backward()
    assert all(p.grad is not None for n, p in net.named_parameters() if n.endswith("conv3.weight"))
    optimizer.step()
    with torch.no_grad():
        assert torch.isfinite(net.eval().cam_scores(images)).all()
