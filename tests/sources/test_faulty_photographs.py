"""Photographs that are masks, are there twice, are called or turned otherwise than they seem."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.datasets.coco import import_coco
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.sources.datasets.parquet import import_parquet
from pmm_ray.sources.importing import importer
from pmm_ray.sources.importing.import_report import ImportReport
from pmm_ray.sources.masks.lookalikes import lookalikes

from .coco_tree import annotation, box, entry
from .coco_tree import write as write_coco
from .faulty import KINDS, a_folder, noise, rows
from .test_faulty_parquet import drawn


def read(root: Path, *names: str, **options: Any) -> tuple[ImportReport, str]:
    for name in names:
        noise(root / name)
    report = import_folder(str(root), str(root.parent / "out"), **options)
    return report, "\n".join(report.notes)


def copied(root: Path, *pairs: tuple[str, str]) -> None:
    for source, target in pairs:
        noise(root / source)
        (root / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / source, root / target)


# masks among photographs

MASKS = [
    ("a.png", "a_mask.png"),
    ("a.jpg", "a_mask.jpg"),
    ("a.jpg", "mask_a.png"),
    ("a.jpg", "masks_machine/a.jpg.png"),
    ("a.JPG", "A_Mask (1).png"),
    ("a.png", "a_gtFine_labelIds.png"),
    ("a_leftImg8bit.png", "a_gtFine_color.png"),
    ("ISIC_1.jpg", "ISIC_1_segmentation.png"),
    ("benign (1).png", "benign (1)_mask_1.png"),
    ("image_7.png", "mask_7.png"),
    ("7_sat.jpg", "7_mask.png"),
    ("7/image.png", "7/mask.png"),
    ("21_training.tif", "21_manual1.gif"),
    ("train/a.png", "train_gt/a.png"),
    ("a.bmp", "a_anno.bmp"),
]


@pytest.mark.parametrize(("photograph", "mask"), MASKS)
def test_a_picture_that_may_be_a_mask_is_asked_about(
    photograph: str, mask: str, tmp_path: Path
) -> None:
    report, said = read(tmp_path / "set", photograph, mask, "b.jpg")
    assert report.total == 3
    assert f"another photograph: 1, such as {mask!r}: if they are masks, they belong into" in said


@pytest.mark.parametrize(
    "names",
    [
        ("with_mask/1.jpg", "without_mask/1.jpg"),
        ("with_mask/1-with-mask.jpg", "without_mask/1.jpg"),
        ("seg_train/sea/1.jpg", "seg_test/sea/1.jpg"),
        ("shirt.jpg", "shirt_label.jpg"),
        ("1.jpg", "11.jpg", "1 (1).jpg", "1_2.jpg"),
        ("x/mask.png", "y/image.png"),
        ("mask_1.jpg", "mask_2.jpg"),
        ("cat/1.jpg", "dog/1.jpg"),
    ],
)
def test_other_pictures_are_not(names: tuple[str, ...]) -> None:
    assert lookalikes(names) == []


@pytest.mark.parametrize(
    ("photograph", "mask"),
    [
        ("benign/benign (1).png", "benign/benign (1)_mask.png"),
        ("benign/benign (1).png", "benign/benign (1)_mask_1.png"),
        ("train/benign/1.jpg", "train/benign/1_segmentation.jpg"),
        ("images/benign/scans/1.png", "images/benign/lung masks/1.png"),
    ],
)
def test_a_mask_in_the_folder_of_a_class_is_refused(
    photograph: str, mask: str, tmp_path: Path
) -> None:
    other = photograph.replace("benign", "normal")
    name = mask.removeprefix("images/")
    with pytest.raises(CannotRunError) as caught:
        read(tmp_path, photograph, mask, other, labels_from="folders")
    assert f"{name} is called as a mask of {photograph.removeprefix('images/')}" in str(
        caught.value
    )
    assert f"would be photographs of 'benign': move masks into {tmp_path}/masks" in str(
        caught.value
    )


@pytest.mark.parametrize(
    "names",
    [
        ("mask/1.jpg", "bare/1.jpg"),
        ("with_mask/1.jpg", "with_mask/1_mask.jpg"),
        ("cat/1.jpg", "dog/1_mask.jpg"),
        ("shirt/1.png", "shirt/1_label.png"),
        ("cat/1.jpg", "dog/1.png"),
        ("cat/1.jpg", "cat/old/1_edited.png"),
    ],
)
def test_a_class_may_be_called_as_masks_are(names: tuple[str, ...], tmp_path: Path) -> None:
    root = tmp_path / "set"
    report, _ = read(root, *names, labels_from="folders")
    assert all(row["labels"] for row in rows(report).values())
    assert report.rows == 2


# folders below those of classes


def test_folders_below_those_of_classes_are_said(tmp_path: Path) -> None:
    names = ("birds/sparrow/1.jpg", "birds/owl/2.jpg", "cats/tabby/3.jpg")
    report, said = read(tmp_path / "set", *names, labels_from="folders")
    assert report.manifest.label_space.names[1:] == ("birds", "cats")
    assert "folders below those of classes are not read: birds/owl, birds/sparrow; if these" in said
    split = tmp_path / "split"
    _, said = read(split, *(f"train/{name}" for name in names), labels_from="folders")
    assert "not read: birds/owl, birds/sparrow;" in said


def test_a_folder_below_each_class_tells_nothing_more(tmp_path: Path) -> None:
    names = ("birds/owl/1.jpg", "birds/2.jpg", "cats/tabby/3.jpg")
    assert read(tmp_path / "set", *names, labels_from="folders")[1] == ""


# photographs that are there twice


def test_a_photograph_in_two_splits_is_said(tmp_path: Path) -> None:
    copied(tmp_path / "images", ("train/IMG_1.jpg", "val/IMG_1 (1).jpg"))
    csv = "image_id,labels\ntrain/IMG_1,cat\nval/IMG_1 (1),dog\ntrain/a,cat\nval/b,dog\n"
    report = a_folder(tmp_path, csv, "train/a.jpg", "val/b.jpg")
    [said] = report.notes
    place = f"{tmp_path}/images"
    assert "photographs in two splits: 1, such as " in said
    assert f"{place}/train/IMG_1.jpg (train) and {place}/val/IMG_1 (1).jpg (val)" in said


def test_a_photograph_twice_in_one_split_is_not(tmp_path: Path) -> None:
    copied(tmp_path / "images", ("train/1.jpg", "train/2.jpg"))
    assert a_folder(tmp_path, "image_id,labels\ntrain/1,cat\n", "val/b.jpg").notes == (
        "photographs that the CSV does not name: 2",
    )


def test_photographs_that_differ_in_one_byte_are_two(tmp_path: Path) -> None:
    copied(tmp_path / "images", ("train/1.bmp", "val/2.bmp"))
    path = tmp_path / "images/val/2.bmp"
    data = bytearray(path.read_bytes())
    data[60] ^= 1  # before what is compared first
    assert len(data) > 2 * 4096
    path.write_bytes(data)
    assert "two splits" not in "\n".join(read(tmp_path)[0].notes)


def test_photographs_of_parquet_and_coco_in_two_splits_are_said(tmp_path: Path) -> None:
    columns = {"image": [drawn(1), drawn(2)], "label": ["cat", "dog"]}
    (tmp_path / "set").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "set/train.parquet")
    columns["image"][1] = drawn(3)
    pq.write_table(pa.table(columns), tmp_path / "set/val.parquet")
    report = import_parquet(str(tmp_path / "set"), str(tmp_path / "out"))
    assert "photographs in two splits: 1, such as" in report.notes[0]
    assert "train-0000000.jpg (train)" in report.notes[0]
    copied(tmp_path / "coco", ("train/1.jpg", "val/one.jpg"))
    for split, name in (("train", "1.jpg"), ("val", "one.jpg")):
        image = entry(1, name) | {"height": 48, "width": 64}
        write_coco(
            tmp_path / f"coco/{split}.json", [image], [annotation(1, 1, [box(1, 1, 5, 5)])], KINDS
        )
    report = import_coco(str(tmp_path / "coco"), str(tmp_path / "out"))
    assert "photographs in two splits: 1, such as" in report.notes[0]


def test_of_many_copies_some_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copied(tmp_path, *((f"train/{n}.jpg", f"val/b{n}.jpg") for n in range(6)))
    size = (tmp_path / "train/0.jpg").stat().st_size
    monkeypatch.setattr(importer, "_MOST_BYTES", 5 * size)
    assert "photographs in two splits: at least" in read(tmp_path)[1]


def test_one_photograph_in_two_classes_under_two_names_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importer, "_MOST_BYTES", 0)  # rows depend on it: all are read
    root = tmp_path / "set"
    copied(root, ("cat/IMG_1.jpg", "dog/IMG_1 (1).jpg"), ("cat/2.jpg", "3.jpg"))
    report, _ = read(root, "dog/4.jpg", labels_from="folders")
    assert [error.kind for error in report.errors] == ["label"] * 2
    assert "the same photograph is cat/IMG_1.jpg and dog/IMG_1 (1).jpg" in report.errors[0].message
    assert {Path(row["uri"]).name for row in rows(report).values()} == {"2.jpg", "3.jpg", "4.jpg"}


# files that are there, under names that are no photographs'


@pytest.mark.parametrize(
    ("file", "line"),
    [
        *(("c.jpg_large", "c.jpg_large"), ("c.jpg_large", "c"), ("e", "e"), ("e", "e.jpg")),
        *(("deep/e", "deep/e"), ("deep/e", "images/deep/e"), ("f.kra", "f.kra")),
    ],
)
def test_a_file_without_the_ending_of_a_photograph_is_there(
    file: str, line: str, tmp_path: Path
) -> None:
    noise(tmp_path / "images" / file, kind="JPEG")
    report = a_folder(tmp_path, f"image_id,labels\na,cat\n{line},dog\n", "a.jpg")
    [error] = report.errors
    assert (error.image_id, error.kind) == (line, "missing")
    assert f"images/{file} is there, but has no ending of a photograph: rename or" in error.message


@pytest.mark.parametrize("file", ["b.txt", "b.xml", "../b.dat"])
def test_other_files_are_not_the_photograph(file: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / file).write_text("x")
    [error] = a_folder(tmp_path, "image_id,labels\na,cat\nb,dog\n", "a.jpg").errors
    assert "but it is not in" in error.message


@pytest.mark.parametrize("line", ["b", "b.CR2", "images/b.cr2"])
def test_a_photograph_that_is_not_read_is_one_error(line: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images/b.CR2").write_bytes(b"II*\0")
    report = a_folder(tmp_path, f"image_id,labels\na,cat\n{line},dog\n", "a.jpg")
    [error] = report.errors
    assert (error.image_id, error.kind) == ("b", "decode")
    assert ".cr2 is not read: convert" in error.message
    assert report.total == 2


@pytest.mark.parametrize(
    "ending", ["nrw", "pef", "srw", "rwl", "3fr", "iiq", "x3f", "gpr", "NRW", "mrw"]
)
def test_more_raw_files_are_known(ending: str, tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / f"images/b.{ending}").write_bytes(b"raw")
    [error] = a_folder(tmp_path, f"image_id,labels\na,cat\nb.{ending},dog\n", "a.jpg").errors
    assert error.kind == "decode"


def test_an_mpo_is_a_photograph(tmp_path: Path) -> None:
    noise(tmp_path / "images/d.mpo", kind="MPO")
    report = a_folder(tmp_path, "image_id,labels\na,cat\nd.mpo,dog\n", "a.jpg")
    assert rows(report)["d"]["labels"] == [2]


# photographs that EXIF data turns


def turned(path: Path, orientation: int, size: tuple[int, int] = (64, 48)) -> None:
    noise(path, size)
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as image:
        image.save(path, exif=exif.tobytes())


def truth(path: Path, size: tuple[int, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ones(size[::-1], np.uint8)).save(path)


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_mask_of_the_photograph_as_it_is_stored_says_so(orientation: int, tmp_path: Path) -> None:
    turned(tmp_path / "images/a.jpg", orientation)
    truth(tmp_path / "masks/a.png", (64, 48))
    [error] = a_folder(tmp_path, "image_id,labels\na,cat\nb,cat\n", "b.jpg").errors
    assert "the mask is 64 x 48 pixels, the photograph 48 x 64" in error.message
    assert f"EXIF data turns the photograph (orientation {orientation})" in error.message
    assert "exiftool -Orientation= FILE" in error.message


def test_annotations_of_the_photograph_as_it_is_stored_say_so(tmp_path: Path) -> None:
    turned(tmp_path / "a.jpg", 6, (30, 20))
    turned(tmp_path / "b.jpg", 1, (30, 20))
    items = [annotation(n, 1, [box(1, 1, 5, 5)]) for n in (1, 2)]
    write_coco(tmp_path / "set.json", [entry(1, "a.jpg"), entry(2, "b.jpg")], items, KINDS)
    report = import_coco(str(tmp_path / "set.json"), str(tmp_path / "out"))
    [error] = report.errors
    assert "for 30 x 20 pixels, the photograph has 20 x 30; EXIF data turns" in error.message
    assert report.notes == ()


@pytest.mark.parametrize("size", [(64, 48), (48, 64), (60, 50)])
def test_a_mask_of_another_size_is_no_fault_of_exif_data(
    size: tuple[int, int], tmp_path: Path
) -> None:
    turned(tmp_path / "images/a.jpg", 3)
    truth(tmp_path / "masks/a.png", size)
    report = a_folder(tmp_path, "image_id,labels\na,cat\nb,cat\n", "b.jpg")
    assert all("EXIF" not in error.message for error in report.errors)


@pytest.mark.parametrize(
    ("orientation", "size"), [(2, (64, 48)), (3, (64, 48)), (4, (64, 48)), (6, (48, 48))]
)
def test_truth_that_may_be_turned_is_said(
    orientation: int, size: tuple[int, int], tmp_path: Path
) -> None:
    for name in "abc":
        turned(tmp_path / f"images/{name}.jpg", orientation, size)
        if name != "c":
            truth(tmp_path / f"masks/{name}.png", size)
    report = a_folder(tmp_path, "image_id,labels\na,cat\nb,cat\n", "d.jpg")
    said = [note for note in report.notes if "EXIF" in note]
    assert len(said) == 1
    assert f"that EXIF data turns: 2, such as {tmp_path}/images/a.jpg" in said[0]


@pytest.mark.parametrize(("orientation", "size"), [(6, (48, 64)), (1, (64, 48))])
def test_truth_that_fits_is_not(orientation: int, size: tuple[int, int], tmp_path: Path) -> None:
    turned(tmp_path / "images/a.jpg", orientation)
    truth(tmp_path / "masks/a.png", size)
    report = a_folder(tmp_path, "image_id,labels\na,cat\n", "a.jpg".replace("a", "b"))
    assert report.rows == 2
    assert "EXIF" not in "".join(report.notes)


@pytest.mark.parametrize("orientation", [3, 6])
def test_annotations_that_state_no_size_may_be_turned(orientation: int, tmp_path: Path) -> None:
    turned(tmp_path / "a.jpg", orientation)
    image = {"id": 1, "file_name": "a.jpg"}
    write_coco(tmp_path / "set.json", [image], [annotation(1, 1, [box(1, 1, 5, 5)])], KINDS)
    report = import_coco(str(tmp_path / "set.json"), str(tmp_path / "out"))
    assert "that EXIF data turns: 1, such as" in report.notes[0]
