"""Networks of the paper and of mmsegmentation's users: fitted, built, trained a step, kept."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from mmseg.registry import MODELS
from torch import nn

from pmm_ray.config import SegmenterConfig, UnderfittingConfig, load_recipe
from pmm_ray.labels import COCO14, VOC12
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.nets.registry import build_backbone
from pmm_ray.nets.segmenter import (
    build_segmenter,
    describe,
    forward_loss,
    load_segmenter,
    predict_logits,
)
from pmm_ray.nets.segmenter_config import CHANNELS, segmenter_model
from pmm_ray.nets.segmenter_source import BACKBONE_TYPES, ModelSource, read_model
from pmm_ray.runtime.errors import CannotRunError

RECIPES = Path(__file__).parents[2] / "recipes" / "mmseg"
CONFIG = SegmenterConfig(weights="none", channels=8, crop_size=64)


def user_file(folder: Path, model: str, more: str = "") -> ModelSource:
    path = folder / "user.py"
    path.write_text(f"{more}\nmodel = {model}\n")
    return read_model(str(path))


# a whole model in one line: small, with everything that is fitted
SMALL = (
    "dict(type='EncoderDecoder', backbone=dict(type='ResNetV1c', depth=18, base_channels=8, "
    "out_indices=(0, 1, 2, 3), norm_cfg=dict(type='SyncBN')), "
    "decode_head=dict(type='FCNHead', in_channels=64, in_index=3, channels=8, num_convs=1, "
    "num_classes=19, norm_cfg=dict(type='SyncBN'), {head}), test_cfg=dict(mode='whole'){more})"
)


def small(head: str = "loss_decode=dict(type='CrossEntropyLoss')", more: str = "") -> str:
    return SMALL.format(head=head, more=more)


def step(network: nn.Module, classes: int = 4, size: int = 64) -> dict[str, torch.Tensor]:
    """One step of a training; every loss is finite and moves the backbone."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, size, size, generator=generator)
    masks = torch.randint(0, classes, (2, size, size), generator=generator)
    masks[:, :9] = 255
    losses = forward_loss(network.train(), images, masks)
    total = sum((v for name, v in losses.items() if "loss" in name), torch.zeros(()))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    first = next(p for p in network.get_submodule("backbone").parameters() if p.requires_grad)
    before = first.detach().clone()
    total.backward()
    optimizer.step()
    assert torch.isfinite(total)
    assert not torch.equal(first, before)
    return losses


@pytest.mark.parametrize("name", ["pspnet", "deeplabv3plus_r50", "segformer_mit-b0", "upernet_r18"])
def test_a_step_of_each_network(name: str, tmp_path: Path) -> None:
    source = None if name == "pspnet" else read_model(str(RECIPES / f"{name}.py"))
    torch.manual_seed(0)
    network = build_segmenter(CONFIG, 4, 255, source=source)
    assert "decode.loss_pus" in step(network)
    # kept and built again without the file
    save_model(str(tmp_path / "m.pt"), "segmenter", network, describe(network).meta())
    loaded, _ = load_segmenter(str(tmp_path / "m.pt"))
    images = torch.randn(1, 3, 65, 90)
    with torch.no_grad():
        logits = predict_logits(network.eval(), images)
        assert logits.shape == (1, 4, 65, 90)
        assert torch.equal(predict_logits(loaded, images), logits)


def test_heads_fit_the_channels_of_every_backbone() -> None:
    assert (
        set(CHANNELS)
        == set(BACKBONE_TYPES)
        == set(SegmenterConfig.model_fields["backbone"].annotation.__args__)
    )  # type: ignore[union-attr]
    for name in ("efficientnet_lite0", "scalenet101", "resnet38", "res2net101"):
        with torch.device("meta"):
            built = MODELS.build({"type": BACKBONE_TYPES[name], "output_stride": 8})
        assert tuple(built.channels) == CHANNELS[name]
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
            net = build_backbone(name, output_stride=8, dilate=True)
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


