"""Exports of annotation tools as they come: CVAT's colour masks, Roboflow's tables and splits."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.sources.datasets.coco import import_coco
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.sources.importing.understood import console

from .coco_tree import annotation, box, entry, photo, write

LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:250,50,83::\ndog:61,61,245::\n"
COLOURS = np.array([[0, 0, 0], [250, 50, 83], [61, 61, 245]], np.uint8)


def photograph(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("beside", ["", "background\ncat\ndog\n"])
def test_colour_masks_of_cvat_are_read_by_their_label_map(
    mode: str, beside: str, tmp_path: Path
) -> None:
    ids = np.arange(48).reshape(6, 8) % 3
    root = tmp_path / "export"
    (root / "SegmentationClass").mkdir(parents=True)
    (root / "labelmap.txt").write_text(LABELMAP)
    if beside:
        (root / "classes.txt").write_text(beside)
    for name, shown in (("a", COLOURS), ("b", COLOURS + 1)):
        photograph(root / f"JPEGImages/{name}.jpg")
        image = Image.fromarray(shown[ids]).convert(mode)
        image.save(root / f"SegmentationClass/{name}.png")
    report = import_folder(str(root), str(tmp_path / "out"))
    [row] = tables.read_table(report.manifest.uri).to_pylist()
    assert row["image_id"] == "a"
    truth = Path(report.manifest.locate(row["ground_truth_uri"])).read_bytes()
    assert np.array_equal(decode_mask(truth), ids)
    [failed] = report.errors
    assert (failed.image_id, failed.kind) == ("b", "label")
    assert "the colours [(1, 1, 1), (62, 62, 246), (251, 51, 84)], which no class" in failed.message


def test_transparent_parts_of_a_colour_mask_are_of_no_class(tmp_path: Path) -> None:
    ids = np.arange(48).reshape(6, 8) % 2
    root = tmp_path / "export"
    (root / "SegmentationClass").mkdir(parents=True)
    # composited on white, they would be of a class
    (root / "labelmap.txt").write_text(LABELMAP.replace("61,61,245", "255,255,255"))
    for name, least in (("cut", 0), ("faint", 254), ("whole", 255)):
        photograph(root / f"JPEGImages/{name}.jpg")
        alpha = np.where(ids, 255, least).astype(np.uint8)
        image = Image.fromarray(np.dstack([COLOURS[ids], alpha]))
        image.save(root / f"SegmentationClass/{name}.png")
    report = import_folder(str(root), str(tmp_path / "out"))
    [row] = tables.read_table(report.manifest.uri).to_pylist()
    assert row["image_id"] == "whole"
    assert [error.image_id for error in report.errors] == ["cut", "faint"]
    assert f"{root}/SegmentationClass/cut.png has transparent parts" in report.errors[0].message


def test_multi_label_tables_of_roboflow(tmp_path: Path) -> None:
    for split, names in (("train", "ab"), ("valid", "c")):
        for name in names:
            photograph(tmp_path / f"set/{split}/{name}.jpg")
    (tmp_path / "set/train/_classes.csv").write_text(
        "filename, cat, dog\na.jpg, 1, 0\nb.jpg, 1, 1\nx.jpg, 0, 1\n"
    )
    (tmp_path / "set/valid/_classes.csv").write_text("filename, cat, dog\nc.jpg, 0, 2\n")
    report = import_folder(str(tmp_path / "set"), str(tmp_path / "out"))
    assert report.classes == {"cat": {"train": 2}, "dog": {"train": 1}}
    assert {row.image_id: row.kind for row in report.errors} == {
        "train/x.jpg": "missing",
        "valid-c-" + report.errors[-1].image_id[8:]: "label",
    }
    assert "holds ['2'], not 0 or 1" in report.errors[-1].message
    assert "labels: " in console(report)
    assert report.accounting.left_out["labels and class names"].count == 2


@pytest.mark.parametrize(
    "text",
    [
        "image_id,dog,cat\na,1,1\nb,1,0\n",
        "Image,dog,cat\na.jpg,True,TRUE\nb.jpg,yes,no\n",
        'filename;class\na.jpg;"dog;cat"\nb.jpg;dog\n',
        'sep=;\nimage_id;Labels\na;"dog;cat"\nb;dog\n',
        "image_id,labels\na,dog;cat\nb,dog\nc,NaN\n",
        "image_id,labels\na,dog;cat\nb,dog\nc,None\n",
    ],
)
def test_tables_as_people_write_them(text: str, tmp_path: Path) -> None:
    for name in "abc":
        photograph(tmp_path / f"set/images/{name}.jpg")
    (tmp_path / "set/labels.csv").write_text(text)
    report = import_folder(str(tmp_path / "set"), str(tmp_path / "out"))
    assert report.classes == {"cat": {"train": 1}, "dog": {"train": 2}}
    assert (report.counts["unlabelled"], len(report.errors)) == (1, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("image_id,labels\na,1;0\nb,0;1\n", "0 or 1 for each of 2 classes"),
        ("image_id,labels,Labels\na,dog,cat\n", "twice: keep one"),
        ("image_id,width\na,640\n", "must name the columns image_id and labels"),
    ],
)
def test_tables_that_could_be_misread_are_refused(text: str, said: str, tmp_path: Path) -> None:
    for name in "ab":
        photograph(tmp_path / f"set/images/{name}.jpg")
    (tmp_path / "set/labels.csv").write_text(text)
    with pytest.raises(CannotRunError, match=said):
        import_folder(str(tmp_path / "set"), str(tmp_path / "out"))


def test_numbers_of_a_spreadsheet_are_the_numbers_that_were_meant(tmp_path: Path) -> None:
    for name in ("7", "8"):
        photograph(tmp_path / f"set/images/{name}.jpg")
    (tmp_path / "set/labels.csv").write_text("image_id,labels\n7.0,1.0\n8.0,1\n")
    report = import_folder(str(tmp_path / "set"), str(tmp_path / "out"))
    assert report.classes == {"1": {"train": 2}}


def test_a_class_made_of_others_is_asked_about(tmp_path: Path) -> None:
    for name in "abc":
        photograph(tmp_path / f"set/images/{name}.jpg")
    (tmp_path / "set/labels.csv").write_text("image_id,labels\na,dog/cat\nb,dog\nc,cat\n")
    report = import_folder(str(tmp_path / "set"), str(tmp_path / "out"))
    assert "is 'dog/cat' several classes?" in console(report)


def test_a_folder_of_a_split_that_nobody_asked_for_is_said(tmp_path: Path) -> None:
    kinds = [{"id": 1, "name": "cat"}]
    for split in ("train", "valid"):
        photo(tmp_path / f"{split}/{split}.jpg")
        images = [entry(1, f"{split}.jpg")]
        file = tmp_path / f"{split}/_annotations.coco.json"
        write(file, images, [annotation(1, 1, [box(1, 1, 5, 5)])], kinds)
    command = [sys.executable, "-m", "pmm_ray.cli", "data", "import", "coco", str(tmp_path)]
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    said = " ".join(done.stdout.split())
    assert "valid/_annotations.coco.json is not imported" in said
    assert "1 of 2 images not: 1 left out: annotations of a split that nobody asked for" in said
    # Ray's own: the operator only received 1 input(s)
    assert "warn" not in done.stderr.lower()


def test_a_palette_that_contradicts_the_label_map_is_an_error(tmp_path: Path) -> None:
    ids = np.arange(48, dtype=np.uint8).reshape(6, 8) % 3
    root = tmp_path / "export"
    (root / "SegmentationClass").mkdir(parents=True)
    (root / "labelmap.txt").write_text(LABELMAP)
    for name, shown in (("sound", COLOURS), ("swapped", COLOURS[[0, 2, 1]]), ("own", COLOURS + 1)):
        photograph(root / f"JPEGImages/{name}.jpg")
        image = Image.fromarray(ids)
        image.putpalette(shown.tobytes())
        image.save(root / f"SegmentationClass/{name}.png")
    report = import_folder(str(root), str(tmp_path / "out"))
    found = {row["image_id"] for row in tables.read_table(report.manifest.uri).to_pylist()}
    assert found == {"sound", "own"}
    [error] = report.errors
    assert (error.image_id, error.kind) == ("swapped", "label")
    assert "have the colours of the classes [0, 2, 1]" in error.message


@pytest.mark.parametrize(
    "other", ["annotations/instances_Validation.json", "train.json", "annotations.json"]
)
def test_other_annotations_are_named(other: str, tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    content = ([entry(1, "a.jpg")], [annotation(1, 1, [box(1, 1, 5, 5)])])
    for name in ("annotations/instances_train.json", "annotations/captions_train.json", other):
        write(tmp_path / name, *content)
    report = import_coco(str(tmp_path), str(tmp_path / "out"))
    notes = [note for note in report.notes if "is not imported" in note]
    assert [note.split(" is ")[0] for note in notes] == [str(tmp_path / other)]
    assert report.accounting.passed_over == 1
