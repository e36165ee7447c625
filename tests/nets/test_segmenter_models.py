"""The paper's networks and others: channels, dilations, a step of each, layouts, recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mmseg.registry import MODELS
from torch import nn

from pmm_ray.config import UnderfittingConfig, load_recipe
from pmm_ray.config.backbones import BACKBONES
from pmm_ray.labels import COCO14, VOC12
from pmm_ray.nets.backbone import Shape, build_backbone
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.nets.segmenter import (
    build_segmenter,
    description_of,
    forward_loss,
    load_segmenter,
    predict_logits,
)
from pmm_ray.nets.segmenter_config import segmenter_model
from pmm_ray.nets.segmenter_source import read_model

from .segmenter_models import CONFIG, RECIPES, step


@pytest.mark.parametrize("name", ["pspnet", "deeplabv3plus_r50", "segformer_mit-b0", "upernet_r18"])
def test_a_step_of_each_network(name: str, tmp_path: Path) -> None:
    source = None if name == "pspnet" else read_model(str(RECIPES / f"{name}.py"))
    torch.manual_seed(0)
    network = build_segmenter(CONFIG, 4, 255, source=source)
    assert "decode.loss_pus" in step(network)
    # kept and built again without the file
    save_model(str(tmp_path / "m.pt"), "segmenter", network, description_of(network).meta())
    loaded, _ = load_segmenter(str(tmp_path / "m.pt"))
    images = torch.randn(1, 3, 65, 90)
    with torch.no_grad():
        logits = predict_logits(network.eval(), images)
        assert logits.shape == (1, 4, 65, 90)
        assert torch.equal(predict_logits(loaded, images), logits)


def test_heads_fit_the_channels_of_every_backbone() -> None:
    for name in ("efficientnet_lite0", "scalenet101", "resnet38", "res2net101"):
        with torch.device("meta"):
            built = MODELS.build({"type": BACKBONES[name].mmseg_type, "output_stride": 8})
        assert built.channels == list(BACKBONES[name].features.values())
        strides = [built.net.features[i].stride for i in built._indices]
        assert strides == [4, 8, 8, 8]


@pytest.mark.parametrize(
    ("name", "last"), [("scalenet101", 2048), ("resnet38", 4096), ("res2net101", 2048)]
)
def test_the_papers_networks_have_heads_in_the_right_features(name: str, last: int) -> None:
    """Head in the last feature, auxiliary head in the third: 1024 channels (released code)."""
    config = CONFIG.model_copy(update={"backbone": name})
    model = segmenter_model(config, 21, 255)
    assert (model["decode_head"]["in_channels"], model["decode_head"]["in_index"]) == (last, 3)
    auxiliary = model["auxiliary_head"]
    assert (auxiliary["in_channels"], auxiliary["in_index"]) == (1024, 2)
    assert auxiliary["loss_decode"]["loss_weight"] == 0.4
    assert model["data_preprocessor"]["mean"] == pytest.approx([123.675, 116.28, 103.53])


def test_dilations_are_those_of_the_released_code() -> None:
    def stages(name: str) -> dict[str, set[int]]:
        with torch.device("meta"):
            net = build_backbone(name, Shape(dilate=True))
        return {
            layer: {
                module.dilation[0]
                for module in net.get_submodule(layer).modules()
                if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
            }
            for layer in ("layer1", "layer2", "layer3", "layer4")
        }

    want = {"layer1": {1}, "layer2": {1}, "layer3": {2}, "layer4": {4}}
    assert stages("scalenet101") == stages("res2net101") == want
    with torch.device("meta"):
        wide = MODELS.build({"type": "PmmResNet38"}).net
    assert wide.b7.conv_branch2b1.dilation == (4, 4)
    assert all(parameter.requires_grad for parameter in wide.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["scalenet101", "resnet38", "res2net101"])
def test_a_step_of_the_papers_networks(name: str) -> None:
    torch.manual_seed(0)
    step(build_segmenter(CONFIG.model_copy(update={"backbone": name}), 4, 255))


def test_frozen_norms_stay_frozen_when_they_are_synchronised() -> None:
    config = CONFIG.model_copy(update={"freeze_norm": True})
    network = nn.SyncBatchNorm.convert_sync_batchnorm(build_segmenter(config, 4, 255))  # type: ignore[no-untyped-call]
    network.eval()
    network.train()
    synchronised = [
        (name, module)
        for name, module in network.named_modules()
        if isinstance(module, nn.SyncBatchNorm)
    ]
    assert {name.split(".")[0]: module.training for name, module in synchronised} == {
        "backbone": False,
        "decode_head": True,
        "auxiliary_head": True,
    }
    assert not any(m.training for name, m in synchronised if name.startswith("backbone"))


def outputs_of(network: nn.Module, rows: list[int], source: nn.Module) -> None:
    """Give a network another one's weights; its class outputs go to rows."""
    state = dict(source.state_dict())
    own = network.state_dict()
    for name, tensor in state.items():
        if own[name].shape != tensor.shape:
            wide = torch.full_like(own[name], 50.0)
            wide[rows] = tensor
            own[name] = wide
        else:
            own[name] = tensor
    network.load_state_dict(own)