def test_a_users_model_is_fitted_to_the_data_set(tmp_path: Path) -> None:
    head = "loss_decode=[dict(type='CrossEntropyLoss', loss_weight=0.5), dict(type='DiceLoss')]"
    auxiliary = (
        ", auxiliary_head=[dict(type='FCNHead', in_channels=32, in_index=2, channels=4, "
        "num_convs=1, num_classes=19)]"
    )
    source = user_file(tmp_path, small(head, auxiliary))
    pus = UnderfittingConfig(kind="reweight", beta=0.8, kappa=0.7, scope="image")
    model = segmenter_model(CONFIG, 4, 255, underfitting=pus, source=source)
    ours = {"type": "PretendedUnderfittingLoss", "kind": "reweight", "beta": 0.8, "kappa": 0.7}
    ours |= {"scope": "image", "unused": []}
    head_model, [extra] = model["decode_head"], model["auxiliary_head"]
    assert head_model["loss_decode"] == [{**ours, "loss_weight": 0.5}, {"type": "DiceLoss"}]
    assert extra["loss_decode"] == ours
    assert {one["num_classes"] for one in (head_model, extra)} == {4}
    assert {one["ignore_index"] for one in (head_model, extra)} == {255}
    assert head_model["norm_cfg"]["type"] == model["backbone"]["norm_cfg"]["type"] == "BN"
    # the source itself is as the user wrote it
    assert source.model["decode_head"]["num_classes"] == 19
    step(build_segmenter(CONFIG, 4, 255, underfitting=pus, source=source))


PROGRAM = """
import sys
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from mmengine.structures import PixelData
config = Config.fromfile(sys.argv[1])
init_default_scope("mmseg")
model = MODELS.build(config.model).train()
samples = [SegDataSample(gt_sem_seg=PixelData(data=torch.zeros(1, 32, 32).long()))] * 2
print(sorted(model.loss(torch.randn(2, 3, 32, 32), samples)), "ray" in sys.modules)
"""


