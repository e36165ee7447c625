"""Cells and columns that were taken for classes, dropped, or not heard."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.sources.datasets.parquet import import_parquet
from pmm_ray.sources.importing.understood import console

from .faulty import a_folder, noise, rows
from .test_parquet import encoded
from .test_parquet import write as write_parquet


@pytest.mark.parametrize(
    "cell",
    ["NA", r"\N", "?", ".", "--", "—", "(null)", "(blank)", "NaT", "\u200b", "n/a", "None"],
)
def test_empty_cells_of_any_program_are_no_class(cell: str, tmp_path: Path) -> None:
    report = a_folder(tmp_path, f"image_id,labels\na,{cell}\nb,cat\n")
    assert list(report.classes) == ["cat"]
    assert not report.errors
    assert rows(report)["a"]["labels"] == []


def test_a_class_called_like_an_empty_cell_is_one_where_a_list_names_it(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\nNA\n")
    report = a_folder(tmp_path, "image_id,labels\na,NA\nb,cat;NA\n")
    assert [row["labels"] for row in rows(report).values()] == [[2], [1, 2]]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        ("#REF!", "an error of the spreadsheet"),
        ("#n/a", "an error of the spreadsheet"),
        ("'dog'", "in quotes: leave them out"),
        ("cat;nan", "how an empty cell is written"),
        ("#NV", "an error of the spreadsheet"),
        ("#N/D", "an error of the spreadsheet"),
        ("#BEZUG!", "an error of the spreadsheet"),
        ("#ERROR!", "an error of the spreadsheet"),
        ("########", "an error of the spreadsheet"),
        ("Err:502", "an error of the spreadsheet"),
        ("Loading...", "an error of the spreadsheet"),
        ("dog，cat", "separate the classes"),
        ("dog、cat", "separate the classes"),
        ("dog；cat", "separate the classes"),
        ("dog｜cat", "separate the classes"),
        ("dog، cat", "separate the classes"),
        ("dog • cat", "separate the classes"),
        (r"dog\cat", "separate the classes"),
        ("dog\u3000cat", "separate the classes"),
        ("dog:0.9", "ends with a number"),
        ("dog=2", "ends with a number"),
        ("“dog”", "in quotes"),
        ("«dog»", "in quotes"),
        ("„dog“", "in quotes"),
    ],
)
def test_cells_that_name_no_class_are_error_rows(cell: str, said: str, tmp_path: Path) -> None:
    report = a_folder(tmp_path, f"image_id,labels\na,{cell}\nb,cat\n")
    assert list(report.classes) == ["cat"]
    [error] = report.errors
    assert (error.image_id, error.kind) == ("a", "label")
    assert said in error.message


def test_parquet_knows_the_same_empty_cells_and_separators(tmp_path: Path) -> None:
    labels = ["cat", "nan", "None", "<NA>", "dog；cat"]
    images = [(encoded(), f"{i}.jpg") for i in range(len(labels))]
    write_parquet(tmp_path / "train.parquet", images, labels, None, "labels")
    report = import_parquet(str(tmp_path), str(tmp_path / "out"))
    assert list(report.classes) == ["cat"]
    assert [row["labels"] for row in rows(report).values()] == [[1], [], [], []]
    [error] = report.errors
    assert "dog；cat" in error.message


@pytest.mark.parametrize(
    "csv",
    [
        "image_id,labels,,\na,cat,dog,bird\nb,dog,,\n",
        "image_id,labels,Unnamed: 2\na,cat,dog\nb,dog,\n",
        "filename,cat,dog\na,1,0,1\nb,0,1\n",
    ],
)
def test_what_stands_below_no_name_is_not_dropped(csv: str, tmp_path: Path) -> None:
    report = a_folder(tmp_path, csv)
    assert list(rows(report)) == ["b"]
    [error] = report.errors
    assert "below no name of a column" in error.message
    assert "'dog'" in error.message or "'1'" in error.message


@pytest.mark.parametrize(
    ("csv", "said"),
    [
        ("image_id,labels,labels.1\na,cat,dog\nb,dog,\n", "both hold labels"),
        ("image_id,label 1,label 2\na,cat,dog\nb,dog,\n", "label"),
        ("image_id,label,label_2\na,cat,dog\nb,dog,\n", "both hold labels"),
        ("image_id,label,Confidence\na,cat,1\nb,cat,0\n", "their label is absent"),
        ("image_id,label,present\na,cat,yes\nb,cat,no\n", "their label is absent"),
        ("filename,cat,dog,is_valid\na,1,0,0\nb,0,1,1\n", "'is_valid' is called as no class"),
        ("filename,cat,dog,fold\na,1,0,2\nb,0,1,3\n", r"\['fold'\] do not"),
    ],
)
def test_columns_that_say_more_of_the_labels_are_refused(
    csv: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(CannotRunError, match=said):
        a_folder(tmp_path, csv)


@pytest.mark.parametrize("column", ["set", "partition", "phase", "usage"])
def test_a_column_of_splits_is_one_whatever_it_is_called(column: str, tmp_path: Path) -> None:
    report = a_folder(tmp_path, f"image_id,labels,{column}\na,cat,train\nb,dog,val\n")
    assert report.manifest.splits == {"train": 1, "val": 1}
    report = a_folder(tmp_path / "marks", f"filename,cat,dog,{column}\na,1,0,train\nb,0,1,val\n")
    assert report.manifest.splits == {"train": 1, "val": 1}


def test_two_columns_of_splits_that_differ_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match="mean one thing and differ"):
        a_folder(tmp_path, "image_id,labels,set,phase\na,cat,train,val\nb,dog,val,val\n")


def test_columns_that_nobody_reads_are_named(tmp_path: Path) -> None:
    report = a_folder(tmp_path, "image_id,labels,fold,Source\na,cat,0,x\nb,dog,1,y\n")
    assert "columns of the CSV that are not read: fold, Source" in console(report)


def test_folders_of_splits_are_heard(tmp_path: Path) -> None:
    for name in ("train/a.jpg", "val/b.jpg", "val/c.jpg"):
        noise(tmp_path / "images" / name)
    (tmp_path / "labels.csv").write_text("image_id,labels\na,cat\nb,dog\n")
    report = import_folder(str(tmp_path), str(tmp_path / "out"))
    assert report.manifest.splits == {"train": 1, "val": 2}
    (tmp_path / "labels.csv").write_text("image_id,labels,split\na,cat,val\nb,dog,validation\n")
    report = import_folder(str(tmp_path), str(tmp_path / "out"))
    [error] = report.errors
    assert "the CSV says split 'val', its folder 'train'" in error.message
    assert report.manifest.splits == {"validation": 1, "val": 1}


def test_one_folder_called_like_a_split_tells_nothing(tmp_path: Path) -> None:
    noise(tmp_path / "images/test/a.jpg")
    (tmp_path / "labels.csv").write_text("image_id,labels\na,cat\n")
    report = import_folder(str(tmp_path), str(tmp_path / "out"))
    assert report.manifest.splits == {"train": 1}


def test_separators_within_quotes_do_not_count(tmp_path: Path) -> None:
    report = a_folder(tmp_path, '"image_id";"labels";"size, px, so, so"\na;cat;1\nb;dog;2\n')
    assert list(report.classes) == ["cat", "dog"]


def test_a_spreadsheet_called_csv_is_named(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match="save the table as CSV"):
        a_folder(tmp_path, b"PK\x03\x04" + bytes(40))


def test_tags_of_which_none_stands_alone_are_asked_about(tmp_path: Path) -> None:
    csv = "image_id,labels\na,cat dog\nb,dog bird\nc,bird cat\n"
    report = a_folder(tmp_path, csv, "a.jpg", "b.jpg", "c.jpg")
    assert console(report).count("several classes?") == 3
    csv = "image_id,labels\na,traffic light\nb,traffic sign\nc,red light\n"
    assert "several classes?" not in console(a_folder(tmp_path / "one", csv, "a.jpg", "b.jpg"))


def test_a_root_that_is_not_there_or_no_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match="photoz does not exist"):
        import_folder(str(tmp_path / "photoz"), str(tmp_path / "out"))
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(CannotRunError, match="is no folder: unpack it"):
        import_folder(str(tmp_path / "photos.zip"), str(tmp_path / "out"))


@pytest.mark.parametrize("name", ["val_df", "holdout", "eval", "animals_val"])
def test_a_parquet_file_beside_a_split_is_called_as_one(name: str, tmp_path: Path) -> None:
    write_parquet(tmp_path / "train.parquet", [(encoded(), "a.jpg")], ["cat"])
    write_parquet(tmp_path / f"{name}.parquet", [(encoded(), "b.jpg")], ["dog"])
    with pytest.raises(CannotRunError, match=rf"{name}.parquet is not called as a split is"):
        import_parquet(str(tmp_path), str(tmp_path / "out"))
