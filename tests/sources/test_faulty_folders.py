"""Folders as people name them: no mask is taken for a photograph, and nothing is passed over."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.sources.importing.import_report import ImportReport
from pmm_ray.sources.importing.photographs import places_in
from pmm_ray.sources.importing.understood import console

from .faulty import noise, refuse_locked, rows

MASK = np.pad(np.ones((9, 64), np.uint8), ((0, 39), (0, 0)))


def mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(MASK).save(path)


def read(root: Path) -> tuple[ImportReport, str]:
    report = import_folder(str(root), str(root.parent / "out"))
    return report, " ".join(console(report).split())


def test_folders_and_lists_are_found_in_any_case(tmp_path: Path) -> None:
    root = tmp_path / "set"
    noise(root / "Images/a.jpg")
    mask(root / "Masks/a.png")
    (root / "Labels.csv").write_text("image_id,labels\na,cat\n")
    (root / "CLASSES.txt").write_text("cat\ndog\n")
    report, _ = read(root)
    [row] = rows(report).values()
    assert (row["image_id"], row["labels"]) == ("a", [1])
    assert row["ground_truth_uri"] == str(root / "Masks/a.png")


@pytest.mark.parametrize("place", ["train/masks/a.png", "Train/SegmentationClass/a.png"])
def test_masks_in_a_folder_of_a_split_are_no_photographs(place: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    noise(root / "train/images/a.jpg")
    mask(root / place)
    report, _ = read(root)
    assert report.rows == 1
    assert report.accounting.left_out["in the folder of masks"].count == 1


@pytest.mark.parametrize("place", ["train_masks/a.png", "train/a_mask.png", "gt/a.PNG"])
def test_pictures_that_look_like_masks_are_asked_about(place: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    noise(root / "train/a.jpg")
    mask(root / place)
    _, said = read(root)
    assert f"such as '{place}': if they are masks, they belong into ROOT/masks" in said


def test_pictures_of_one_folder_or_of_other_names_are_not(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("a.jpg", "b.png", "c_mask.png"):
        noise(root / name)
    assert "if they are masks" not in read(root)[1]


@pytest.mark.parametrize("ending", [".jpg", ".bmp", ".tif"])
def test_masks_that_are_no_png_are_named(ending: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    noise(root / "images/a.jpg")
    mask(root / f"masks/a{ending}")
    report, said = read(root)
    assert f"no PNG files: 1, such as 'a{ending}'" in said
    assert report.counts["with ground truth"] == 0


@pytest.mark.parametrize(
    "name",
    [
        *("train.csv", "images/labels.csv", "labels.tsv", "labels.xlsx"),
        *("labels.json", "metadata.jsonl", "train_cls.txt"),
    ],
)
def test_a_table_that_is_not_read_is_named(name: str, tmp_path: Path) -> None:
    root = tmp_path / "set"
    noise(root / "images/a.jpg")
    (root / name).write_text("image_id,labels\na,cat\n")
    (root / "classes.txt").write_text("cat\n")
    (root / "old").mkdir()
    (root / "old/manifest.parquet").write_bytes(b"")
    (root / "old/summary.json").write_text('{"pixel_labels_used": false}')
    said = read(root)[1]
    assert f"{name} is not read: labels stand in ROOT/labels.csv" in said
    assert said.count("is not read") == 1


def test_roboflows_table_of_mask_values_is_no_table_of_labels(tmp_path: Path) -> None:
    noise(tmp_path / "train/a.jpg")
    mask(tmp_path / "train/a_mask.png")
    (tmp_path / "train/_classes.csv").write_text("Pixel Value, Class\n0, background\n1, cat\n")
    with pytest.raises(
        CannotRunError, match="table of mask values, which is not read: export COCO"
    ):
        import_folder(str(tmp_path), str(tmp_path / "out"))


def test_a_pointer_of_git_lfs_is_no_photograph(tmp_path: Path) -> None:
    noise(tmp_path / "set/a.jpg")
    (tmp_path / "set/b.jpg").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:1\n"
    )
    report, _ = read(tmp_path / "set")
    assert "git lfs pull" in report.errors[0].message


def test_a_folder_whose_name_is_not_utf8_ends_no_listing(tmp_path: Path) -> None:
    root = tmp_path / "set"
    noise(root / "Images/a.jpg")
    Path(os.fsdecode(os.fsencode(root) + b"/caf\xe9")).mkdir()
    report, _ = read(root)
    assert report.rows == 1


def test_the_very_name_counts_before_the_same_in_another_case(tmp_path: Path) -> None:
    for name in ("Labels.csv", "classes.txt", "labels.csv", "Class_names.txt"):
        (tmp_path / name).write_text("")
    assert places_in(str(tmp_path), ("labels.csv",)) == [str(tmp_path / "labels.csv")]
    assert places_in(str(tmp_path), ("LABELS.csv",)) == [
        str(tmp_path / name) for name in ("Labels.csv", "labels.csv")
    ]
    assert places_in(str(tmp_path / "nowhere"), ("labels.csv",)) == []


def test_two_folders_of_masks_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "set"
    noise(root / "images/a.jpg")
    mask(root / "masks/a.png")
    (root / "SegmentationClass").mkdir()
    np.save(root / "SegmentationClass/a.npy", MASK)  # as LabelMe's program writes beside the PNGs
    assert read(root)[0].counts["with ground truth"] == 1
    mask(root / "SegmentationClass/a.png")
    with pytest.raises(CannotRunError, match="both hold masks: keep one of them"):
        read(root)


def test_a_mask_that_is_a_dead_link_is_an_error(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in "ab":
        noise(root / f"images/{name}.jpg")
    (root / "masks").mkdir()
    (root / "masks/a.png").symlink_to("/nowhere/a.png")
    report, _ = read(root)
    assert [(error.image_id, error.kind) for error in report.errors] == [("a", "missing")]


def test_a_folder_that_cannot_be_listed_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "set"
    noise(root / "images/a.jpg")
    noise(root / "images/locked/b.jpg")
    refuse_locked(monkeypatch)
    report, _ = read(root)
    [error] = report.errors
    assert (error.image_id, error.kind) == ("locked", "missing")
    assert "cannot be listed: Permission denied" in error.message


def test_masks_are_left_aside_where_nobody_wants_them(tmp_path: Path) -> None:
    noise(tmp_path / "images/a.jpg")
    (tmp_path / "masks").mkdir()
    Image.new("RGB", (3, 4)).save(tmp_path / "masks/a.png")
    report = import_folder(
        str(tmp_path), str(tmp_path / "out"), class_names=["cat"], ground_truth=False
    )
    assert [row["ground_truth_uri"] for row in rows(report).values()] == [None]


def test_masks_beside_the_photographs_of_each_split_are_named(tmp_path: Path) -> None:
    root = tmp_path / "set"
    noise(root / "train/images/a.jpg")
    mask(root / "train/masks/a.png")
    said = read(root)[1]
    assert "masks that are not read: 1, such as train/masks/a.png" in said
