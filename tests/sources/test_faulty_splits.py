"""Splits that number their files alike, one photograph in two, and two words for its split."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmm_ray.runtime.core.index import read_all
from pmm_ray.sources.datasets.coco import import_coco
from pmm_ray.sources.datasets.coco_files import STRANGERS
from pmm_ray.sources.importing.import_report import ImportReport

from .coco_tree import annotation, box, entry, photo
from .coco_tree import write as write_coco
from .faulty import KINDS, a_folder, rows


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


# the split of an entry, and that of its file


def a_named(root: Path, file: str, **own: str) -> ImportReport:
    """A file of a split with two entries, of which the first names its own."""
    for name in ("a.jpg", "b.jpg"):
        photo(root / "images" / name)
    images = [entry(1, "a.jpg", **own), entry(2, "b.jpg")]
    objects = [annotation(n, 1, [box(1, 1, 5, 5)]) for n in (1, 2)]
    write_coco(root / f"{file}.json", images, objects, KINDS)
    return import_coco(str(root), str(root / "out"))


@pytest.mark.parametrize("key", ["split", "subset"])
@pytest.mark.parametrize(("file", "word"), [("train", "val"), ("val", "train"), ("train", "valid")])
def test_an_entry_of_another_split_than_its_file_is_an_error(
    file: str, word: str, key: str, tmp_path: Path
) -> None:
    report = a_named(tmp_path, file, **{key: word})
    [error] = report.errors
    assert (error.image_id, error.kind) == ("a", "label")
    assert f"its entry says split {word!r}, its file {file!r}: keep one of them" in error.message
    assert [row["split"] for row in rows(report).values()] == [file]
    assert STRANGERS not in report.counts


@pytest.mark.parametrize(
    ("word", "split"),
    [("train", "train"), ("training", "train"), ("coco-web", "train"), ("test", "test")],
)
def test_another_word_of_an_entry_contradicts_nothing(
    word: str, split: str, tmp_path: Path
) -> None:
    report = a_named(tmp_path, "train", subset=word)
    assert not report.errors
    assert [row["split"] for row in rows(report).values()] == [split, "train"]


# folders of splits, and something beside them


@pytest.mark.parametrize("other", ["cover.jpg", "extra/c.jpg", "a_first.jpg"])
def test_a_photograph_beside_folders_of_splits_is_named(other: str, tmp_path: Path) -> None:
    csv = f"image_id,labels\ntrain/a,cat\nval/b,dog\n{other},cat\n"
    report = a_folder(tmp_path, csv, "train/a.jpg", "val/b.jpg", other)
    assert {row["split"] for row in rows(report).values()} == {"train"}
    [said] = report.notes
    assert "of split train in folders of other splits: 1, such as 'val/b.jpg'" in said
    assert f"called as splits, and {other!r} is not: move it, or write the column split" in said


@pytest.mark.parametrize(
    "names", [("set1/train/a.jpg", "set1/val/b.jpg"), ("val/a.jpg",), ("a.jpg", "Test/b.jpg")]
)
def test_folders_that_tell_no_split_are_said(names: tuple[str, ...], tmp_path: Path) -> None:
    lines = "".join(f"{name},cat\n" for name in names)
    [said] = a_folder(tmp_path, f"image_id,labels\n{lines}", *names).notes
    assert f"other splits: 1, such as {names[-1]!r}" in said


@pytest.mark.parametrize(
    ("splits", "names"),
    [
        ("val", ("train/a.jpg", "val/b.jpg")),  # no note where folders tell all
        ("", ("train/a.jpg", "val/b.jpg")),
        ("val", ("train/a.jpg", "val/b.jpg", "cover.jpg")),
        ("", ("train/a.jpg", "cover.jpg")),
        ("", ("validated/a.jpg", "tests/cover.jpg")),
    ],
)
def test_photographs_whose_split_is_told_are_not(
    splits: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    lines = [f"{n},cat,{splits and ('val' if 'val/' in n else 'train')}\n" for n in names]
    assert a_folder(tmp_path, f"image_id,labels,split\n{''.join(lines)}", *names).notes == ()
