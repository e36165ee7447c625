"""Photographs of a folder of CAMs: which ones, and what their classes are called."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pmm_ray.labels import VOC12, LabelSpace
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.manifest import ManifestRow, write_manifest
from pmm_ray.sources.cams.cam_files import find_cams
from pmm_ray.sources.cams.cam_import import WITHOUT_CAM, import_photographs
from pmm_ray.sources.importing.import_report import ImportReport

CAMS = {"a": [7, 11], "b": [7], "c": [11, 3]}  # 0-based, VOC's: cat and dog; boat in c


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "cams").mkdir()
    for name, keys in CAMS.items():
        Image.new("RGB", (30, 20)).save(tmp_path / "photos" / f"{name}.jpg")
        cam = np.full((len(keys), 5, 7), 0.5, np.float16)
        np.savez(tmp_path / "cams" / f"{name}.npz", keys=keys, cam=cam)
    return tmp_path


def run(folder: Path, csv: str | None = None) -> ImportReport:
    labels = None
    if csv is not None:
        (folder / "labels.csv").write_text(csv, encoding="utf-8")
        labels = str(folder / "labels.csv")
    cams = find_cams(str(folder / "cams"), str(folder / "list.parquet"), trust_pickle=False)
    return import_photographs(str(folder / "photos"), cams, str(folder / "out"), labels_csv=labels)


def labels_of(report: ImportReport) -> dict[str, Any]:
    rows = tables.read_table(report.manifest.uri).to_pylist()
    return {row["image_id"]: row["labels"] for row in rows}


def test_without_a_csv_every_class_counts_and_has_no_name(folder: Path) -> None:
    Image.new("RGB", (30, 20)).save(folder / "photos" / "no-cam.jpg")
    report = run(folder)
    assert labels_of(report) == {"a": [], "b": [], "c": []}
    assert report.counts[WITHOUT_CAM] == 1
    space = report.manifest.label_space
    assert (space.num_foreground, space.names[8], space.mask_dtype) == (254, "class 8", np.uint8)


def test_what_does_not_fit_together_is_an_error_row(folder: Path) -> None:
    (folder / "photos" / "b.jpg").unlink()
    (folder / "photos" / "c.jpg").write_bytes(b"no photograph")
    shutil.copy(folder / "cams" / "a.npz", folder / "cams" / "d.npz")
    for ending in ("jpg", "png"):  # which one is the CAM's?
        Image.new("RGB", (30, 20)).save(folder / "photos" / f"d.{ending}")
    report = run(folder)
    kinds = [(error.image_id, error.kind) for error in report.errors]
    assert kinds == [("b", "missing"), ("c", "decode"), ("d", "label"), ("d", "label")]
    assert labels_of(report) == {"a": []}


def test_a_cam_of_two_photographs_and_a_second_cam_are_named_by_their_paths(folder: Path) -> None:
    (folder / "photos" / "c.jpg").unlink()
    for place in ("x", "y"):
        (folder / "photos" / place).mkdir()
        Image.new("RGB", (30, 20)).save(folder / "photos" / place / "c.jpg")
    np.save(folder / "cams" / "a.npy", np.zeros((1, 5, 7), np.float16))
    report = run(folder)
    errors = {error.image_id: error.message for error in report.errors}
    assert "its photograph may be x/c or y/c" in errors["c"]
    assert errors["a"] == "a second CAM of that name"
    assert "a" in labels_of(report)


def test_photographs_that_exif_data_turns_are_counted(folder: Path) -> None:
    assert not any("EXIF" in note for note in run(folder).notes)
    for name, orientation in (("a", 3), ("b", 6), ("c", 1)):
        tags = Image.Exif()
        tags[0x0112] = orientation
        Image.new("RGB", (30, 20)).save(folder / f"photos/{name}.jpg", exif=tags)
    [note] = [note for note in run(folder).notes if "EXIF" in note]
    assert f"that EXIF data turns: 2, such as {folder}/photos/a.jpg: they are taken as" in note
    assert "CAMs of what a viewer shows do not fit them" in note


def test_mask_values_in_the_csv(folder: Path) -> None:
    report = run(folder, "image_id,labels\na,8\nb.jpg,8\n")
    assert labels_of(report) == {"a": [8], "b": [8]}
    assert [(e.image_id, e.kind) for e in report.errors] == [("c", "label")]


@pytest.mark.parametrize("name_of_two", ["1.jpg", "1"])
def test_a_csv_names_photographs_as_that_of_a_folder_does(folder: Path, name_of_two: str) -> None:
    """A spreadsheet's `7.0`, and a name that may be one of two photographs."""
    for name in ("7", "8", "x/1", "y/1"):
        for place, ending in (("photos", "jpg"), ("cams", "npz")):
            target = folder / place / f"{name}.{ending}"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(folder / place / f"a.{ending}", target)
    report = run(
        folder,
        f"image_id,labels\n7.0,8\nimages/8.jpg,12\n{name_of_two},8\ngone.jpg,8\nz/gone.jpg,8\n",
    )
    assert labels_of(report) == {"7": [8], "8": [12]}
    said = {error.image_id.split("-")[0]: error.message for error in report.errors}
    for name in ("x", "y"):
        assert said[name].startswith(f"'{name_of_two}' may be any of 2 files (x/1.jpg, y/1.jpg)")
    assert said["a"] == "the CSV does not name this photograph"
    assert "lines of the CSV without a photograph: 2, such as 'gone.jpg'" in report.notes


