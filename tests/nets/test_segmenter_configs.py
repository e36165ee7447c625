"""mmsegmentation configs of users: fitted, built, trained a step, refused with the reason."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import mmseg
import pytest
import torch

from pmm_ray.config import UnderfittingConfig
from pmm_ray.config.backbones import IMAGENET_MEAN, IMAGENET_STD
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.nets.segmenter import (
    build_segmenter,
    description_of,
    load_segmenter,
    predict_logits,
    try_model,
)
from pmm_ray.nets.segmenter_config import normalisation, segmenter_model
from pmm_ray.nets.segmenter_source import backbone_weights, read_model
from pmm_ray.nets.trial import try_segmenter
from pmm_ray.nets.weight_files import find_weights
from pmm_ray.runtime.core.errors import CannotRunError

from .segmenter_models import CONFIG, small, step, user_file


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
    ours |= {"scope": "image", "group": 2, "unused": []}
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
    about = description_of(network)
    assert about.input_mean == pytest.approx([1 / 255, 2 / 255, 3 / 255])
    assert about.input_std == pytest.approx([4 / 255, 5 / 255, 6 / 255])


def of_ours(backbone: str, more: str = "") -> str:
    """A model on a backbone of this project, or on a user's row."""
    return (
        f"dict(type='EncoderDecoder', backbone=dict({backbone}, output_stride=32), "
        "decode_head=dict(type='FCNHead', in_channels=320, in_index=3, channels=8, num_convs=1, "
        f"num_classes=5), test_cfg=dict(mode='whole'){more})"
    )


@pytest.mark.parametrize(
    "backbone",
    ["type='PmmEfficientNetLite0'", "type='PmmBackbone', name='own_statistics:ROW'"],
)
def test_a_backbone_of_ours_has_its_own_normalisation(
    backbone: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_statistics.py").write_text(
        "from pmm_ray.config.backbones import BACKBONES\nROW = BACKBONES['efficientnet_lite0']\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    source = user_file(tmp_path, of_ours(backbone))
    half = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert normalisation(CONFIG.backbone, source) == half
    about = description_of(build_segmenter(CONFIG, 4, 255, source=source))
    assert (about.input_mean, about.input_std) == half
    # it decides the result, and is what the file could have said
    said = ", data_preprocessor=dict(mean=[127.5] * 3, std=[127.5] * 3, bgr_to_rgb=True)"
    assert user_file(tmp_path, of_ours(backbone, said)).identity() == source.identity()
    given = ", " + BGR.format(more=", bgr_to_rgb=True")
    named = user_file(tmp_path, of_ours(backbone, given))
    assert normalisation(CONFIG.backbone, named)[0] == pytest.approx((1 / 255, 2 / 255, 3 / 255))


def test_a_backbone_with_imagenets_normalisation_keeps_its_identity(tmp_path: Path) -> None:
    source = user_file(tmp_path, of_ours("type='PmmRes2Net101'"))
    assert normalisation(CONFIG.backbone, source) == (IMAGENET_MEAN, IMAGENET_STD)
    assert "data_preprocessor" not in source.model


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
        (small(more=", pretrained=True"), "pretrained=True, which is no file: download"),
        (small().replace("FCNHead", "myheads.My"), "'myheads.My' is not the name .*: register"),
        ("1 / 0", "cannot read .*ZeroDivisionError"),
    ],
)
def test_models_that_cannot_be_used_say_why(tmp_path: Path, model: str, message: str) -> None:
    with pytest.raises(CannotRunError, match=message):
        build_segmenter(CONFIG, 4, 255, source=user_file(tmp_path, model))


