"""The images a plan is timed on."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmm_ray.commands.plan.sample import choose_sample, spread
from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.manifest import ManifestRow, open_manifest, write_manifest

SPACE = LabelSpace.from_names(["a", "b", "c"])


def manifest(folder: Path) -> str:
    """100 training images of 1..3 classes and growing size, 20 held out, 5 of another split."""
    rows = [
        ManifestRow(f"t{i:03d}", f"{i}.jpg", (1, 2, 3)[: 1 + i % 3], 100 + i, 100, "train")
        for i in range(100)
    ]
    rows += [
        ManifestRow(f"v{i}", f"/far/{i}.jpg", (1,), 50, 50, "val", f"v{i}.png" if i else None)
        for i in range(20)
    ]
    rows += [ManifestRow(f"x{i}", f"x{i}.jpg", (), 50, 50, "test") for i in range(5)]
    uri = str(folder / "manifest.parquet")
    write_manifest(uri, rows, SPACE, source="test", exif="apply")
    return uri


def test_spread_takes_the_middles_of_equal_parts() -> None:
    assert spread([(v,) for v in (50, 10, 30, 20, 40, 60)], 3) == [3, 4, 5]
    assert spread([(1,), (0,)], 5) == [1, 0]


def test_both_splits_and_every_kind_of_image_are_there(tmp_path: Path) -> None:
    sample = choose_sample(manifest(tmp_path), str(tmp_path), ("train", "val"), 20)
    opened = open_manifest(sample.uri)
    assert opened.label_space == SPACE
    assert opened.apply_exif
    assert opened.splits["train"] == sample.count("train") == 10
    assert 10 <= opened.splits["val"] <= 11  # the one without truth may have come on top
    assert {g.truth for g in sample.group_of.values() if g.split == "val"} == {True, False}
    assert {(g.split, g.truth): n for g, n in sample.population.items()} == {
        ("train", False): 100,
        ("val", True): 19,
        ("val", False): 1,
    }


def test_class_counts_and_sizes_are_spread(tmp_path: Path) -> None:
    sample = choose_sample(manifest(tmp_path), str(tmp_path), ("train", "val"), 18)
    rows = [r for r in tables.read_table(sample.uri).to_pylist() if r["split"] == "train"]
    assert sorted(len(r["labels"]) for r in rows) == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    for classes in (1, 2, 3):
        heights = [r["height"] for r in rows if len(r["labels"]) == classes]
        assert max(heights) - min(heights) > 50


def test_uris_hold_in_another_folder(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    sample = choose_sample(manifest(tmp_path), str(tmp_path / "scratch"), ("train", "val"), 6)
    opened = open_manifest(sample.uri)
    for row in tables.read_table(sample.uri).to_pylist():
        folder = "/far" if row["split"] == "val" else str(tmp_path)
        assert opened.locate(row["uri"]).rsplit("/", 1)[0] == folder


def test_a_data_set_without_the_splits_of_the_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match="no image of the splits training, held"):
        choose_sample(manifest(tmp_path), str(tmp_path), ("training", "held"), 6)