def test_our_parts_serve_a_config_outside_of_this_project(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        "custom_imports = dict(imports=['pmm_ray.nets.segmenter'])\n"
        "model = dict(type='EncoderDecoder', "
        "backbone=dict(type='PmmEfficientNetLite0', output_stride=32), "
        "decode_head=dict(type='FCNHead', in_channels=320, in_index=3, channels=8, num_convs=1, "
        "num_classes=5, loss_decode=dict(type='PretendedUnderfittingLoss', kind='pow', "
        "beta=0.5, kappa=0.5, scope='image')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(tmp_path / "theirs.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "['decode.acc_seg', 'decode.loss_pus'] False" in done.stdout, done.stderr


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


def test_the_identity_is_the_content(tmp_path: Path) -> None:
    one = user_file(tmp_path, small()).identity()
    (tmp_path / "base.py").write_text(f"# a comment\nmodel = {small()}\n")
    (tmp_path / "child.py").write_text("_base_ = ['base.py']\nextra = 3\n")
    assert read_model(str(tmp_path / "child.py")).identity() == one
    (tmp_path / "child.py").write_text(
        "_base_ = ['base.py']\nmodel = dict(decode_head=dict(channels=16))\n"
    )
    assert read_model(str(tmp_path / "child.py")).identity() != one


BGR = "data_preprocessor=dict(type='SegDataPreProcessor', mean=[1, 2, 3], std=[4, 5, 6]{more})"


def test_the_configs_own_normalisation_is_kept(tmp_path: Path) -> None:
    given = ", " + BGR.format(more=", bgr_to_rgb=True")
    network = build_segmenter(CONFIG, 4, 255, source=user_file(tmp_path, small(more=given)))
    about = describe(network)
    assert about.input_mean == pytest.approx([1 / 255, 2 / 255, 3 / 255])
    assert about.input_std == pytest.approx([4 / 255, 5 / 255, 6 / 255])


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (small("loss_decode=dict(type='FocalLoss')"), r"FocalLoss needs mmcv\.ops"),
        (small().replace("depth=18", "depth=18, dcn=dict(type='DCNv2')"), r"DCNv2 needs mmcv\.ops"),
        (small().replace("FCNHead", "CCHead"), r"CCHead needs mmcv\.ops"),
        (small("loss_decode=dict(type='DiceLoss')"), "no head has a CrossEntropyLoss"),
        (small("loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=True)"), "use_sigmoid"),
        (small("loss_decode=dict(type='CrossEntropyLoss', class_weight=[1.0])"), "1 values for 4"),
        (small().replace("FCNHead", "NoHead"), "cannot build this model: KeyError.*NoHead"),
        (small().replace("in_channels=64", "inn_channels=64"), "cannot build this model: TypeErr"),
        (small(more=", " + BGR.format(more="")), "bgr_to_rgb must be true"),
        ("dict(type='EncoderDecoder')", "no `model` with a `backbone`"),
        (small("act_cfg=len"), "only plain values"),
        ("1 / 0", "cannot read .*ZeroDivisionError"),
    ],
)
def test_models_that_cannot_be_used_say_why(tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(CannotRunError, match=message):
        build_segmenter(CONFIG, 4, 255, source=user_file(tmp_path, model))


def test_a_model_file_runs_nothing_but_registered_modules(tmp_path: Path) -> None:
    network = build_segmenter(CONFIG, 4, 255)
    marker, uri = tmp_path / "ran", str(tmp_path / "m.pt")
    for part in ("decode_head", "auxiliary_head"):
        meta = copy.deepcopy(describe(network).meta())
        meta["model"][part] = {"type": "os.system", "command": f"touch {marker}"}
        save_model(uri, "segmenter", network, meta)
        with pytest.raises(CannotRunError, match=r"'os\.system' is not the name"):
            load_segmenter(uri)
    assert not marker.exists()


def test_configs_in_pure_python_are_the_same_model(tmp_path: Path) -> None:
    (tmp_path / "new.py").write_text(
        "from mmseg.models.decode_heads import FCNHead\n"
        "from mmseg.models.losses import CrossEntropyLoss\n"
        f"model = {small()}\n"
        "model['decode_head'].update(type=FCNHead, loss_decode=dict(type=CrossEntropyLoss))\n"
    )
    assert (
        read_model(str(tmp_path / "new.py")).identity() == user_file(tmp_path, small()).identity()
    )


def test_weights_in_the_net_are_named_not_fetched(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"weights": "imagenet"})
    source = user_file(tmp_path, small(more=", pretrained='open-mmlab://resnet18_v1c'"))
    with pytest.raises(CannotRunError, match="open-mmlab://resnet18_v1c, which is not fetched"):
        build_segmenter(config, 4, 255, source=source)
    build_segmenter(CONFIG, 4, 255, source=source)


def test_a_users_backbone_starts_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(3)
    first = build_segmenter(CONFIG, 4, 255, source=user_file(tmp_path, small()))
    weights = first.get_submodule("backbone").state_dict()
    file = tmp_path / "resnet.pth"
    # as a classifier was saved
    torch.save({"state_dict": {**weights, "fc.weight": torch.zeros(2, 2)}}, file)
    named = small().replace(
        "depth=18", f"depth=18, init_cfg=dict(type='Pretrained', checkpoint='{file}')"
    )
    torch.manual_seed(4)
    by_config = build_segmenter(
        CONFIG.model_copy(update={"weights": "imagenet"}),
        4,
        255,
        source=user_file(tmp_path, named),
    )
    by_section = build_segmenter(
        CONFIG.model_copy(update={"weights": str(file)}),
        4,
        255,
        source=user_file(tmp_path, small()),
    )
    for network in (by_config, by_section):
        for name, tensor in network.get_submodule("backbone").state_dict().items():
            assert torch.equal(tensor, weights[name])


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
    assert describe(wide).model["decode_head"]["num_classes"] == 6
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
    assert (pus.kind, pus.scope, pus.beta, pus.kappa) == ("clamp", "worker", level, level)
    space = VOC12 if outputs == 21 else COCO14
    ids = space.dataset_ids if section.layout == "dataset" else range(space.num_classes)
    assert max(ids) + 1 == outputs
    head = segmenter_model(section, outputs, 255)["decode_head"]
    assert (head["in_channels"], head["channels"], head["dropout_ratio"]) == (2048, 512, 0.1)
