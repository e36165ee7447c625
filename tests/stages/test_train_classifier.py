"""The classifier's stage on real workers: it learns, records bad images, keeps its budget."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from pmm_ray.config import RunConfig
from pmm_ray.nets.registry import load_classifier
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import BudgetExceededError
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.manifest import Manifest, ManifestRow, write_manifest
from pmm_ray.runtime.core.stage import StageFolder
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
