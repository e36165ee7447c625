"""Photographs that stand in folders named by class."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pmm_ray.config import DataConfig
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.sources.importing.import_report import ImportReport
from pmm_ray.stages.import_data import import_source

from .faulty import noise, rows


def folders(root: Path, *names: str, **options: str) -> ImportReport:
    for name in names:
        noise(root / name)
    options = {"labels_from": "folders"} | options
    return import_folder(str(root), str(root / "out"), **options)


def labels(report: ImportReport) -> dict[str, tuple[str, list[str]]]:
    """Split and classes by the photograph's path from its class's folder on."""
    names = report.manifest.label_space.names
    return {
        "/".join(Path(row["uri"]).parts[-2:]): (row["split"], [names[i] for i in row["labels"]])
        for row in rows(report).values()
    }


@pytest.mark.parametrize("above", ["", "images/"])
def test_a_folder_is_a_class(tmp_path: Path, above: str) -> None:
    names = ["cat/1.jpg", "cat/2.jpg", "big dog/1.jpg"]
    report = folders(tmp_path, *(above + name for name in names))
    assert labels(report) == {
        "cat/1.jpg": ("train", ["cat"]),
        "cat/2.jpg": ("train", ["cat"]),
        "big dog/1.jpg": ("train", ["big dog"]),
    }
    assert report.labels_from == "the folders that the photographs are in"


def test_folders_of_splits_stand_above_those_of_classes(tmp_path: Path) -> None:
    report = folders(tmp_path, "train/cat/1.jpg", "Valid/dog/1.jpg", "test/2.jpg")
    assert labels(report) == {
        "cat/1.jpg": ("train", ["cat"]),
        "dog/1.jpg": ("Valid", ["dog"]),
        "test/2.jpg": ("test", []),
    }
    assert "photographs in no folder of a class: 1" in report.notes


def test_the_top_folder_counts_where_classes_have_folders_of_their_own(tmp_path: Path) -> None:
    report = folders(tmp_path, "cat/old/1.jpg", "dog/new/2.jpg", "test/3.jpg")
    assert [found[1] for found in labels(report).values()] == [["cat"], ["dog"], ["test"]]


def test_classes_of_a_list_are_the_only_ones(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("dog\ncat\n", encoding="utf-8")
    report = folders(tmp_path, "cat/1.jpg", "unsorted/2.jpg", "background/3.jpg")
    assert [row["labels"] for row in rows(report).values()] == [[2]]
    assert [error.kind for error in report.errors] == ["label", "label"]


def test_a_csv_beside_them_is_named(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image_id,labels\ncat/1,dog\n", encoding="utf-8")
    report = folders(tmp_path, "cat/1.jpg")
    assert labels(report) == {"cat/1.jpg": ("train", ["cat"])}
    assert any("labels.csv is not read" in note for note in report.notes)


def test_photographs_in_no_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match=r"no photograph of .* is in a folder of its class"):
        folders(tmp_path, "a.jpg", "b.jpg")


def test_without_the_key_the_folders_are_named_and_not_used(tmp_path: Path) -> None:
    report = folders(tmp_path, "cat/1.jpg", "dog/1.jpg", "dog/2.jpg", labels_from="auto")
    assert report.counts["unlabelled"] == 3
    assert any(
        note.startswith("the photographs are in folders: cat 1, dog 2;") for note in report.notes
    )


def test_the_recipe_says_so(tmp_path: Path) -> None:
    noise(tmp_path / "set/cat/1.jpg")
    data = DataConfig(source="folder", root=str(tmp_path / "set"), labels_from="folders")
    assert labels(import_source(data, str(tmp_path / "out"), 0)) == {
        "cat/1.jpg": ("train", ["cat"])
    }
    with pytest.raises(CannotRunError, match="for folder is one of auto, folders"):
        import_source(data.model_copy(update={"labels_from": "xml"}), str(tmp_path / "out"), 0)


def test_a_class_may_be_called_as_a_split_is(tmp_path: Path) -> None:
    report = folders(tmp_path, "train/1.jpg", "car/1.jpg")
    assert [found[1] for found in labels(report).values()] == [["car"], ["train"]]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (("training_set/cat/1.jpg", "test_set/cat/2.jpg"), ("test_set", "training_set")),
        (("train2017/cat/1.jpg", "val2017/cat/2.jpg"), ("train2017", "val2017")),
        (("cat/train/1.jpg", "cat/val/2.jpg"), ("train", "val")),
        (("seg_train/cat/1.jpg", "seg_test/cat/2.jpg"), ("test", "train")),
        (("seg_train/seg_train/cat/1.jpg", "seg_val/seg_val/cat/2.jpg"), ("train", "val")),
        (("train/train/cat/1.jpg", "val/val/cat/2.jpg"), ("train", "val")),
        (("train_images/cat/1.jpg", "val_images/cat/2.jpg"), ("train", "val")),
        (("01_train/cat/1.jpg", "02-Validation/cat/2.jpg"), ("train", "val")),
        (("my set train/cat/1.jpg", "my set test/cat/2.jpg"), ("test", "train")),
    ],
)
def test_splits_by_other_names_and_below_the_classes(
    tmp_path: Path, names: tuple[str, ...], splits: tuple[str, ...]
) -> None:
    report = folders(tmp_path, *names)
    assert tuple(row["split"] for row in rows(report).values()) == splits
    assert report.manifest.label_space.names == ("background", "cat")


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("Pets/cat/1.jpg", "Pets/dog/1.jpg"), "give 'Pets' as ROOT"),
        (("train/Pets/cat/1.jpg", "train/Pets/dog/1.jpg"), "give 'Pets' as ROOT"),
        (("train/images/1.jpg", "valid/images/1.jpg"), "the folder 'images' is no class"),
        (("train/cat/1.jpg", "val/dog/1.jpg", "extra/x.jpg"), r"\['extra'\] beside them are not"),
        (("cat/train/1.jpg", "dog/2.jpg"), "some classes have folders of splits below them"),
        (
            ("fold0/cat/1.jpg", "fold0/dog/1.jpg", "fold1/cat/2.jpg", "fold1/dog/2.jpg"),
            "'fold1' both",
        ),
        (("day/cat/1.jpg", "day/dog/1.jpg", "night/cat/2.jpg", "night/dog/2.jpg"), "which are the"),
        (
            ("train/a/cat/1.jpg", "train/a/dog/1.jpg", "train/b/cat/2.jpg", "train/b/dog/2.jpg"),
            "'a' and 'b' both hold",
        ),
        (("seg_train/cat/1.jpg", "seg_pred/1.jpg", "seg_test/cat/1.jpg"), "name of a split"),
        (("trainA/1.jpg", "testA/2.jpg"), r"\['testA', 'trainA'\] differ by the name of a split"),
        (("trainA/cat/1.jpg", "testA/cat/2.jpg"), "name of a split"),
        (("cats_train/1.jpg", "cats_val/2.jpg", "dogs_train/3.jpg"), "name of a split"),
        (("train/1.jpg", "val/2.jpg"), "name of a split"),
        (("masks/1.jpg", "no_mask/1.jpg"), "masks/1.jpg is in a folder called as those of masks"),
    ],
)
def test_what_may_be_read_in_two_ways_is_refused(
    tmp_path: Path, names: tuple[str, ...], message: str
) -> None:
    with pytest.raises(CannotRunError, match=message):
        folders(tmp_path, *names)
    # without the key it is a folder of photographs like any other
    assert folders(tmp_path, labels_from="auto").rows


@pytest.mark.parametrize("joint", [", ", ";"])
def test_a_folder_of_several_classes_is_an_error_row(joint: str, tmp_path: Path) -> None:
    report = folders(tmp_path, "cat/1.jpg", f"cat{joint}dog/2.jpg")
    assert [row["labels"] for row in rows(report).values()] == [[1]]
    [error] = report.errors
    assert "a photograph of several classes needs a CSV" in error.message


def test_one_photograph_in_the_folders_of_two_classes_is_an_error(tmp_path: Path) -> None:
    for name in ("cat/1.jpg", "dog/1.jpg", "cat/2.jpg", "cat/Both.jpg", "cat/old/3.jpg"):
        noise(tmp_path / name)
    (tmp_path / "dog").mkdir(exist_ok=True)
    shutil.copy(tmp_path / "cat/Both.jpg", tmp_path / "dog/both.jpg")
    shutil.copy(tmp_path / "cat/2.jpg", tmp_path / "cat/old/2.jpg")
    report = folders(tmp_path)
    assert labels(report).keys() == {
        *("cat/1.jpg", "dog/1.jpg", "cat/2.jpg", "old/2.jpg", "old/3.jpg")
    }
    assert [error.kind for error in report.errors] == ["label"] * 2
    assert "cat/Both.jpg and dog/both.jpg: one of several classes" in report.errors[0].message
