"""Joins by names: a file that one name means is not another's, and a weak find is said."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmm_ray.sources.datasets.coco import import_coco
from pmm_ray.sources.labels.joined_lines import join_lines
from pmm_ray.sources.labels.label_lines import LabelLine
from pmm_ray.sources.reading.names import Found, NameIndex

from .coco_tree import annotation, box, entry, photo
from .coco_tree import write as write_coco
from .faulty import a_folder, rows
from .test_faulty_masks import masks_in, matched


@pytest.mark.parametrize(
    ("photographs", "mask"),
    [(("train/a.jpg", "val/a.jpg"), "a"), (("1.jpg", "01.jpg"), "001")],
)
def test_a_mask_is_not_the_truth_of_two_photographs(
    photographs: tuple[str, ...], mask: str, tmp_path: Path
) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.ones((48, 64), np.uint8)).save(tmp_path / f"masks/{mask}.png")
    csv = "image_id,labels\nsound,cat\n" + "".join(f"{name},cat\n" for name in photographs)
    report = a_folder(tmp_path, csv, "sound.jpg", *photographs)
    assert list(rows(report)) == ["sound"]
    assert [error.kind for error in report.errors] == ["label"] * 2
    assert all("give masks the paths" in error.message for error in report.errors)


@pytest.mark.parametrize(
    ("csv", "there", "missing"),
    [
        ("a/1.jpg,cat\nb/1.jpg,cat\nc/2.jpg,dog\n", ("a/1.jpg", "c/2.jpg"), "b/1.jpg"),
        ("a/1.jpg,cat\nb/1.jpg,dog\n", ("a/1.jpg",), "b/1.jpg"),
        ("1.jpg,cat\n1.png,dog\n", ("1.jpg",), "1.png"),
        ("IMG.jpg,cat\nimg.jpg,dog\n", ("IMG.jpg",), "img.jpg"),
    ],
)
def test_a_line_of_a_missing_photograph_takes_no_other(
    csv: str, there: tuple[str, ...], missing: str, tmp_path: Path
) -> None:
    report = a_folder(tmp_path, f"image_id,labels\n{csv}", *there)
    assert len(rows(report)) == len(there)
    assert [(e.image_id, e.kind) for e in report.errors] == [(missing, "missing")]


@pytest.mark.parametrize(
    ("csv", "there", "message"),
    [
        ("a/1.jpg,cat,val\nb/1.jpg,dog,val\n", ("1.jpg",), "so may another name"),
        ("1,cat,val\n01,dog,val\n", ("001.jpg",), "so may another name"),
        ("IMG_1,cat,val\n", ("day1/IMG_1.jpg", "day2/IMG_1.jpg"), "may be any of 2 files"),
        ("IMG_1.jpg,cat,val\n", ("day1/IMG_1.jpg", "day2/IMG_1.jpg"), "may be any of 2 files"),
        ("x/a,cat,val\n", ("a.jpg", "a.png"), "may be any of 2 files"),
    ],
)
def test_photographs_that_a_line_may_mean_are_errors(
    csv: str, there: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    report = a_folder(tmp_path, f"image_id,labels,split\n{csv}2.jpg,cat,val\n", "2.jpg", *there)
    assert {i: row["labels"] for i, row in rows(report).items()} == {"2": [1]}
    assert {e.uri.removeprefix(f"{tmp_path}/images/") for e in report.errors} == {*there}
    assert {e.kind for e in report.errors} == {"label"}
    assert all(message in e.message for e in report.errors)
    assert report.total == len(there) + 1


def test_a_line_that_may_mean_photographs_of_others_is_an_error_of_its_own(tmp_path: Path) -> None:
    csv = "image_id,labels\nx/1.jpg,cat\ny/1.jpg,dog\n1.jpg,cat\n"
    report = a_folder(tmp_path, csv, "x/1.jpg", "y/1.jpg")
    assert [row["labels"] for row in rows(report).values()] == [[1], [2]]
    assert [(e.image_id, e.kind) for e in report.errors] == [("1.jpg", "label")]


def test_a_mask_of_one_of_two_photographs_of_a_name_is_that_of_neither(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.full((48, 64), 2, np.uint8)).save(tmp_path / "masks/a.png")
    csv = "image_id,labels\nsound,cat\na.jpg,cat\na.png,dog\n"
    report = a_folder(tmp_path, csv, "sound.jpg", "a.jpg", "a.png")
    assert list(rows(report)) == ["sound"]
    assert [(e.image_id, e.kind) for e in report.errors] == [("a", "label")] * 2
    assert all("the mask a may be of any of 2 photographs" in e.message for e in report.errors)


def calls_of(work: Callable[[], object]) -> int:
    """How many calls of Python functions, and of those in C, a piece of work is."""
    counted = [0]

    def count(_frame: object, event: str, _what: object) -> None:
        counted[0] += "call" in event

    sys.setprofile(count)
    try:
        work()
    finally:
        sys.setprofile(None)
    return counted[0]


@pytest.mark.parametrize("written", ["/data/set/{}/image.jpg", "val/{}/image.jpg", "{}x/image.jpg"])
def test_many_files_of_one_name_take_linear_time(written: str) -> None:
    def join(count: int) -> int:
        index = NameIndex(f"train/{n}/image.jpg" for n in range(count))
        lines = [LabelLine(written.format(n), ("cat",), "") for n in range(count)]
        return calls_of(lambda: join_lines(lines, index))

    assert join(400) < 5 * join(100)


@pytest.mark.parametrize(
    ("listed", "there", "found"),
    [
        (("train/1.jpg", "val/1.jpg"), ("train/1.jpg", "val/2.jpg"), {"train/1.jpg"}),
        (("1.jpg", "01.jpg", "001.jpg"), ("1.jpg",), {"1.jpg"}),
        (("IMG.jpg", "img.jpg"), ("IMG.jpg",), {"IMG.jpg"}),
        (("a/1.jpg", "b/1.jpg", "2.jpg"), ("1.jpg", "2.jpg"), {"2.jpg"}),
    ],
)
def test_a_photograph_of_one_entry_is_not_anothers(
    listed: tuple[str, ...], there: tuple[str, ...], found: set[str], tmp_path: Path
) -> None:
    for name in there:
        photo(tmp_path / name)
    images = [entry(n, name, split="train" if n else "val") for n, name in enumerate(listed)]
    annotations = [annotation(n, 1 + n, [box(1, 1, 5, 5)]) for n in range(len(listed))]
    write_coco(tmp_path / "set.json", images, annotations)
    report = import_coco(str(tmp_path / "set.json"), str(tmp_path / "out"))
    assert {row["uri"].removeprefix(f"{tmp_path}/") for row in rows(report).values()} == found
    assert {error.kind for error in report.errors} == {"missing"}
    assert len(report.errors) == len(listed) - len(found)


@pytest.mark.parametrize(
    ("place", "written", "is_photograph"),
    [
        ("masks", "b.png", False),
        ("train/masks", "b.png", False),
        (".thumbs", "b.jpg", False),
        ("images/masks", "C:\\set\\masks\\b.png", True),
    ],
)
def test_a_photograph_that_is_missing_is_no_mask_or_thumbnail(
    place: str, written: str, is_photograph: bool, tmp_path: Path
) -> None:
    for name in ("images/a.png", "masks/a.png", f"{place}/{written[-5:]}"):
        photo(tmp_path / name)
    images = [entry(n, name, split="train") for n, name in enumerate(("a.png", written))]
    annotations = [annotation(n, 1, [box(1, 1, 5, 5)]) for n in range(2)]
    write_coco(tmp_path / "annotations.json", images, annotations)
    report = import_coco(str(tmp_path), str(tmp_path / "out"))
    found = [row["uri"].removeprefix(f"{tmp_path}/") for row in rows(report).values()]
    assert sorted(found) == ["images/a.png"] + ["images/masks/b.png"] * is_photograph
    assert [error.kind for error in report.errors] == ["missing"] * (not is_photograph)


def test_a_name_of_a_list_takes_no_mask_of_another(tmp_path: Path) -> None:
    masks, truth = (masks_in(tmp_path / side, "a/1", "a/2", "01") for side in "mt")
    found = matched(tmp_path, masks, truth, ["a/1", "b/1", "1", "01"])
    assert len(found.image_ids) == 2
    assert sorted(found.lacking.values()) == [
        f"the list names {name!r}: neither side has it" for name in ("1", "b/1")
    ]
    found = matched(tmp_path, masks, truth, ["b/1"])
    assert found.notes == ("names of the list found by the file's name alone: 1",)


@pytest.mark.parametrize(
    "written",
    [
        "./images/x/1.jpg",
        "images\\x\\1.jpg",
        "Images/x/1.jpg",
        "/home/me/set/images/x/1.jpg",
        "C:\\set\\images\\X\\1.jpg",
        "s3://b/set/images/x/1.jpg",
        "../set/x/1.JPG",
    ],
)
def test_a_path_that_names_its_folder_is_not_ambiguous(written: str, tmp_path: Path) -> None:
    csv = f"image_id,labels\n{written},cat\nimages/y/1.jpg,dog\n"
    report = a_folder(tmp_path, csv, "x/1.jpg", "y/1.jpg")
    assert not report.errors
    labels = {
        row["uri"].removeprefix(f"{tmp_path}/"): row["labels"] for row in rows(report).values()
    }
    assert labels == {"images/x/1.jpg": [1], "images/y/1.jpg": [2]}


def test_the_longest_end_of_a_path_counts_where_one_file_has_it() -> None:
    index = NameIndex(["a/x/1.jpg", "b/x/1.jpg", "b/y/1.jpg", "1.jpg", "train/z/2.jpg"])
    for written, name in (("/r/b/x/1.jpg", "b/x/1.jpg"), ("/r/Y/1.jpg", "b/y/1.jpg")):
        assert index.find(written) == Found(name, "by the end of the path", 6)
    for unsure in ("/r/x/1.jpg", "/r/c/1.jpg"):
        with pytest.raises(ValueError, match="may be any of"):
            index.find(unsure)
    assert index.find("/r/val/z/2.jpg") is None
    assert index.find("val/2.jpg") is None
    assert index.find("other/2.jpg") == Found("train/z/2.jpg", "by the file's name alone", 7)