def test_a_model_file_runs_nothing_but_registered_modules(tmp_path: Path) -> None:
    network = build_segmenter(CONFIG, 4, 255)
    uri = str(tmp_path / "m.pt")
    marker = tmp_path / "ran"
    evil = {
        "os.system": {"type": "os.system", "command": f"touch {marker}"},
        "mmengine.load": {"type": "mmengine.load", "file": str(marker)},
        "another checkpoint": {"init_cfg": {"type": "Pretrained", "checkpoint": str(marker)}},
        "checkpoint, which": {"pretrained": str(marker)},
    }
    for message, part in evil.items():
        for head in ("decode_head", "auxiliary_head"):
            meta = copy.deepcopy(description_of(network).meta())
            meta["model"][head] |= part
            save_model(uri, "segmenter", network, meta)
            with pytest.raises(CannotRunError, match=message.replace(".", r"\.")):
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


def test_a_config_that_names_no_weights_does_not_start_at_random(tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"weights": "imagenet"})
    source = user_file(tmp_path, small())
    message = "names no weights of its backbone: set segmenter.weights to its checkpoint, or to no"
    with pytest.raises(CannotRunError, match=f"segmenter.config: {source.uri} {message}"):
        build_segmenter(config, 4, 255, source=source)
    # of our own the weights are known
    ours = user_file(tmp_path, of_ours("type='PmmEfficientNetLite0'"))
    assert backbone_weights("imagenet", ours) == find_weights("imagenet", "efficientnet_lite0")


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


UNET = (
    "dict(type='EncoderDecoder', backbone=dict(type='UNet', in_channels=3, base_channels=4), "
    "decode_head=dict(type='FCNHead', in_channels=8, in_index=3, channels=8, num_convs=1, "
    "num_classes=19, loss_decode=dict(type='CrossEntropyLoss')), test_cfg=dict(mode='whole'))"
)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (UNET, "cannot predict an image of 33 x 63 px .*choose another"),
        (small().replace("in_channels=64", "in_channels=65"), "cannot train on crops of 64 px"),
    ],
)
def test_models_that_are_built_but_cannot_be_used_are_found_out(
    tmp_path: Path, model: str, message: str
) -> None:
    network = build_segmenter(CONFIG, 4, 255, source=user_file(tmp_path, model))
    with pytest.raises(CannotRunError, match=message):
        try_model(network, 64, "user.py")


def test_groups_larger_than_the_trials_two_crops_are_no_fault_of_the_model(tmp_path: Path) -> None:
    source = user_file(tmp_path, small())
    config = CONFIG.model_copy(
        update={"underfitting": UnderfittingConfig(kind="clamp", group=4), "crop_size": 64}
    )
    try_segmenter(config, source)


def test_a_model_that_can_be_used_is_as_before(tmp_path: Path) -> None:
    try_model(build_segmenter(CONFIG, 4, 255, source=user_file(tmp_path, small())), 64, "user.py")


MODELS_OF_MMSEG = [
    *("bisenetv2", "danet_r50-d8", "deeplabv3_r50-d8", "dpt_vit-b16", "encnet_r50-d8", "fcn_hr18"),
    *("fpn_r50", "icnet_r50-d8", "ocrnet_hr18", "segmenter_vit-b16_mask", "stdc"),
    *("twins_pcpvt-s_fpn", "upernet_r50", "upernet_swin"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS_OF_MMSEG)
def test_a_step_of_mmsegmentations_own_configs(name: str) -> None:
    """As its users have them: SyncBN, 19 classes, backbones named by address."""
    folder = Path(mmseg.__file__).parent / ".mim/configs/_base_/models"
    if not folder.is_dir():
        pytest.skip(f"this mmsegmentation comes without configs: no {folder}")
    network = build_segmenter(CONFIG, 4, 255, source=read_model(str(folder / f"{name}.py")))
    step(network)
    unused = [n for n, p in network.named_parameters() if p.requires_grad and p.grad is None]
    # several workers wait for the gradient of every parameter
    assert not unused
    with torch.no_grad():
        assert predict_logits(network.eval(), torch.randn(1, 3, 70, 65)).shape == (1, 4, 70, 65)
