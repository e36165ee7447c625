"""Tables of labels and lists of classes that could be misread: read right, or refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.importing.understood import console, near_names
from pmm_ray.sources.labels.label_files import read_label_space

from .faulty import a_folder, rows


@pytest.mark.parametrize(
    ("csv", "said"),
    [
        ("filename,cat,dog,cat\na,1,0,0\nb,0,1,1\n", "names 'cat' twice"),
        ("filename,width,cat\na,640,1\nb,480,0\n", r"\['width'\] do not: take these out"),
        ("filename,cat,note\na,1,p\nb,0,q\n", r"\['note'\] do not"),
        ("image_id,labels\na,0110\nb,1000\n", "0 or 1 for each of 4 classes"),
        ("image_id,labels\na,0 1 1\nb,1 0 0\n", "0 or 1 for each of 3 classes"),
        ('image_id,labels\na,"[0, 1, 1]"\nb,"[1, 0, 0]"\n', "0 or 1 for each of 3 classes"),
        ('image_id,labels\na,"1,1"\nb,"1,0"\n', "0 or 1 for each of 2 classes"),
        ('image_id,labels\na,"dog\nb,cat\n', "begins a cell and never ends"),
        ('image_id,labels\na,"x"y\nb,"cat\n', "line 3: a quote .* never ends"),
        ('image_id,labels\n\na,"a"b,"dog\nb,cat\n', "lines 3 to 4 one row: put"),
        (
            'image_id,labels,note\na,dog,"nice\nb,cat,"good\n',
            "line 2: a quote .* has text behind it, which makes lines 2 to 3 one row: put",
        ),
        ("version https://git-lfs.github.com/spec/v1\noid x\n", "git lfs pull"),
    ],
)
def test_tables_that_say_two_things_are_refused(csv: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match=said):
        a_folder(tmp_path, csv)


@pytest.mark.parametrize(
    "csv",
    [
        "Unnamed: 0,filename,cat,dog\n0,a,0,1\n1,b,1,0\n",
        ",filename,cat,dog\n0,a,0,1\n1,b,1,0\n",
        "sep=|\nimage_id|labels\na|dog\nb|cat\n",
        "sep=,\rimage_id,labels\ra,dog\rb,cat\r",
        'image_id,labels,size\na,dog,12" screen\nb,cat,\n',
        'image_id,labels,size\na,dog,"The" dog\nb,cat,"two\nlines"\n',
    ],
)
def test_tables_that_say_one_thing_are_read(csv: str, tmp_path: Path) -> None:
    report = a_folder(tmp_path, csv)
    assert report.classes == {"cat": {"train": 1}, "dog": {"train": 1}}
    assert not report.errors


def test_classes_called_10_and_11_are_names(tmp_path: Path) -> None:
    report = a_folder(tmp_path, "image_id,labels\na,10\nb,11\n")
    assert list(report.classes) == ["10", "11"]


def test_a_fault_of_a_table_says_how_to_mend_it(tmp_path: Path) -> None:
    report = a_folder(tmp_path / "long", "image_id,labels\na,dog\na,cat\nb,cat\n")
    assert "belong into one line, separated by ';'" in report.errors[0].message
    report = a_folder(tmp_path / "wide", "image_id;labels;split\na;dog;cat;train\nb;cat;train\n")
    assert "in quotes where that separates the columns" in report.errors[0].message
    report = a_folder(tmp_path / "marks", "filename,cat,dog\na,1,0\nb,7,1\n")
    assert "holds ['7'], not 0 or 1, below 'cat'" in report.errors[0].message


def test_a_table_with_no_line_is_said(tmp_path: Path) -> None:
    assert (
        "labels.csv has no line but the first" in a_folder(tmp_path, "image_id,labels\n").notes[0]
    )


def test_joined_names_are_asked_about_where_no_class_has_a_part_of_its_own() -> None:
    assert len(near_names(["cat/dog", "dog/cat"])) == 2
    assert near_names(["baseball bat", "baseball glove", "cat/dog"]) == []


@pytest.mark.parametrize(
    "text",
    [
        "0 background\n1 cat\n2 dog\n",
        "0: _background_\n1: cat\n2: dog\n",
        "1\tcat\n2\tdog\n",
        "1. cat\n2. dog\n",
        "cat,1\ndog,2\n",
        "background=0\ncat=1\ndog=2\n",
    ],
)
def test_numbered_lists_of_classes(text: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(text)
    space = read_label_space(str(tmp_path / "classes.txt"))
    assert (space.names, space.dataset_ids) == (("background", "cat", "dog"), (0, 1, 2))


@pytest.mark.parametrize("text", ["part 1\npart 2\n", "boeing 737\nairbus 320\n"])
def test_names_with_numbers_in_them_are_names(text: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(text)
    space = read_label_space(str(tmp_path / "classes.txt"))
    assert space.names == ("background", *text.splitlines())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 cat\n1 dog\n", "the id 0 is 'cat': it must be the background"),
        ("cat, dog\n", "write a name a line"),
        ("_background_\n__ignore__\ncat\n", "'__ignore__' is no class"),
        ("0: background\n1: cat\n1: dog\n", "an id stands there twice"),
        ("background:0,0,0::\ncat\n", "'cat' is no line of a label map"),
        ('"cat"\n"dog"\n', "is no name alone"),
        ("cat,\ndog,\n", "is no name alone"),
        ("item {\n  id: 1\n}\n", "is no name alone"),
        ("void\ncat\n", "'void' is no class"),
        ("name\ncat\n", "'name' is no class"),
        ("0\ncat\ndog\n", "'0' is no class"),
        ("none\ncat\n", "'none' is no class"),
        ("// mine\ncat\n", "no name alone"),
        ("Unlabeled\ncat\n", "'Unlabeled' is no class"),
        ("1 cat\n3 dog\n", r"are \[1, 3\] ids, or parts of the names\? Write a .csv"),
        ("7 up\n8 ball\n", "parts of the names"),
        ("2 dog\n1 cat\n", "parts of the names"),
        ("cat,1\ndog,4\n", "parts of the names"),
        ("cat\t3\ndog\t4\n", "parts of the names"),
    ],
)
def test_lists_of_classes_that_would_be_one_off(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(CannotRunError, match=said):
        read_label_space(str(tmp_path / "classes.txt"))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("2 dog\n1 cat\n0 background\n", {"cat": 1, "dog": 2}),
        ("0: background\n1: cat\n3: dog\n", {"cat": 1, "dog": 3}),
    ],
)
def test_numbers_with_that_of_the_background_are_mask_values_in_any_order(
    text: str, ids: dict[str, int], tmp_path: Path
) -> None:
    (tmp_path / "classes.txt").write_text(text)
    space = read_label_space(str(tmp_path / "classes.txt"))
    assert dict(zip(space.names[1:], space.dataset_ids[1:], strict=True)) == ids


def test_labels_that_are_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    csv = "image_id,labels\na,10\nb,2;1\n"
    assert a_folder(tmp_path, csv).manifest.label_space.names[1:] == ("1", "2", "10")


@pytest.mark.parametrize(
    ("csv", "said"),
    [
        ("image_id,label,class\na,cat,1\n", r"'label' and 'class' .* line 2, 'cat' and '1'"),
        ("image_id,file_name,labels\n1,a.jpg,cat\n", "'image_id' and 'file_name' mean one thing"),
        ("image_id,labels,split,subset\na,cat,train,val\n", "'split' and 'subset' mean one thing"),
    ],
)
def test_two_columns_of_one_meaning_that_differ_are_refused(
    csv: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(CannotRunError, match=said):
        a_folder(tmp_path, csv)


def test_two_columns_of_one_meaning_that_agree_are_read(tmp_path: Path) -> None:
    report = a_folder(tmp_path, "image_id,label,class\na,cat,cat\nb,dog,dog\n")
    assert report.manifest.label_space.names[1:] == ("cat", "dog")


def test_the_column_of_labels_can_be_said(tmp_path: Path) -> None:
    csv = "image_id,label,What it is\na,1,cat\nb,2,dog\n"
    report = a_folder(tmp_path, csv, label_column="what it is")
    assert report.manifest.label_space.names[1:] == ("cat", "dog")
    with pytest.raises(CannotRunError, match="no column 'kind': it has"):
        a_folder(tmp_path, csv, label_column="kind")


@pytest.mark.parametrize(
    "first", ["Image ID,Label", "ImageID,CLASSES", "File-Name,class", "filename,label"]
)
def test_columns_are_found_as_people_write_them(first: str, tmp_path: Path) -> None:
    report = a_folder(tmp_path, f"{first}\na.jpg,cat\nb.jpg,dog\n")
    assert [row["labels"] for row in rows(report).values()] == [[1], [2]]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("names: [no, cat]", "the name False is no text"),
        ("names: [1.10, cat]", "the name 1.1 is no text"),
        ("names: [null, cat]", "the name None is no text"),
        ("names: [[cat], [dog]]", r"the name \['cat'\] is no text"),
        ("nc: 3\nnames: [cat, dog]", "`nc` is 3, and there are 2"),
        ("names: {0: cat, 0: dog}", "line 1: '0' is there already"),
        ("names: {1: cat}", r"has the ids \[1\], not 0, 1"),
    ],
)
def test_yaml_that_means_something_else_than_it_looks_like(
    text: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(CannotRunError, match=said):
        read_label_space(str(tmp_path / "data.yaml"))


def test_the_columns_of_marks_are_the_classes_in_their_order(tmp_path: Path) -> None:
    csv = "filename,dog,ant,cat\na.jpg,0,0,1\nb.jpg,1,0,0\nc.jpg,1,-1,0\n"
    report = a_folder(tmp_path, csv, "a.jpg", "b.jpg", "c.jpg")
    assert report.manifest.label_space.names[1:] == ("dog", "ant", "cat")
    assert {i: row["labels"] for i, row in rows(report).items()} == {"a": [3], "b": [1]}
    assert "classes without an image: ant" in console(report)


def test_two_files_of_labels_are_refused(tmp_path: Path) -> None:
    (tmp_path / "_classes.csv").write_text("filename,cat\na.jpg,1\n")
    with pytest.raises(CannotRunError, match="both hold labels: keep one of them"):
        a_folder(tmp_path, "image_id,labels\na,dog\n")
