"""The affinity network: names and sizes of public checkpoints, what is trained, files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pmm_ray.config import AffinityConfig
from pmm_ray.method.affinity import pair_affinities
from pmm_ray.nets.affinity import AffinityNetwork, build_affinity, load_affinity
from pmm_ray.nets.backbone import Shape, build_backbone, norms
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.training.task import head_groups

from .golden import shapes, unfilled


@pytest.mark.parametrize(
    ("backbone", "inputs", "channels"),
    [
        ("scalenet101", (512, 1024, 2048), (64, 64, 64)),
        ("res2net101", (512, 1024, 2048), (64, 64, 64)),
        ("resnet38", (512, 1024, 4096), (64, 128, 256)),
        ("efficientnet_lite0", (40, 112, 1280), (64, 64, 64)),
    ],
)
def test_heads_have_the_sizes_of_the_reference(
    backbone: str, inputs: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    config = AffinityConfig.model_validate({"backbone": backbone, "weights": "none"})
    net = unfilled(lambda: build_affinity(config))
    own = dict(shapes(net))
    bare = dict(shapes(unfilled(lambda: build_backbone(backbone))))
    heads = {name: shape for name, shape in own.items() if name not in bare}
    assert {name: shape for name, shape in own.items() if name in bare} == bare
    names = ("f8_3.weight", "f8_4.weight", "f8_5.weight")
    want = {n: [c, i, 1, 1] for n, c, i in zip(names, channels, inputs, strict=True)}
    total = sum(channels)
    want["f9.weight"] = [total, total, 1, 1]
    assert {name: list(shape) for name, shape in heads.items()} == want
    assert total == (448 if backbone == "resnet38" else 192)


@pytest.fixture(scope="module")
def small() -> AffinityNetwork:
    torch.manual_seed(0)
    return build_affinity(AffinityConfig(weights="none"))


def test_features_lie_at_stride_eight(small: AffinityNetwork) -> None:
    small.eval()
    with torch.no_grad():
        features = small(torch.randn(1, 3, 64, 90))
    assert features.shape == (1, 192, 8, 12)
    # ELU comes last
    assert features.min() > -1


def test_random_values_of_a_deep_network_have_affinities() -> None:
    torch.manual_seed(0)
    config = AffinityConfig(backbone="res2net101", weights="none")
    network = build_affinity(config).eval()
    with torch.no_grad():
        features = network(torch.randn(1, 3, 32, 32))
    assert features.abs().mean() < 10
    assert pair_affinities(features, 3).mean() > 0.01


def test_norms_stay_and_heads_learn_faster(small: AffinityNetwork) -> None:
    small.train()
    assert not any(norm.training for norm in norms(small))
    groups = head_groups(small, small.head_layers, weight_decay=0.1, multiplier=10)
    assert [group["rate"] for group in groups] == [1.0, 10]
    assert len(groups[1]["params"]) == 4
    assert not any(p.requires_grad for norm in norms(small) for p in norm.parameters())


def test_a_saved_network_gives_the_same_features(small: AffinityNetwork, tmp_path: Path) -> None:
    uri = str(tmp_path / "model.pt")
    config = AffinityConfig(weights="none").model_dump(mode="json")
    save_model(uri, "affinity", small, {"config": config})
    again, meta = load_affinity(uri)
    assert meta["config"] == config
    image = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        assert torch.equal(again(image), small.eval()(image))


def test_pretrained_weights_reach_the_backbone() -> None:
    net = build_affinity(AffinityConfig())
    assert net.loaded is not None
    assert {name.split(".")[0] for name in net.loaded.fresh} == set(net.head_layers)
    random = build_affinity(AffinityConfig(weights="none"))
    assert not torch.equal(net.state_dict()["conv_stem.weight"], random.conv_stem.weight)


def test_another_file_is_refused(small: AffinityNetwork, tmp_path: Path) -> None:
    uri = str(tmp_path / "model.pt")
    save_model(uri, "classifier", small, {"config": {}})
    with pytest.raises(CannotRunError, match="holds a classifier"):
        load_affinity(uri)


def test_taps_of_different_strides_are_refused() -> None:
    backbone = build_backbone("efficientnet_lite0", Shape(16))
    with pytest.raises(CannotRunError, match="different strides"):
        AffinityNetwork(backbone, taps=("stage3", "stage5"), channels=(4, 4, 4))
