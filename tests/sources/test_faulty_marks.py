"""Numbers, marks and columns of splits that were taken for classes, and marks that nobody knew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.datasets.parquet import import_parquet
from pmm_ray.sources.importing.import_report import ImportReport

from .faulty import a_folder, rows
from .test_class_folders import folders
from .test_parquet import encoded, write

ABC = ("a.jpg", "b.jpg", "c.jpg")


def of_parquet(root: Path, labels: list[Any], feature: Any = None) -> ImportReport:
    images: list[tuple[bytes | None, str | None]] = [
        (encoded(), f"{number}.jpg") for number in range(len(labels))
    ]
    write(root / "set/train.parquet", images, labels, feature)
    return import_parquet(str(root / "set"), str(root / "out"))


def one_hot(yes: str, no: str, delimiter: str = ";") -> str:
    """The cat is on a and c, the dog on b and c."""
    lines = (("image_id", "cat", "dog"), ("a", yes, no), ("b", no, yes), ("c", yes, yes))
    return "".join(f"{delimiter.join(line)}\n" for line in lines)


@pytest.mark.parametrize(
    ("one", "other"), [("0 1 1", "1 0 0"), ("0110", "1000"), ("0;1", "1;0"), ("01", "10")]
)
@pytest.mark.parametrize("third", ["", "nan", "#REF!"])
def test_a_line_without_labels_hides_no_0_and_1(
    one: str, other: str, third: str, tmp_path: Path
) -> None:
    csv = f"image_id,labels\na,{one}\nb,{other}\nc,{third}\n"
    with pytest.raises(CannotRunError, match="its labels are 0 or 1 for each of"):
        a_folder(tmp_path, csv, *ABC)


@pytest.mark.parametrize("labels", [[["0", "1"], ["1", "0"], []], [["0", "1", "1"], ["1"] * 3]])
def test_lists_of_texts_of_0_and_1_are_refused(labels: list[Any], tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match=r"column 'label': the labels are texts of 0 or 1"):
        of_parquet(tmp_path, labels)


def test_class_numbers_beside_a_line_without_labels_are_numbers(tmp_path: Path) -> None:
    report = a_folder(tmp_path, "image_id,labels\na,10\nb,11\nc,\n", *ABC)
    assert list(report.classes) == ["10", "11"]


@pytest.mark.parametrize(
    ("csv", "column"),
    [
        ("image_id,cat,dog,val\na,1,0,\nb,0,1,\nc,1,1,x\n", "val"),
        ("image_id,cat,dog,test\na,1,0,0\nb,0,1,0\nc,1,1,1\n", "test"),
        ("image_id,cat,dog,train\na,1,0,1\nb,0,1,1\nc,1,1,0\n", "train"),
        ("image_id,cat,dog,Train,Val\na,1,0,1,0\nb,0,1,1,0\nc,1,1,0,1\n", "Train"),
        ("image_id,car,bus,Train,Val\na,1,0,1,0\nb,0,1,1,0\nc,1,1,0,1\n", "Val"),
        ("image_id,cat,dog,isValid\na,1,0,0\nb,0,1,0\nc,1,1,1\n", "isValid"),
        ("image_id,cat,dog,holdout\na,1,0,0\nb,0,1,0\nc,1,1,1\n", "holdout"),
    ],
)
def test_a_column_called_as_a_split_is_no_class(csv: str, column: str, tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match=f"the column '{column}' is called as no class is"):
        a_folder(tmp_path, csv, *ABC)


def test_the_class_train_stands_beside_other_vehicles(tmp_path: Path) -> None:
    csv = "image_id,bus,car,train\na,1,0,1\nb,0,1,0\nc,1,1,0\n"
    assert list(a_folder(tmp_path, csv, *ABC).classes) == ["bus", "car", "train"]


@pytest.mark.parametrize("column", ["is_valid", "val", "train"])
def test_a_column_of_held_out_images_beside_the_labels_is_heard(
    column: str, tmp_path: Path
) -> None:
    csv = f"image_id,labels,{column}\na,cat,False\nb,dog,True\nc,dog,False\n"
    with pytest.raises(CannotRunError, match=f"'{column}' is not read: .* write a column split"):
        a_folder(tmp_path, csv, *ABC)
    # other remarks stay what they are
    assert a_folder(tmp_path / "x", csv.replace(column, "blurred"), *ABC).classes


@pytest.mark.parametrize("joint", [" ", "_", "/", "-"])
def test_several_numbers_are_no_one_class(joint: str, tmp_path: Path) -> None:
    words = [word.replace(" ", joint) for word in ("16 0", "7 1 2", "0")]
    csv = "image_id,labels\n" + "".join(f"{n},{w}\n" for n, w in zip("abc", words, strict=True))
    report = a_folder(tmp_path, csv, *ABC)
    assert list(report.classes) == ["0"]
    assert [error.kind for error in report.errors] == ["label"] * 2
    assert "separate the classes of an image by ';'" in report.errors[0].message
    report = of_parquet(tmp_path, words)
    assert list(report.classes) == ["0"]
    assert all("write a list of names" in error.message for error in report.errors)


def test_several_numbers_of_a_list_are_told_how_to_be_separated(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("\n".join(map(str, range(1, 20))))
    report = a_folder(tmp_path, "image_id,labels\na,16 1\nb,16;1\n")
    assert [row["labels"] for row in rows(report).values()] == [[1, 16]]
    assert "'16 1' is several numbers: separate the classes" in report.errors[0].message


def test_names_of_numbers_are_classes_where_they_may_be(tmp_path: Path) -> None:
    days = ["2024-05-01", "2024-05-02"]
    (tmp_path / "classes.txt").write_text("\n".join(days))
    csv = f"image_id,labels\na,{days[0]}\nb,{days[1]}\n"
    assert list(a_folder(tmp_path, csv).classes) == days
    assert list(of_parquet(tmp_path, days, {"names": days}).classes) == days
    ages = a_folder(tmp_path / "ages", "image_id,labels\na,0-2\nb,20-29\n")
    assert list(ages.classes) == ["0-2", "20-29"]
    # a folder's name is of many images, and so are its numbers
    named = ("2024-05-01/1.jpg", "cocoa 70%/2.jpg", "16 0/3.jpg")
    assert len(folders(tmp_path / "folders", *named).classes) == 3


@pytest.mark.parametrize(
    "cell",
    ["dog 0.93", "cat (0.88)", "dog 71%", "dog 93 %", "dog 1.00", "dog_0.93", "dog 1e-05", "0.93"],
)
def test_a_score_behind_a_label_is_an_error(cell: str, tmp_path: Path) -> None:
    report = a_folder(tmp_path, f"image_id,labels\na,dog\nb,{cell}\n")
    assert list(report.classes) == ["dog"]
    assert "ends with a number: write the class alone" in report.errors[0].message
    report = of_parquet(tmp_path, ["dog", cell])
    assert list(report.classes) == ["dog"]
    assert "write the class alone, without a number" in report.errors[0].message


@pytest.mark.parametrize(
    "name", ["boeing 737", "iphone 2.0", "class 1", "dog (2)", "100% wool", "covid-19", "2.0.1"]
)
def test_numbers_in_names_are_no_scores(name: str, tmp_path: Path) -> None:
    assert list(a_folder(tmp_path, f"image_id,labels\na,{name}\nb,zoo\n").classes) == [name, "zoo"]


@pytest.mark.parametrize(
    ("yes", "no"),
    [
        ("WAHR", "FALSCH"),
        ("vrai", "faux"),
        ("VERO", "FALSO"),
        ("Verdadero", "Falso"),
        ("ja", "nein"),
        ("Y", "N"),
        ("✓", ""),
        ("✔️", "✗"),
        ("1,0", "0,0"),
        ("1.000", "0.000"),
        ("1", "-1"),
    ],
)
def test_marks_of_people_and_spreadsheets(yes: str, no: str, tmp_path: Path) -> None:
    report = a_folder(tmp_path, one_hot(yes, no), *ABC)
    assert [row["labels"] for row in rows(report).values()] == [[1], [2], [1, 2]]
    assert not report.errors
    if not yes.startswith("1"):
        with pytest.raises(CannotRunError, match=r"column 'cat' holds only .* name no class"):
            a_folder(tmp_path, one_hot(yes, no), *ABC, label_column="cat")


@pytest.mark.parametrize(
    ("yes", "no", "said"),
    [
        ("present", "absent", r"hold \['absent', 'present'\]: write 1 or 0 in each cell;"),
        ("ano", "ne", r"hold \['ano', 'ne'\]: write 1 or 0 in each cell;"),
        ("0.98", "0.02", r"hold \['0.02', '0.98'\]: .* \(scores and counts are not labels\)"),
        ("0,98", "0,02", "scores and counts are not labels"),
        ("100%", "0%", "scores and counts are not labels"),
        ("3", "2", "scores and counts are not labels"),
        ("✗", "☐", "write 1 or 0 in each cell;"),
    ],
)
def test_other_marks_are_named(yes: str, no: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match=said):
        a_folder(tmp_path, one_hot(yes, no), *ABC)


def test_classes_that_hold_counts_are_not_to_be_taken_out(tmp_path: Path) -> None:
    csv = "image_id,cat,dog\na,2,1\nb,3,0\nc,0,1\n"
    with pytest.raises(CannotRunError, match=r"or write 1 or 0 in each cell .* not \['0', '2'"):
        a_folder(tmp_path, csv, *ABC)


@pytest.mark.parametrize(("one", "other"), [("✓", "x"), ("1", "-1")])
def test_marks_that_may_mean_either_are_errors_of_their_lines(
    one: str, other: str, tmp_path: Path
) -> None:
    csv = one_hot(one, other, ",") + "d,0,0\n"
    report = a_folder(tmp_path, csv, *ABC, "d.jpg")
    assert [row["labels"] for row in rows(report).values()] == [[1, 2], []]
    assert all(f"['{other}'], not 0 or 1, below" in error.message for error in report.errors)


def test_columns_of_words_are_no_marks(tmp_path: Path) -> None:
    csv = "image_id,species,site\na,cat,n\nb,dog,s\nc,dog,n\n"
    with pytest.raises(CannotRunError, match="names another column of labels"):
        a_folder(tmp_path, csv, *ABC)
    assert list(a_folder(tmp_path, csv, *ABC, label_column="species").classes) == ["cat", "dog"]


@pytest.mark.parametrize("labels", [[True, False, None], ["TRUE", "false"], ["ja", "nein"]])
def test_true_and_false_alone_name_no_class(labels: list[Any], tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match=r"train.parquet, column 'label': .* name no class"):
        of_parquet(tmp_path, labels)
    csv = f"image_id,labels\na,{labels[0]}\nb,{labels[1]}\n"
    with pytest.raises(CannotRunError, match="its column 'labels' holds only"):
        a_folder(tmp_path, csv)


def test_lines_of_an_old_macintosh(tmp_path: Path) -> None:
    csv = "image_id,labels\ra,cat;dog;cow;pig\rb,dog;cat\r"
    report = a_folder(tmp_path, csv)
    assert list(report.classes) == ["cat", "cow", "dog", "pig"]


def test_several_objects_of_one_class_are_one_label(tmp_path: Path) -> None:
    report = of_parquet(tmp_path, [["cat", "cat"], ["dog"], ["dog", "cat", "dog"]])
    assert [row["labels"] for row in rows(report).values()] == [[1], [2], [1, 2]]
    assert not report.errors
