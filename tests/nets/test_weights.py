"""Weights are loaded whole or not at all, and saved networks come back as they were."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pmm_ray.config import ClassifierConfig
from pmm_ray.nets.backbone import Backbone
from pmm_ray.nets.cam_network import CamNetwork
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.nets.efficientnet_lite import EfficientNetLite
from pmm_ray.nets.registry import build_classifier, load_classifier
from pmm_ray.nets.weight_files import find_weights, weights_identity
from pmm_ray.nets.weights import load_pretrained, load_torch, read_state
from pmm_ray.runtime.core.errors import CannotRunError

from .golden import with_classifier

LITE = "efficientnet_lite0"
PUBLIC = str(find_weights("imagenet", LITE))


def load(net: Backbone, file: str) -> None:
    load_pretrained(net, read_state(file), file, heads=net.heads)


def test_missing_and_misshaped_tensors_are_named(tmp_path: Path) -> None:
    state = torch.load(PUBLIC, weights_only=True)
    del state["_blocks.3._bn1.weight"]
    state["_conv_stem.weight"] = state["_conv_stem.weight"][:, :1]
    state["extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "w.pth")
    net = EfficientNetLite(0, 16)
    before = net.conv_stem.weight.clone()
    with pytest.raises(CannotRunError) as error:
        load(net, str(tmp_path / "w.pth"))
    for part in ("blocks.3.bn1.weight", "conv_stem.weight [32, 1, 3, 3]", "extra"):
        assert part in str(error.value)
    assert torch.equal(before, net.conv_stem.weight)


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (print, ("executed",))

    torch.save({"a": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(CannotRunError, match="plain tensors"):
        load(EfficientNetLite(0, 16), str(tmp_path / "evil.pth"))
    with pytest.raises(CannotRunError, match="cannot read"):
        load(EfficientNetLite(0, 16), str(tmp_path / "absent.pth"))


def test_the_public_weights_fit_whole(tmp_path: Path) -> None:
    public = torch.load(PUBLIC, weights_only=True)
    net = with_classifier(EfficientNetLite(0, 32))
    load(net, PUBLIC)
    loaded = net.state_dict()
    renamed = {".".join(p.lstrip("_") for p in name.split(".")): t for name, t in public.items()}
    assert renamed.keys() == loaded.keys()
    assert all(torch.equal(renamed[name], tensor) for name, tensor in loaded.items())


def test_a_path_loads_what_was_saved(tmp_path: Path) -> None:
    saved, net = EfficientNetLite(0, 16), EfficientNetLite(0, 16)
    torch.save(saved.state_dict(), tmp_path / "w.pth")
    load(net, str(tmp_path / "w.pth"))
    assert torch.equal(net.conv_stem.weight, saved.conv_stem.weight)


@pytest.mark.parametrize("content", [[1], {"state_dict": {}}, {1: torch.ones(1)}, torch.ones(2)])
def test_a_file_that_is_no_state_dict_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CannotRunError, match="not a state dict"):
        load(EfficientNetLite(0, 16), str(tmp_path / "w.pth"))


@pytest.mark.parametrize("zipped", [True, False])
def test_damaged_files_are_refused_whatever_their_bytes(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.ones(3)}, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    for size in range(0, len(whole) - 16, 7):
        path.write_bytes(whole[:size])
        with pytest.raises(CannotRunError, match="plain tensors"):
            load_torch(str(path))
    for data in (b"\x89PNG\r\n\x1a\n", pickle.dumps([1, 2]), b"text\n"):
        path.write_bytes(data)
        with pytest.raises(CannotRunError, match="plain tensors"):
            load_torch(str(path))


def test_identity_follows_the_content(tmp_path: Path) -> None:
    one, copy, other = (tmp_path / name for name in ("one.pth", "copy.pth", "other.pth"))
    one.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    other.write_bytes(b"other weights")
    assert weights_identity(str(copy), LITE) == weights_identity(str(one), LITE)
    assert weights_identity(str(other), LITE) != weights_identity(str(one), LITE)
    assert [weights_identity(name, LITE) for name in ("none", "imagenet")] == ["none", "imagenet"]
    with pytest.raises(CannotRunError, match=r"absent\.pth"):
        weights_identity(str(tmp_path / "absent.pth"), LITE)


def test_logits_are_the_mean_of_the_scores_and_norms_stay_frozen() -> None:
    net = build_classifier(ClassifierConfig(), 4).train()
    before = net.backbone.get_submodule("bn0").running_mean.clone()  # type: ignore[operator,union-attr]
    logits, scores = net(torch.randn(2, 3, 64, 48))
    assert scores.shape == (2, 4, 4, 3)
    torch.testing.assert_close(logits, scores.mean(dim=(2, 3)))
    assert torch.equal(before, net.backbone.get_submodule("bn0").running_mean)  # type: ignore[arg-type]
    trained = [name for name, p in net.named_parameters() if p.requires_grad]
    assert "head.weight" in trained
    assert not [name for name in trained if ".bn" in name]


def test_a_saved_classifier_comes_back(tmp_path: Path) -> None:
    config = ClassifierConfig(weights="none")
    net = build_classifier(config, 3).eval()
    uri = str(tmp_path / "model.pt")
    meta = {"config": config.model_dump(mode="json"), "num_foreground": 3}
    save_model(uri, "classifier", net, meta)
    loaded, read = load_classifier(uri)
    images = torch.randn(1, 3, 40, 40)
    assert read == meta
    assert torch.equal(net.cam_scores(images), loaded.cam_scores(images))
    save_model(uri, "segmenter", net, meta)
    with pytest.raises(CannotRunError, match="holds a segmenter"):
        load_classifier(uri)


def seam_net(num_foreground: int = 3, weights: str = "none") -> CamNetwork:
    config = ClassifierConfig(kind="seam", weights=weights)
    return build_classifier(config, num_foreground)


def wrapped(state: dict[str, Tensor], how: str) -> Any:
    if how == "plain":
        return state
    if how == "nested as SEAM's":
        return {"model": {"main": state}, "optimizer": {"state": {0: torch.ones(1)}}}
    if how == "data parallel":
        return {"state_dict": {f"module.{name}": t for name, t in state.items()}, "epoch": 3}
    features = {f"backbone.{n}": t for n, t in state.items() if not n.startswith("f")}
    return {"meta": {}, "state_dict": {**features, "decode_head.conv_seg.weight": torch.ones(2)}}


@pytest.mark.parametrize("how", ["plain", "nested as SEAM's", "data parallel", "segmenter's"])
def test_wrappings_of_training_programs_are_taken_off(tmp_path: Path, how: str) -> None:
    torch.manual_seed(1)
    saved = seam_net().state_dict()
    uri = str(tmp_path / "w.pth")
    torch.save(wrapped(saved, how), uri)
    torch.manual_seed(2)
    net = seam_net(weights=uri)
    assert net.loaded is not None
    heads = {"fc8.weight", "f8_3.weight", "f8_4.weight", "f9.weight"}
    fresh = heads if how == "segmenter's" else set()
    assert set(net.loaded.fresh) == fresh
    assert net.loaded.tensors == len(saved) - len(fresh)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, saved[name]) is (name not in fresh)
    left = "decode_head.conv_seg.weight" if fresh else ""
    assert ",".join(net.loaded.left_over) == left


def test_a_class_head_for_other_classes_starts_anew_and_that_is_said(tmp_path: Path) -> None:
    uri = str(tmp_path / "w.pth")
    saved = seam_net(20).state_dict()
    torch.save(saved, uri)
    net = seam_net(3, uri)
    assert net.loaded is not None
    assert net.loaded.fresh == ("fc8.weight",)
    assert "start at random: fc8.weight" in str(net.loaded)
    assert torch.equal(net.state_dict()["f9.weight"], saved["f9.weight"])
    saved["f9.weight"] = saved["f9.weight"][:5]
    torch.save(saved, uri)
    with pytest.raises(CannotRunError, match=r"of another shape: f9\.weight \[5, "):
        seam_net(20, uri)


def test_heads_of_a_file_are_left_over_by_a_network_without_them(tmp_path: Path) -> None:
    uri = str(tmp_path / "w.pth")
    saved = seam_net().state_dict()
    torch.save(saved, uri)
    net = build_classifier(ClassifierConfig(weights=uri), 3)
    assert net.loaded is not None
    assert net.loaded.left_over == ("fc8.weight", "f8_3.weight", "f8_4.weight", "f9.weight")
    assert "in the file, not used: fc8.weight" in str(net.loaded)
    assert torch.equal(net.backbone.state_dict()["conv_stem.weight"], saved["conv_stem.weight"])


def test_nothing_is_loaded_in_part(tmp_path: Path) -> None:
    uri = str(tmp_path / "w.pth")
    saved = seam_net().state_dict()
    for name, message in (
        ("blocks.0.bn1.bias", r"1 missing: blocks\.0\.bn1\.bias"),
        ("conv_stem.weight", r"1 missing: conv_stem\.weight"),
    ):
        torch.save({key: t for key, t in saved.items() if key != name}, uri)
        with pytest.raises(CannotRunError, match=message):
            seam_net(weights=uri)
    torch.save({**saved, "blocks.99.bn1.bias": torch.ones(1)}, uri)
    with pytest.raises(CannotRunError, match=r"1 unexpected: blocks\.99\.bn1\.bias"):
        seam_net(weights=uri)
    torch.save({**saved, "backbone.conv_stem.weight": saved["conv_stem.weight"]}, uri)
    with pytest.raises(CannotRunError, match="same names twice"):
        seam_net(weights=uri)


def test_files_of_old_versions_do_not_count_batches(tmp_path: Path) -> None:
    uri = str(tmp_path / "w.pth")
    saved = seam_net().state_dict()
    torch.save({k: t for k, t in saved.items() if not k.endswith("num_batches_tracked")}, uri)
    net = seam_net(weights=uri)
    assert all(torch.equal(t, saved[name]) for name, t in net.state_dict().items())


def test_names_stand_for_the_authors_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PMM_WEIGHTS", str(tmp_path))
    with pytest.raises(CannotRunError, match=r"put its authors' file scalenet101\.pth into"):
        find_weights("imagenet", "scalenet101")
    (tmp_path / "scalenet101.pth").write_bytes(b"weights")
    assert find_weights("imagenet", "scalenet101") == str(tmp_path / "scalenet101.pth")
    same = tmp_path / "same.pth"
    same.write_bytes(b"weights")
    assert weights_identity("imagenet", "scalenet101") == weights_identity(str(same), LITE)
    with pytest.raises(CannotRunError, match="'seam' are published for scalenet101"):
        find_weights("seam", "scalenet101")
    assert find_weights("none", "scalenet101") is None
    assert find_weights("imagenet", LITE) == PUBLIC