def test_outputs_that_are_no_class_take_no_part() -> None:
    """Ids 0, 2 and 5 of six outputs: the same losses, gradients and logits as three outputs."""
    ids = [0, 2, 5]
    pus = UnderfittingConfig(kind="clamp", beta=9.0, kappa=1.0)
    config = CONFIG.model_copy(update={"dropout": 0.0})
    torch.manual_seed(0)
    narrow = build_segmenter(config, 3, 255, underfitting=pus)
    wide = build_segmenter(config, 3, 255, underfitting=pus, outputs=ids)
    outputs_of(wide, ids, narrow)
    assert description_of(wide).model["decode_head"]["num_classes"] == 6
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    masks = torch.randint(0, 3, (2, 64, 64), generator=generator)
    wide_masks = torch.tensor(ids)[masks]
    losses: list[dict[str, Any]] = []
    for network, target in ((narrow, masks), (wide, wide_masks)):
        found = forward_loss(network.train(), images, target)
        found["decode.loss_pus"].backward()
        losses.append({name: float(v.detach()) for name, v in found.items() if "loss" in name})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    gradients = [n.get_submodule("decode_head.conv_seg").weight.grad for n in (narrow, wide)]
    assert torch.all(gradients[1][[1, 3, 4]] == 0)  # type: ignore[index]
    torch.testing.assert_close(gradients[1][ids], gradients[0], rtol=1e-4, atol=1e-6)  # type: ignore[index]
    with torch.no_grad():
        logits = [predict_logits(n.eval(), images) for n in (narrow, wide)]
    torch.testing.assert_close(*logits)


@pytest.mark.parametrize(
    ("recipe", "iterations", "batch", "rate", "floor", "crop", "level", "outputs"),
    [
        ("voc12", 20_000, 16, 0.005, 1e-4, 512, 0.5, 21),
        ("voc12-released", 20_000, 16, 0.005, 1e-4, 512, 0.5, 21),
        ("coco14", 40_000, 64, 0.02, 5e-5, 512, 0.8, 91),
        ("coco14-released", 40_000, 32, 0.01, 5e-5, 448, 0.8, 91),
    ],
)
def test_recipes_carry_the_papers_numbers(
    recipe: str,
    iterations: int,
    batch: int,
    rate: float,
    floor: float,
    crop: int,
    level: float,
    outputs: int,
) -> None:
    section = load_recipe(RECIPES.parent / f"{recipe}.yaml").segmenter
    assert (section.iterations, section.batch_size) == (iterations, batch)
    assert (section.learning_rate, section.min_learning_rate) == (rate, floor)
    assert (section.momentum, section.weight_decay, section.poly_power) == (0.9, 5e-4, 0.9)
    assert (section.head_multiplier, section.clip_norm, section.freeze_norm) == (1.0, None, False)
    assert (section.crop_size, section.resize_base) == (crop, (2048, crop))
    assert (section.resize_ratio, section.cat_max_ratio) == ((0.5, 2.0), 0.75)
    pus = section.underfitting
    assert (pus.kind, pus.scope, pus.beta, pus.kappa) == ("clamp", "group", level, level)
    space = VOC12 if outputs == 21 else COCO14
    ids = space.dataset_ids if section.layout == "dataset" else range(space.num_classes)
    assert max(ids) + 1 == outputs
    head = segmenter_model(section, outputs, 255)["decode_head"]
    assert (head["in_channels"], head["channels"], head["dropout_ratio"]) == (2048, 512, 0.1)
