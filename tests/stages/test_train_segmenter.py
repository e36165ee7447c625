"""The segmenter's stage: masks of the label space only, batches that BatchNorm can use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pmm_ray.config import RunConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.nets.segmenter import load_segmenter
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.core.stage import StageFolder, Summary
from pmm_ray.runtime.rows.images import encode_mask
from pmm_ray.sources.datasets.shapes import make_shapes
from pmm_ray.stages import train_segmenter
from pmm_ray.stages.train_segmenter import round_underfitting


def config(**segmenter: Any) -> RunConfig:
    values = {"batch_size": 4, "iterations": 3, "crop_size": 48, "resize_base": [96, 48]}
    values |= {"channels": 8, "output_stride": 32, "weights": "none", **segmenter}
    return RunConfig.model_validate({"segmenter": values})


def masks(manifest: Manifest, folder: Path, value: int) -> str:
    """Masks with a rectangle of one value, for the training split."""
    space = LabelSpace.from_names([f"class {i}" for i in range(9)])
    rows = []
    for row in tables.read_table(manifest.uri).to_pylist():
        mask_HW = np.zeros((row["height"], row["width"]), np.uint8)
        mask_HW[8:24, 8:24] = value
        kept = {name: row[name] for name in ("image_id", "height", "width", "labels")}
        png = encode_mask(mask_HW, space)
        rows.append({**kept, "mask_png": png, "foreground": 0.1, "round": 0})
    tables.write_rows(str(folder / "part-0.parquet"), rows, tables.MASKS)
    return str(folder)


def run(context: Any, value: int = 1, round: int = 0) -> tuple[StageFolder, Summary]:
    """Train on masks of one value."""
    folder = StageFolder.below(context.run_dir, f"train_segmenter-r{round}", "0")
    uri = masks(context.manifest, Path(context.run_dir) / "masks", value)
    section = context.config.segmenter
    return folder, train_segmenter.run(section, context, folder, masks_uri=uri, round=round)


def test_it_trains_on_masks(
    shapes: Manifest, make_context: Any, loop_here: None, tmp_path: Path
) -> None:
    context = make_context(shapes, config(workers=1))
    folder, summary = run(context, round=1)
    assert summary.images == shapes.splits["train"]
    assert np.isfinite(summary.metrics["loss"])
    _, meta = load_segmenter(folder.path("model.pt"))
    assert meta["round"] == 1
    # nothing is chosen where only the last iteration would be scored
    assert not summary.pixel_labels_used
    assert "chosen_step" not in summary.details
    assert LabelSpace.from_json(meta["label_space"]) == shapes.label_space


@pytest.mark.parametrize(("beta", "share"), [(0.0, 0.0), (99.0, 1.0)])
def test_underfitting_that_never_began_is_said(
    shapes: Manifest, make_context: Any, loop_here: None, tmp_path: Path, beta: float, share: float
) -> None:
    context = make_context(shapes, config(underfitting={"beta": beta}, workers=1))
    _, summary = run(context)
    assert summary.metrics["underfitting_share"] == share
    said = "under-fitting was never pretended: no head's mean loss fell below"
    assert (said in context.progress._stream.getvalue()) == (share == 0)


@pytest.mark.parametrize(("least", "falls"), [(0.0, True), (0.5, False)])
def test_a_learning_rate_that_does_not_fall_is_said(
    shapes: Manifest, make_context: Any, loop_here: None, tmp_path: Path, least: float, falls: bool
) -> None:
    rates = {"learning_rate": 0.01, "min_learning_rate": least}
    context = make_context(shapes, config(workers=1, **rates))
    run(context)
    said = "the learning rate stays at 0.01: segmenter.min_learning_rate 0.5 is not below it"
    assert (said in context.progress._stream.getvalue()) is not falls


def test_choosing_by_truth_is_said(shapes: Manifest, make_context: Any, tmp_path: Path) -> None:
    """Two workers score the held-out images; the summary and a message name the pixel labels."""
    context = make_context(shapes, config(validate_every=2, workers=2))
    _, summary = run(context)
    assert "pixel labels used (val, 4 images): they choose" in context.progress._stream.getvalue()
    assert summary.pixel_labels_used
    assert summary.details["split"] == "val"
    scores = {e["step"]: e["validation_miou"] for e in read_events(context.run_dir, "validation")}
    assert sorted(scores) == [2, 3]
    best = max(scores, key=lambda step: (scores[step], -step))
    assert summary.details["chosen_step"] == best
    assert summary.metrics["validation_miou"] == scores[best]


def test_held_out_images_that_were_not_scored_are_named(
    make_context: Any, loop_here: None, tmp_path: Path
) -> None:
    make_shapes(str(tmp_path / "data"), images=24, size=48, classes=3, seed=2)
    manifest = open_manifest(str(tmp_path / "data" / "manifest.parquet"))
    held_out = [r for r in tables.read_table(manifest.uri).to_pylist() if r["split"] == "val"]
    Path(manifest.locate(held_out[0]["ground_truth_uri"])).unlink()
    context = make_context(manifest, config(validate_every=2, workers=1))
    _, summary = run(context)
    assert summary.details["validation_images"] == len(held_out) - 1
    said = context.progress._stream.getvalue()
    assert f"{held_out[0]['image_id']} was not scored: " in said
    assert "no ground truth at" in said


@pytest.mark.parametrize(
    ("value", "why"),
    [(0, "the truth holds no class, only background"), (220, "not one image could be scored")],
)
def test_truth_without_a_class_chooses_no_weights_and_that_is_said(
    value: int, why: str, make_context: Any, loop_here: None, tmp_path: Path
) -> None:
    make_shapes(str(tmp_path / "data"), images=24, size=48, classes=3, seed=2)
    manifest = open_manifest(str(tmp_path / "data" / "manifest.parquet"))
    for row in tables.read_table(manifest.uri).to_pylist():
        if row["split"] == "val":
            empty = np.full((row["height"], row["width"]), value, np.uint8)
            Image.fromarray(empty).save(manifest.locate(row["ground_truth_uri"]))
    context = make_context(manifest, config(validate_every=2, workers=1))
    _, summary = run(context)
    assert "chosen_step" not in summary.details
    assert "validation_miou" not in summary.metrics
    said = " ".join(context.progress._stream.getvalue().split())
    assert f"the last weights are kept: {why}" in said


def test_without_truth_the_last_weights_are_kept(
    shapes: Manifest, make_context: Any, tmp_path: Path
) -> None:
    values = {"validate_every": 2, "workers": 1}
    for name, changes, data in (
        ("last", {"choose": "last"}, {}),
        ("blind", {}, {"held_out_split": "nothing"}),
    ):
        settings = {"segmenter": {**config(**values, **changes).segmenter.model_dump()}}
        whole = RunConfig.model_validate({**settings, "data": data})
        context = make_context(shapes, whole, tmp_path / name)
        found = train_segmenter.validation_of(whole.segmenter, context)
        assert (found is None) == (name == "blind")
        assert "pixel" not in context.progress._stream.getvalue()


def test_a_mask_outside_the_label_space_stops_it_before_training(
    shapes: Manifest, make_context: Any, loop_here: None, tmp_path: Path
) -> None:
    context = make_context(shapes, config(workers=1))
    first = tables.read_table(shapes.uri, ["image_id"]).column(0)[0].as_py()
    with pytest.raises(CannotRunError, match=rf"{first} .*holds \[9\]: allowed are 0\.\.3 and 255"):
        run(context, value=9)
    assert not list(read_events(context.run_dir, "train_step"))


def test_a_split_without_images_is_named_with_those_that_are_there(
    shapes: Manifest, make_context: Any, tmp_path: Path
) -> None:
    values = {"segmenter": config().segmenter.model_dump(), "data": {"train_split": "Train"}}
    context = make_context(shapes, RunConfig.model_validate(values))
    with pytest.raises(CannotRunError, match=r"no image of split 'Train' .*has train \(\d+\), val"):
        run(context)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 2, "workers": 2}, "BatchNorm needs 2"),
        ({"batch_size": 8, "workers": 2, "accumulate": 4}, "BatchNorm needs 2"),
        ({"batch_size": 8, "workers": 2, "accumulate": 3}, "split evenly over 3 passes"),
        ({"batch_size": 8, "workers": 3}, "split evenly over 3"),
        ({"backbone": "resnet38", "output_stride": 16}, "resnet38 has output stride 8"),
        ({"config": "/nowhere.py"}, "cannot read /nowhere.py"),
    ],
)
def test_batches_that_cannot_work_are_refused_at_once(
    shapes: Manifest, make_context: Any, tmp_path: Path, values: dict[str, int], message: str
) -> None:
    context = make_context(shapes, config(**values))
    with pytest.raises(CannotRunError, match=message):
        run(context)


def test_only_the_first_round_pretends() -> None:
    section = config().segmenter
    assert round_underfitting(section, 0) == section.underfitting
    assert round_underfitting(section, 1).kind == "none"