def test_names_are_taken_in_the_order_that_fits_the_cams(folder: Path) -> None:
    # alphabetically cat would be 1, but the CAMs have 8: these are VOC's classes
    report = run(folder, "image_id,labels\na,cat;dog\nb,cat\nc,dog\n")
    assert report.manifest.label_space == VOC12
    assert labels_of(report) == {"a": [8, 12], "b": [8], "c": [12]}
    for name, keys in {"a": [0, 1], "b": [0], "c": [1]}.items():
        np.savez(folder / "cams" / f"{name}.npz", keys=keys, cam=np.zeros((len(keys), 5, 7)))
    report = run(folder, "image_id,labels\na,cat;dog\nb,cat\nc,dog\n")
    assert report.manifest.label_space.names == ("background", "cat", "dog")
    assert labels_of(report) == {"a": [1, 2], "b": [1], "c": [2]}


def test_names_from_a_class_list(folder: Path) -> None:
    (folder / "photos" / "classes.txt").write_text("\n".join(VOC12.names[1:]), encoding="utf-8")
    report = run(folder, "image_id,labels\na,dog\nb,moose\nc,boat;dog\n")
    assert labels_of(report) == {"a": [12], "c": [4, 12]}
    assert [(e.image_id, e.kind) for e in report.errors] == [("b", "label")]


def test_numbers_in_the_csv_may_be_the_values_of_the_class_list(folder: Path) -> None:
    (folder / "photos" / "classes.txt").write_text("0 background\n2 cat\n3 dog\n5 fox\n")
    report = run(folder, "image_id,labels\na,2\nb,cat\nc,5;3\n")
    assert labels_of(report) == {"a": [1], "b": [1], "c": [2, 3]}
    report = run(folder, "image_id,labels\na,1\nb,cat\nc,2;3\n")
    assert labels_of(report) == {"a": [1], "b": [1], "c": [2, 3]}
    with pytest.raises(
        CannotRunError, match=r"labels.csv: the numbers \[2\] may be values .*names"
    ):
        run(folder, "image_id,labels\na,2\nb,cat\nc,fox\n")


def test_names_by_mask_value(folder: Path) -> None:
    report = run(folder, "id, name\n0,background\n8,Katze\n12,Hund\n")
    space = report.manifest.label_space
    assert (space.num_foreground, space.names[8], space.names[9]) == (12, "Katze", "class 9")
    assert labels_of(report) == {"a": [], "b": [], "c": []}


@pytest.mark.parametrize(
    ("csv", "message"),
    [
        ("", "image_id and labels"),
        ("photo,class\na,cat\n", "image_id and labels"),
        ("id,name\n1\n", "is no id"),
        ("id,name\none,cat\n", "is no id"),
        ("id,name\n1,cat\n2,cat\n", "no label space"),
        ("id,name\n70000,cat\n", "ids must be in"),
    ],
)
def test_a_csv_that_cannot_be_read_stops_the_run(folder: Path, csv: str, message: str) -> None:
    with pytest.raises(CannotRunError, match=message):
        run(folder, csv)


def test_a_table_of_a_run_brings_its_names_and_its_exif_rule(folder: Path) -> None:
    space = LabelSpace.from_names(["cat", "dog"], "pets")
    row = ManifestRow("a", str(folder / "photos" / "a.jpg"), (1,), 20, 30, "train")
    manifest = write_manifest(
        str(folder / "data" / "manifest.parquet"), [row], space, source="t", exif="apply"
    )
    part = folder / "run" / "make_cams-12345678" / "part-0.parquet"
    cam = {"labels": [1], "cam": b"\x00" * 70, "cam_height": 5, "cam_width": 7}
    tables.write_rows(str(part), [{"image_id": "a", "height": 20, "width": 30, **cam}], tables.CAMS)
    record = {"name": "run", "stages": [], "manifest": manifest.uri}
    (folder / "run" / "run.json").write_text(json.dumps(record))
    cams = find_cams(str(part.parent), str(folder / "list.parquet"), trust_pickle=False)
    report = import_photographs(str(folder / "photos"), cams, str(folder / "out"))
    assert report.manifest.label_space == space
    assert report.manifest.apply_exif
    (folder / "run" / "run.json").unlink()
    report = import_photographs(str(folder / "photos"), cams, str(folder / "out"))
    assert not report.manifest.apply_exif


def test_nothing_to_do(folder: Path) -> None:
    for photo in (folder / "photos").iterdir():
        photo.rename(photo.with_stem(f"other-{photo.stem}"))
    with pytest.raises(CannotRunError, match="no image could be imported"):
        run(folder)
    for photo in (folder / "photos").iterdir():
        photo.unlink()
    with pytest.raises(CannotRunError, match="no photographs"):
        run(folder)
