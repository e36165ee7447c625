"""The classifier's stage on real workers: it learns, records bad images, keeps its budget."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch

from pmm_ray.config import ClassifierConfig, RunConfig
from pmm_ray.nets.registry import build_classifier, load_classifier
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import BudgetExceededError, CannotRunError
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.manifest import Manifest, ManifestRow, write_manifest
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.training.loader import with_repeats
from pmm_ray.stages import train_classifier


def config(workers: int = 2, **errors: int) -> RunConfig:
    classifier = {"batch_size": 4, "resize_long": [48, 64], "crop_size": 64, "epochs": 3}
    classifier["workers"] = workers
    return RunConfig.model_validate({"classifier": classifier, "errors": errors})


def without_an_image(manifest: Manifest, folder: Path) -> Manifest:
    """The same data set; the file of its first training image is gone."""
    rows = []
    for values in tables.read_table(manifest.uri).to_pylist():
        values["uri"] = manifest.locate(values["uri"])
        values["ground_truth_uri"] = manifest.locate(values["ground_truth_uri"])
        rows.append(ManifestRow(**{**values, "labels": tuple(values["labels"])}))
    first = next(i for i, row in enumerate(rows) if row.split == "train" and row.labels)
    rows[first] = dataclasses.replace(rows[first], uri="gone.jpg")
    uri = str(folder / "manifest.parquet")
    return write_manifest(uri, rows, manifest.label_space, source="test", exif="ignore")


def test_it_learns_and_records_a_bad_image(
    shapes: Manifest, make_context: Any, tmp_path: Path
) -> None:
    manifest = without_an_image(shapes, tmp_path)
    context = make_context(manifest, config())
    folder = StageFolder.below(context.run_dir, "train_classifier", "0")
    summary = train_classifier.run(context.config.classifier, context, folder)
    assert summary.errors == 1
    assert tables.read_errors(folder.errors_uri)[0].kind == "missing"
    assert summary.details["workers"] == 2
    [start] = read_events(context.run_dir, "training_start")
    assert (start["stage"], start["hash"]) == (folder.stage, folder.hash)
    events = [e["loss"] for e in read_events(context.run_dir, "train_step")]
    assert len(events) == summary.details["steps"]
    assert sum(events[-3:]) < sum(events[:3])
    net, meta = load_classifier(folder.path("model.pt"))
    assert net.num_foreground == manifest.label_space.num_foreground
    assert meta["training"]["loss"] == pytest.approx(summary.metrics["loss"])
    assert not storage.exists(folder.path("train"))
    assert (Path(context.run_dir) / "tensorboard" / "train_classifier").is_dir()
    # the network is there: the summary is made from it, without training again
    assert train_classifier.run(context.config.classifier, context, folder) == summary


def test_too_many_bad_images_end_it(shapes: Manifest, make_context: Any, tmp_path: Path) -> None:
    context = make_context(without_an_image(shapes, tmp_path), config(workers=1, budget=0))
    folder = StageFolder.below(context.run_dir, "train_classifier", "0")
    with pytest.raises(BudgetExceededError, match=r"(?s)1 images failed, the budget is 0.*missing"):
        train_classifier.run(context.config.classifier, context, folder)
    assert not storage.exists(folder.path("model.pt"))


def test_without_a_step_the_classifier_is_what_class_names_say(
    shapes: Manifest, make_context: Any, tmp_path: Path
) -> None:
    table = tmp_path / "classes.yaml"
    names = shapes.label_space.names[1:]
    table.write_text("".join(f"{name}: [{index}]\n" for index, name in enumerate(names)))
    section = {"epochs": 0, "head_init": "imagenet", "head_classes": str(table)}
    context = make_context(shapes, RunConfig.model_validate({"classifier": section}))
    folder = StageFolder.below(context.run_dir, "train_classifier", "0")
    summary = train_classifier.run(context.config.classifier, context, folder)
    assert summary.details["steps"] == 0
    assert not list(read_events(context.run_dir, "train_step"))
    net, _ = load_classifier(folder.path("model.pt"))
    assert net.num_foreground == len(names)
    # no training could mend a head of random values
    with pytest.raises(CannotRunError, match="epochs: 0 leaves the class head at random"):
        train_classifier.model_identity(ClassifierConfig(epochs=0))
    with pytest.raises(CannotRunError, match="epochs: 0 leaves the class head at random"):
        train_classifier.model_identity(ClassifierConfig(epochs=0, weights="none"))
    one, other = (
        train_classifier.model_identity(ClassifierConfig(head_classes=str(path)))
        for path in (table, Path(__file__))
    )
    assert one != other


def test_absent_classes_take_no_part_in_the_loss(shapes: Manifest) -> None:
    network = build_classifier(ClassifierConfig(weights="none"), 3)
    images, targets = torch.zeros(2, 3, 32, 32), torch.tensor([[1.0, 0, 0], [0, 1.0, 0]])
    some = train_classifier.ClassifierLoss(network, [0, 1])
    before = some(images, targets)
    with torch.no_grad():
        network.head.weight[2] += 1.0
    torch.testing.assert_close(some(images, targets), before)
    some(images, targets).backward()
    assert network.head.weight.grad[2].abs().sum() == 0


def test_images_of_rare_classes_are_seen_more_often() -> None:
    labels = [[1]] * 15 + [[1, 2]]
    rows = pa.table({"image_id": [str(n) for n in range(16)], "labels": labels})
    # class 2 has a share of 1/16: sqrt((1/4) / (1/16)) = 2
    repeated = with_repeats(rows, 0.25).column("image_id").to_pylist()
    assert repeated == [str(n) for n in range(16)] + ["15"]
    assert with_repeats(rows, 1e-9).num_rows == 16
