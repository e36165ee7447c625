"""What a classifier's training measures on held-out images after every epoch."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pmm_ray.labels import LabelSpace
from pmm_ray.nets.cam_network import CamNetwork
from pmm_ray.nets.classifier_validation import BACKGROUND_SCORES, ClassifierValidation
from pmm_ray.runtime.core.manifest import ManifestRow, write_manifest
from pmm_ray.runtime.rows.images import encode_mask
from pmm_ray.runtime.rows.photographs import Photographs

from ..networks import Colours

SPACE = LabelSpace.from_names(["red", "green", "blue"])
CPU = torch.device("cpu")


@pytest.fixture
def validation(tmp_path: Path) -> ClassifierValidation:
    """Nine held-out images, one class each, one more without a file; two of training."""
    rows = []
    for number in range(12):
        label = 1 + number % 3
        split = "train" if number >= 10 else "val"
        mask = np.zeros((32, 48), np.uint8)
        mask[8 : 20 + number % 3, 10:34] = label
        pixels = np.zeros((32, 48, 3), np.uint8)
        pixels[mask == label, label - 1] = 200
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}-mask.png").write_bytes(encode_mask(mask, SPACE))
        truth = f"{number}-mask.png"
        rows.append(ManifestRow(f"i{number}", f"{number}.png", (label,), 32, 48, split, truth))
    rows[9] = dataclasses.replace(rows[9], uri="gone.png")
    uri = str(tmp_path / "manifest.parquet")
    manifest = write_manifest(uri, rows, SPACE, source="test", exif="ignore")
    photographs = Photographs(manifest.root, False, 10**6, SPACE)
    return ClassifierValidation(uri, "val", photographs, images=100, long_side=48, seed=0)


def metrics(
    validation: ClassifierValidation, network: CamNetwork, world: int = 1
) -> dict[str, float]:
    shares = [validation.measure(network, CPU, rank, world) for rank in range(world)]
    return validation.metrics(shares)


def test_a_network_that_knows_all_scores_all(validation: ClassifierValidation) -> None:
    found = metrics(validation, Colours())
    assert found["mean_average_precision"] == 1.0
    assert found["cam_miou"] > 0.99
    assert found["cam_threshold"] in BACKGROUND_SCORES


def test_truth_with_another_value_is_left_out(
    validation: ClassifierValidation, tmp_path: Path
) -> None:
    told: list[tuple[int, int]] = []
    whole = validation.measure(Colours(), CPU, 0, 1, lambda *done: told.append(done))
    assert told == [(done, 10) for done in range(10)]
    assert len(whole.labels) == 9
    Image.fromarray(np.full((32, 48), 9, np.uint8)).save(tmp_path / "0-mask.png")
    share = validation.measure(Colours(), CPU, 0, 1)
    assert share.labels == whole.labels  # it costs the score of the maps alone
    assert validation.metrics([share])["cam_miou"] > 0.99
    pixels = [int(of.confusions[0][0].sum()) for of in (whole, share)]
    assert pixels == [9 * 32 * 48, 8 * 32 * 48]


def test_a_network_that_mistakes_classes_scores_little(validation: ClassifierValidation) -> None:
    found = metrics(validation, Colours((1, 2, 0)))
    # each class's three images rank last among nine: precisions 1/7 (all tie at no score)
    assert found["mean_average_precision"] < 0.5
    assert found["cam_miou"] < 0.3


def test_shares_of_any_number_of_workers_add_up(validation: ClassifierValidation) -> None:
    assert metrics(validation, Colours(), 4) == metrics(validation, Colours())


def test_the_sample_is_the_same_every_epoch_and_holds_held_out_images_only(
    validation: ClassifierValidation,
) -> None:
    few = dataclasses.replace(validation, images=4)
    assert [row["image_id"] for row in few.rows()] == [row["image_id"] for row in few.rows()]
    assert len(few.rows()) == 4
    assert {row["split"] for row in validation.rows()} == {"val"}
    assert len(validation.rows()) == 10
    # an image that cannot be read is left out: the stage that needs it records it
    assert len(validation.measure(Colours(), CPU, 0, 1).scores) == 9


def test_without_truth_only_the_ranking_is_measured(validation: ClassifierValidation) -> None:
    share = validation.measure(Colours(), CPU, 0, 1)
    share.confusions.clear()
    assert set(validation.metrics([share])) == {"mean_average_precision"}
    assert validation.metrics([]) == {}


@pytest.mark.parametrize("value", [0, 255])
def test_truth_without_a_class_scores_no_maps(
    validation: ClassifierValidation, tmp_path: Path, value: int
) -> None:
    for file in tmp_path.glob("*-mask.png"):
        Image.fromarray(np.full((32, 48), value, np.uint8)).save(file)
    assert metrics(validation, Colours()) == {"mean_average_precision": 1.0}
