"""Heads that start from ImageNet's rows: which rows, what they give, and where they are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pmm_ray.config import ClassifierConfig
from pmm_ray.labels import VOC12
from pmm_ray.nets.imagenet_head import imagenet_classes, imagenet_groups, imagenet_head
from pmm_ray.nets.registry import build_classifier, load_classifier
from pmm_ray.nets.weight_files import find_weights
from pmm_ray.nets.weights import read_state
from pmm_ray.runtime.core.errors import CannotRunError

NAMES = ("cat", "Golden-Retriever", "person")


def classifier(names: tuple[str, ...] = NAMES, **values: Any) -> Any:
    config = ClassifierConfig.model_validate({"head_init": "imagenet", **values})
    return build_classifier(config, len(names), names=names)


def test_every_class_of_voc_has_rows_and_the_bird_is_no_toy() -> None:
    assert all(imagenet_groups(VOC12.names[1:]))
    kite, hot_dog, dog = imagenet_groups(["kite", "hot_dog", "dog"])
    assert kite == []
    assert [imagenet_classes()[number] for number in hot_dog] == ["hotdog"]
    assert len(dog) == 118
    assert imagenet_classes()[dog[0]] == "Chihuahua"


def test_names_of_imagenet_are_known_and_so_are_their_last_words() -> None:
    tabby, terriers, nothing = imagenet_groups(["Tabby", "terrier", "submarine sandwich"])
    assert [imagenet_classes()[number] for number in tabby] == ["tabby"]
    assert len(terriers) > 10
    assert all(imagenet_classes()[number].endswith("terrier") for number in terriers)
    assert nothing == []


def test_a_table_of_ones_own_comes_first(tmp_path: Path) -> None:
    table = tmp_path / "classes.yaml"
    table.write_text("\ufeffhound: [beagle, 160-162]\ncat: tabby\n", encoding="utf-8")
    hound, cat, dog = imagenet_groups(["Hound", "cat", "dog"], str(table))
    assert hound == [160, 161, 162]
    assert imagenet_classes()[162] == "beagle"
    assert [imagenet_classes()[number] for number in cat] == ["tabby"]
    assert len(dog) == 118


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat: [moggy]", "cat: 'moggy' is no class of ImageNet"),
        ("cat: [990-1000]", "cat: '990-1000' is no class"),
        ("- cat", "is no table of names"),
        ("cat: [", "cannot be read"),
        ("cat: tabby\ncat: [beagle]", "line 2: 'cat' is there already, in line 1"),
        ("big cat: tabby\nBig-Cat: [beagle]", "'Big-Cat' is there already: case, hyphens"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    table = tmp_path / "classes.yaml"
    table.write_text(text)
    with pytest.raises(CannotRunError, match=message) as told:
        imagenet_groups(["cat"], str(table))
    assert str(table) in str(told.value)


def test_the_head_is_the_mean_of_its_rows_less_the_mean_of_all() -> None:
    state = read_state(str(find_weights("imagenet", "efficientnet_lite0")))
    rows, biases = state["fc.weight"], state["fc.bias"]
    network = classifier(head_bias=True)
    torch.testing.assert_close(
        network.head.weight[0, :, 0, 0].detach(), rows[281:286].mean(0) - rows.mean(0)
    )
    torch.testing.assert_close(
        network.head.bias[0].detach(), biases[281:286].mean() - biases.mean()
    )
    assert network.head.weight.shape == (3, 1280, 1, 1)
    seam = classifier(kind="seam")
    torch.testing.assert_close(seam.fc8.weight[1:], network.head.weight)


def test_a_class_without_rows_starts_at_random_or_ends_an_untrained_run() -> None:
    network = classifier(("cat", "gizmo"))
    assert network.head.weight[1].abs().sum() > 0
    with pytest.raises(CannotRunError, match=r"no class for gizmo.*head_classes"):
        classifier(("cat", "gizmo"), epochs=0)
    with pytest.raises(CannotRunError, match="no class for gizmo"):
        classifier(("gizmo",))


def test_weights_without_imagenets_head_are_refused() -> None:
    with pytest.raises(CannotRunError, match="not none"):
        classifier(weights="none")
    with pytest.raises(CannotRunError, match="0 classifiers of 1000 classes on 4 channels"):
        imagenet_head({"fc.weight": torch.zeros(20, 4)}, 4, [[1]], "file.pth")


def test_maps_of_a_head_with_a_bias_have_no_negative_scores() -> None:
    network = classifier(head_bias=True).eval()
    images = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        _, scores = network(images)
        maps = network.cam_scores(images)
    assert (scores < 0).any()
    torch.testing.assert_close(maps, scores.clamp(min=0))


def test_a_frozen_backbone_leaves_the_head_alone_to_learn() -> None:
    network = classifier(freeze_backbone=True, head_bias=True)
    trained = {name for name, value in network.named_parameters() if value.requires_grad}
    assert trained == {"head.weight", "head.bias"}


def test_the_first_layers_of_a_small_network_can_be_kept() -> None:
    network = classifier(freeze_first=True, freeze_norm=False)
    kept = {name.split(".")[1] for name, p in network.named_parameters() if not p.requires_grad}
    assert kept == {"conv_stem", "bn0", "blocks"}
    assert network.backbone.blocks[3].project_conv.weight.requires_grad


def test_training_at_another_stride_changes_no_weight(tmp_path: Path) -> None:
    network = classifier(training_stride=32, output_stride=8)
    images = torch.zeros(1, 3, 64, 64)
    assert network(images)[1].shape[-1] == 2
    from pmm_ray.nets.checkpoints import save_model

    config = ClassifierConfig.model_validate({"training_stride": 32, "output_stride": 8})
    meta = {"config": config.model_dump(mode="json"), "num_foreground": 3}
    save_model(str(tmp_path / "model.pt"), "classifier", network, meta)
    loaded, _ = load_classifier(str(tmp_path / "model.pt"))
    assert loaded(images)[1].shape[-1] == 8
    torch.testing.assert_close(loaded.state_dict(), network.state_dict())
