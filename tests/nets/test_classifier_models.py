"""Classifiers on backbones of mmsegmentation's registry: a step, maps, weights, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import nn

from pmm_ray.config import (
    AnyClassifierConfig,
    CamsConfig,
    ClassifierConfig,
    MulticropConfig,
    RunConfig,
)
from pmm_ray.config.backbones import IMAGENET_MEAN
from pmm_ray.nets.cam_network import CamNetwork
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.nets.registry import build_classifier, load_classifier
from pmm_ray.nets.seam import SeamNetwork
from pmm_ray.nets.segmenter_config import normalisation
from pmm_ray.nets.segmenter_source import ModelSource, classifier_source
from pmm_ray.pipeline.tables.cam_tables import table_backbones, with_backbone
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.rows.cams import decode_cam
from pmm_ray.stages.make_cams import cam_worker
from pmm_ray.stages.train_classifier import (
    ClassifierLoss,
    ClassifierTask,
    SiameseLoss,
    model_identity,
)

from ..training import task_fields, train, training_job

MIT = (
    "dict(type='MixVisionTransformer', embed_dims=8, num_layers=[1, 1, 1, 1], "
    "num_heads=[1, 1, 2, 2]{more})"
)
SWIN = (
    "dict(type='SwinTransformer', embed_dims=8, depths=(1, 1, 1, 1), num_heads=(1, 1, 1, 1), "
    "window_size=4{more})"
)
RESNET = "dict(type='ResNetV1c', depth=18, base_channels=8, norm_cfg=dict(type='SyncBN'){more})"
# it has bare parameters
VIT = (
    "dict(type='VisionTransformer', img_size=64, embed_dims=16, num_layers=3, num_heads=2, "
    "out_indices=(0, 1, 2){more})"
)
BACKBONES = {"mit": (MIT, 32), "swin": (SWIN, 32), "resnet": (RESNET, 32), "vit": (VIT, 16)}
RECIPES = Path(__file__).parents[2] / "recipes" / "mmseg"


def section(folder: Path, model: str, lines: str = "", **values: Any) -> ClassifierConfig:
    path = folder / "user.py"
    path.write_text(f"model = {model.replace('{more}', '')}\n{lines}\n")
    values = {"weights": "none", "crop_size": 64, **values, "model": str(path)}
    return ClassifierConfig.model_validate(values)


def make(config: AnyClassifierConfig) -> tuple[CamNetwork, ModelSource]:
    source = classifier_source(config)
    assert source is not None
    torch.manual_seed(0)
    return build_classifier(config, 3, source), source


def step(network: CamNetwork, seam: bool) -> None:
    """One step of a training: every parameter that is trained gets a gradient, and moves."""
    module = (SiameseLoss if seam else ClassifierLoss)(network).train()
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    targets = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
    before = {name: p.detach().clone() for name, p in trained.items()}
    loss = module(images, targets)
    loss.backward()
    assert torch.isfinite(loss)
    # data parallel training stops at a parameter that no loss reaches
    assert [name for name, p in trained.items() if p.grad is None] == []
    torch.optim.SGD(trained.values(), lr=0.1).step()
    moved = [name for name, p in trained.items() if not torch.equal(p, before[name])]
    assert any("net." in name for name in moved)
    assert any(layer in name for name in moved for layer in network.head_layers)


@pytest.mark.parametrize("kind", ["plain", "seam"])
@pytest.mark.parametrize("name", list(BACKBONES))
def test_a_step_and_maps_on_a_registered_backbone(name: str, kind: str, tmp_path: Path) -> None:
    model, stride = BACKBONES[name]
    config = section(tmp_path, model, kind=kind)
    network, source = make(config)
    step(network, kind == "seam")
    # kept and built again without the file and the weights that the training started from
    uri = str(tmp_path / "model.pt")
    started = config.model_copy(update={"weights": "imagenet"})
    meta = {"config": started.model_dump(mode="json"), "num_foreground": 3}
    meta |= {"model": source.model, "imports": list(source.imports)}
    save_model(uri, "classifier", network, meta)
    Path(str(config.model)).unlink()
    loaded, _ = load_classifier(uri)
    images = torch.randn(1, 3, 65, 90)
    with torch.no_grad():
        scores = network.eval().cam_scores(images)
        assert torch.equal(loaded.cam_scores(images), scores)
    assert scores.shape == (1, 3, -(-65 // stride), -(-90 // stride))
    assert torch.isfinite(scores).all()
    with torch.no_grad():
        small = network.cam_scores(images[:, :, :9, :40])
    assert small.shape == (1, 3, -(-9 // stride), -(-40 // stride))
    assert torch.isfinite(small).all()
    assert scores.std() > 0


def test_seam_takes_the_two_maps_before_the_last_or_those_that_are_named(tmp_path: Path) -> None:
    taps = []
    for lines in ("", "seam_features = (0, 3)"):
        network, _ = make(section(tmp_path, SWIN, lines, kind="seam"))
        assert isinstance(network, SeamNetwork)
        weights = (network.correlation.f8_3.weight, network.correlation.f8_4.weight)
        taps.append(tuple(weight.shape[1] for weight in weights))
    assert taps == [(16, 32), (8, 64)]


def test_of_a_whole_model_the_backbone_is_taken(tmp_path: Path) -> None:
    config = ClassifierConfig(model=str(RECIPES / "segformer_mit-b0.py"), weights="none")
    network, source = make(config)
    assert cast(Any, network).head.weight.shape == (3, 256, 1, 1)
    assert set(source.model) == {"backbone", "data_preprocessor"}
    assert normalisation(config.backbone, source)[0] == IMAGENET_MEAN
    lines = "data_preprocessor = dict(mean=[51, 51, 51], std=[51, 51, 51], to_rgb=True)"
    network, _ = make(section(tmp_path, MIT, lines))
    assert network.input_mean == pytest.approx((0.2, 0.2, 0.2))


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_public_checkpoint_is_loaded_and_its_heads_are_left(prefix: str, tmp_path: Path) -> None:
    config = section(tmp_path, SWIN, kind="seam")
    net = cast(nn.Module, make(config)[0].backbone.net)
    state = {f"{prefix}{n}": t + 1 for n, t in net.state_dict().items() if t.is_floating_point()}
    state |= {f"{prefix}{n}": t for n, t in net.state_dict().items() if not t.is_floating_point()}
    # as ImageNet's file of Swin: the last norm alone, and a head
    for index in range(3):
        del state[f"{prefix}norm{index}.weight"], state[f"{prefix}norm{index}.bias"]
    file = str(tmp_path / "public.pth")
    torch.save({"state_dict": {**state, "head.fc.weight": torch.ones(2, 2)}}, file)
    network, _ = make(config.model_copy(update={"weights": file}))
    got = cast(nn.Module, network.backbone.net).state_dict()
    assert torch.equal(got["norm3.weight"], state[f"{prefix}norm3.weight"])
    assert torch.equal(got["norm0.weight"], torch.ones(8))
    assert network.loaded is not None
    assert network.loaded.left_over == ("head.fc.weight",)
    # what the file names is what `imagenet` means
    named = SWIN.replace("{more}", f", init_cfg=dict(type='Pretrained', checkpoint={file!r})")
    again, _ = make(section(tmp_path, named, kind="seam", weights="imagenet"))
    assert again.loaded == network.loaded
    del state[f"{prefix}patch_embed.projection.bias"]
    torch.save(state, file)
    with pytest.raises(CannotRunError, match=r"1 missing: patch_embed\.projection\.bias"):
        make(config.model_copy(update={"weights": file}))


def test_the_identity_follows_the_files_content(tmp_path: Path) -> None:
    found = []
    for folder, model, lines in (
        ("a", MIT, ""),
        ("b", MIT, "# moved"),
        ("c", MIT.replace("embed_dims=8", "embed_dims=16"), ""),
        ("d", MIT, "seam_features = (0, 1)"),
    ):
        (tmp_path / folder).mkdir()
        config = section(tmp_path / folder, model, lines)
        # the stage's hash is of the section and of this
        found.append([config.identity(), model_identity(config)])
    assert found[0] == found[1]
    assert found[0] != found[2] != found[3] != found[0]
    assert model_identity(ClassifierConfig(weights="none")) == ["none"]
    file = tmp_path / "w.pth"
    torch.save({}, file)
    assert len(model_identity(config.model_copy(update={"weights": str(file)}))[1]) == 64


@pytest.mark.parametrize(
    ("model", "lines", "message"),
    [
        ("None", "", "has no `model` that is a backbone"),
        ("dict(embed_dims=8)", "", "has no `model` that is a backbone"),
        ("dict(type='NobodyKnows')", "", "cannot build this model"),
        ("dict(type='PmmScaleNet101')", "", "classifier.backbone to it"),
        ("dict(type='OHEMPixelSampler')", "", "cannot build this model"),
        (MIT, "seam_features = (0, 9)", "does not name two of the backbone's 4"),
        (MIT.replace("{more}", ", out_indices=(3,)"), "", "SEAM needs two feature maps"),
        (MIT.replace("{more}", ", pretrained='https://x/y.pth'"), "", "set classifier.weights to"),
        (MIT, "", "names no weights of its backbone: set classifier.weights to its checkpoint"),
    ],
)
def test_what_cannot_be_used_is_refused(
    model: str, lines: str, message: str, tmp_path: Path
) -> None:
    config = section(tmp_path, model, lines, kind="seam", weights="imagenet")
    with pytest.raises(CannotRunError, match=message) as error:
        make(config)
    assert str(config.model) in str(error.value)


def test_a_backbone_for_one_size_is_found_out_before_workers_are_asked_for(
    shapes: Manifest, tmp_path: Path
) -> None:
    fixed = SWIN.replace("{more}", ", use_abs_pos_embed=True, pretrain_img_size={size}")
    for model, message in (
        (fixed.replace("{size}", "96"), "cannot compute features"),
        (fixed.replace("{size}", "64"), "cannot train on crops of 128 px"),
        ("dict(type='UNet', base_channels=4)", "cannot make maps of an image of 65 x 127 px"),
        (SWIN, None),
    ):
        config = section(tmp_path, model, crop_size=128)
        task = ClassifierTask(**task_fields(shapes, config, model=classifier_source(config)))
        state = torch.get_rng_state()
        if message is None:
            task.check()
            assert torch.equal(torch.get_rng_state(), state)
            continue
        with pytest.raises(CannotRunError, match=message):
            task.check()


@pytest.mark.parametrize("kind", ["plain", "seam"])
def test_the_training_keeps_the_model_and_normalises_as_it_asks(
    kind: str, shapes: Manifest, group: None, tmp_path: Path
) -> None:
    lines = "data_preprocessor = dict(mean=[51, 51, 51], std=[51, 51, 51], bgr_to_rgb=True)"
    config = section(tmp_path, SWIN, lines, kind=kind, resize_long=[48, 64], crop_size=48)
    task = ClassifierTask(**task_fields(shapes, config, model=classifier_source(config)))
    assert task.sample().statistics[0] == pytest.approx((0.2, 0.2, 0.2))
    job = training_job(task, tmp_path / "run", images=12, steps=2)
    assert np.isfinite(train(job)["loss"])
    Path(str(config.model)).unlink()
    worker = cam_worker(job.model_uri, CamsConfig(scales=(0.5, 1.0)), task.photographs, False)
    row = next(row for row in tables.read_table(shapes.uri).to_pylist() if row["labels"])
    [made] = worker([{"manifest": row}])
    assert not isinstance(made, ErrorRow)
    # normalised before it is stored, at a quarter of the size
    assert 0.9 < decode_cam(made).max() <= 1


def test_messages_name_the_section(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match=r"'seam' are published .* set classifier\.weights"):
        make(section(tmp_path, MIT, weights="seam"))
    gone = MulticropConfig(model=str(tmp_path / "gone.py"))
    with pytest.raises(CannotRunError, match=r"multicrop\.model: cannot read .*gone\.py"):
        classifier_source(gone)


def test_tables_name_the_file_and_other_backbones_do_without_it(tmp_path: Path) -> None:
    own = section(tmp_path, MIT)
    config = RunConfig(classifier=own)
    assert table_backbones(config) == ("user", "efficientnet_lite0")
    other = with_backbone(config.classifier, "resnet38", config)
    assert (other.model, other.backbone, other.weights) == (None, "resnet38", "imagenet")
    second = with_backbone(config.multicrop, "user", config)
    assert (second.model, second.weights) == (own.model, "none")
