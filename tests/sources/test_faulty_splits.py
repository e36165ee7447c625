"""Splits that number their files alike, and one photograph in the rows of two."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmm_ray.runtime.core.index import read_all
from pmm_ray.sources.datasets.coco import import_coco
from pmm_ray.sources.importing.import_report import ImportReport

from .coco_tree import annotation, box, entry, photo
from .coco_tree import write as write_coco
from .faulty import KINDS, rows


def a_set(root: Path, files: dict[str, tuple[str, ...]], *photographs: str) -> ImportReport:
    """A COCO file for each key, its images in order: those of the first are cats, others dogs."""
    for name in photographs:
        photo(root / name)
    for category, (file, names) in enumerate(files.items(), 1):
        images = [entry(n, name) for n, name in enumerate(names)]
        objects = [annotation(n, category, [box(n + 1, 1, 5, 5)]) for n in range(len(names))]
        write_coco(root / file, images, objects, KINDS)
    return import_coco(str(root), str(root / "out"))


def uris(report: ImportReport, root: Path) -> dict[str, tuple[str, list[int]]]:
    """Split and labels by the place of the photograph."""
    return {
        row["uri"].removeprefix(f"{root}/"): (row["split"], row["labels"])
        for row in rows(report).values()
    }


def drawn(root: Path) -> dict[str, list[int]]:
    """The labels of the objects of each image."""
    found = read_all(f"{root}/out/objects").to_pylist()
    return {row["image_id"]: [item["label"] for item in row["objects"]] for row in found}


@pytest.mark.parametrize(
    "files",
    [
        {"train.json": ("images/1.jpg",), "val.json": ("1.jpg",)},
        {"train.json": ("1.jpg",), "val.json": ("./1.jpg",)},
        {"train.json": ("1.jpg", "images/1.jpg")},
    ],
)
def test_one_photograph_in_two_spellings_is_an_error_of_both(
    files: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    files = files | {"train.json": (*files["train.json"], "2.jpg")}
    report = a_set(tmp_path, files, "images/1.jpg", "images/2.jpg")
    assert uris(report, tmp_path) == {"images/2.jpg": ("train", [1])}
    written = [f"{name!r} ({file})" for file, names in files.items() for name in names]
    assert len(report.errors) == 2
    for error in report.errors:
        assert error.kind == "label"
        assert f"{written[0]} and {written[-1 if len(files) > 1 else 1]} are one" in error.message


def test_a_name_with_and_without_the_folder_of_its_split_is_one_file(tmp_path: Path) -> None:
    names = ("train/1.jpg", "1.jpg", "2.jpg")
    report = a_set(tmp_path, {"train.json": names}, "train/1.jpg", "train/2.jpg")
    assert list(rows(report)) == ["2"]
    assert [error.kind for error in report.errors] == ["label"] * 2


def test_a_space_that_is_written_in_two_ways_is_one_file(tmp_path: Path) -> None:
    names = ("b c.jpg", "b%20c.jpg", "d.jpg")
    report = a_set(tmp_path, {"train.json": names}, "images/b c.jpg", "images/d.jpg")
    assert list(rows(report)) == ["d"]
    assert [error.kind for error in report.errors] == ["label"] * 2


@pytest.mark.parametrize(
    ("file", "folder"),
    [("{}/_annotations.coco.json", "{}/"), ("{}.json", "images/{}/"), ("{}.json", "{}/")],
)
def test_splits_may_number_their_files_alike(file: str, folder: str, tmp_path: Path) -> None:
    files = {
        file.format("train"): ("0001.jpg", "0002.jpg"),
        file.format("val"): ("0001.jpg", "0003.jpg"),
    }
    there = [
        f"{folder.format(split)}{number}.jpg"
        for split, number in (("train", "0001"), ("train", "0002"), ("val", "0001"))
    ]
    report = a_set(tmp_path, files, *there, f"{folder.format('val')}0003.jpg")
    assert not report.errors
    train, val = folder.format("train"), folder.format("val")
    assert uris(report, tmp_path) == {
        f"{train}0001.jpg": ("train", [1]),
        f"{train}0002.jpg": ("train", [1]),
        f"{val}0001.jpg": ("val", [2]),
        f"{val}0003.jpg": ("val", [2]),
    }
    ids = {row["image_id"]: row["labels"] for row in rows(report).values()}
    assert {"0002", "0003"} < ids.keys()
    assert any(i.startswith("train-0001-") for i in ids)
    [note] = [note for note in report.notes if "their image ids begin" in note]
    assert "several splits: 1;" in note
    objects = drawn(tmp_path)
    assert objects == ids


def test_a_split_whose_photograph_is_missing_takes_none_of_another(tmp_path: Path) -> None:
    files = {"train.json": ("2.jpg",), "val.json": ("1.jpg",)}
    report = a_set(tmp_path, files, "images/train/1.jpg", "images/train/2.jpg")
    assert list(rows(report)) == ["2"]
    [error] = report.errors
    assert (error.image_id, error.kind) == ("1", "missing")
    assert "images/train/1.jpg is of another split" in error.message


def test_of_one_number_in_two_splits_one_may_be_missing(tmp_path: Path) -> None:
    files = {"train.json": ("1.jpg",), "val.json": ("1.jpg",)}
    report = a_set(tmp_path, files, "images/val/1.jpg")
    assert uris(report, tmp_path) == {"images/val/1.jpg": ("val", [2])}
    [error] = report.errors
    assert (error.image_id[:8], error.kind) == ("train-1-", "missing")
    [mask] = rows(report)
    objects = drawn(tmp_path)
    assert objects[mask] == [2]
