"""What people have in folders, spreadsheets and lists of classes, misread or lost once.

Each test is a case of faults found with inputs of public bug reports, or its kin.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmm_ray.config import DataConfig, section_hash
from pmm_ray.labels import is_background
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.files import MASKS_MARKER
from pmm_ray.sources.datasets.coco import import_coco
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.sources.importing.understood import console, unused_splits
from pmm_ray.sources.labels.label_files import read_label_space
from pmm_ray.stages.import_data import import_source

from .coco_tree import photo
from .faulty import KINDS, a_coco, a_folder, noise, rows
from .test_parquet import encoded

# 6, 14: cells of a spreadsheet


@pytest.mark.parametrize("cell", ['"dog, cat"', "dog|cat", "\"['dog', 'cat']\"", "dog\\tcat"])
def test_another_separator_is_no_class(cell: str, tmp_path: Path) -> None:
    cell = cell.replace("\\t", "\t")
    report = a_folder(tmp_path, f"image_id,labels\na,dog\nb,{cell}\n")
    assert report.manifest.label_space.names == ("background", "dog")
    assert [(e.image_id, e.kind) for e in report.errors] == [("b", "label")]
    assert "by ';'" in report.errors[0].message


def test_a_class_list_may_name_a_class_with_a_comma(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("tench, Tinca tinca\ndog\n")
    report = a_folder(tmp_path, 'image_id,labels\na,"tench, Tinca tinca"\nb,dog\n')
    assert [row["labels"] for row in rows(report).values()] == [[1], [2]]


def test_classes_with_their_counts_are_printed_and_near_names_asked_for(tmp_path: Path) -> None:
    report = a_folder(tmp_path, "image_id,labels,split\na,dog;cat,train\nb,Dog,val\n")
    text = console(report)
    assert "classes with their images (train + val): Dog 0 + 1, cat 1 + 0, dog 1 + 0" in text
    assert "are these one class? 'Dog', 'dog'" in text


@pytest.mark.parametrize(
    "csv",
    [
        "image_id,labels,split\na,dog,train\nb,cat,val\n" + ",,\n" * 15,
        "image_id;labels;split\na;dog;train\nb;cat;val\n;;\n",
        "image_id,labels,split,,\na,dog,train,,\nb,cat,val,,,,\n , , ,,\n\n",
        "\ufeffimage_id , labels,split\r\na,dog ,train\r\n b.jpg,cat,val\r\n,,\r\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32"])
def test_what_a_spreadsheet_leaves_is_no_data(csv: str, encoding: str, tmp_path: Path) -> None:
    report = a_folder(tmp_path, csv.encode(encoding))
    assert [(r["labels"], r["split"]) for r in rows(report).values()] == [
        ([2], "train"),
        ([1], "val"),
    ]
    assert not report.errors


def test_a_line_without_a_name_is_an_error_row(tmp_path: Path) -> None:
    report = a_folder(tmp_path, "image_id,labels\na,dog\nb,dog\n,cat\n")
    assert [(e.image_id, e.kind) for e in report.errors] == [("line-4", "label")]


# 7: the background's names


@pytest.mark.parametrize(
    "name", ["background", "_background_", "__background__", "BackGround", "BG", "back ground"]
)
def test_every_spelling_of_the_background_is_value_0(name: str, tmp_path: Path) -> None:
    assert is_background(name)
    (tmp_path / "classes.txt").write_text(f"{name}\ncat\ndog\n")
    report = a_folder(tmp_path, "image_id,labels\na,cat\nb,dog\n")
    assert report.manifest.label_space.names == ("background", "cat", "dog")
    assert f"background: {name!r}" in console(report)
    path = a_coco(tmp_path / "coco", categories=[{"id": 0, "name": name}, *KINDS])
    photo(tmp_path / "coco/a.jpg")
    report = import_coco(str(path), str(tmp_path / "out"))
    assert report.manifest.label_space.names == ("background", "cat", "dog")
    assert report.background == name


@pytest.mark.parametrize(
    ("file", "text"),
    [
        (
            "labelmap.txt",
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:9,0,0::\ndog:::\n",
        ),
        ("class_names.txt", "__ignore__\n_background_\ncat\ndog\n"),
        ("_classes.csv", "Pixel Value, Class\n0, background\n1, cat\n2, dog\n"),
        ("data.yaml", "nc: 2\nnames: [cat, dog]\n"),
        ("names.YAML", "names:\n  0: cat\n  1: dog\n"),
    ],
)
def test_class_lists_as_other_programs_export_them(file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).write_text(text)
    space = read_label_space(str(tmp_path / file))
    assert (space.names, space.dataset_ids) == (("background", "cat", "dog"), (0, 1, 2))


@pytest.mark.parametrize(
    ("file", "text", "reason"),
    [
        ("a.txt", "cat\nbackground\n", "the background is 0, name it first"),
        ("a.csv", "id,name\n0,cat\n1,dog\n", "id 0 is 'cat'"),
        ("a.csv", "id,name\n1,cat\n1,dog\n", "id 1 is 'cat' and 'dog'"),
    ],
)
def test_class_lists_that_contradict_a_mask(
    file: str, text: str, reason: str, tmp_path: Path
) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(CannotRunError, match=reason):
        read_label_space(str(tmp_path / file))


# 8: masks of 0 and 255


def test_masks_of_0_and_255_stop_the_import(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    mask = np.zeros((48, 64), np.uint8)
    mask[:9] = 255
    for name in "ab":
        Image.fromarray(mask).save(tmp_path / f"masks/{name}.png")
    with pytest.raises(CannotRunError, match="hold only 0 and 255"):
        a_folder(tmp_path, "image_id,labels\na,cat\nb,cat\n")
    mask[20:30] = 1  # one class somewhere: 255 is void
    Image.fromarray(mask).save(tmp_path / "masks/b.png")
    assert a_folder(tmp_path, "image_id,labels\na,cat\nb,cat\n").rows == 2


# 9, 10: what lies in a folder


def test_every_file_of_a_phone_is_a_row_an_error_or_left_out_by_name(tmp_path: Path) -> None:
    root = tmp_path / "phone"
    noise(root / "a.jpg")
    noise(root / "b.JFIF", kind="JPEG")
    noise(root / "c.gif")
    noise(root / "sub/d.avif")
    (root / "e.HEIC").write_bytes(b"\0\0\0\x1cftypheic" + bytes(40))
    (root / "renamed.jpg").write_bytes(b"\0\0\0\x1cftypmif1" + bytes(40))
    (root / "f.jxl").write_bytes(b"\xff\n" + bytes(40))
    (root / "g.dng").write_bytes(b"II*\0")
    (root / "h.jpg").symlink_to("nowhere.jpg")
    (root / "loop").symlink_to(root)
    (root / "i.jpg").symlink_to("i.jpg")
    (root / "movie.mov").write_bytes(b"x")
    (root / ".DS_Store").write_bytes(b"x")
    (root / "notes").write_text("x")
    report = import_folder(str(root), str(tmp_path / "out"))
    made = {row["uri"].removeprefix(f"{root}/") for row in rows(report).values()}
    assert made == {"a.jpg", "b.JFIF", "c.gif", "sub/d.avif"}
    failed = {Path(e.uri).name: (e.kind, e.message) for e in report.errors}
    assert set(failed) == {"e.HEIC", "renamed.jpg", "f.jxl", "g.dng", "h.jpg", "i.jpg"}
    assert all(failed[n][0] == "decode" for n in ("e.HEIC", "f.jxl", "g.dng"))
    assert failed["h.jpg"] == ("missing", "a link to nothing")
    for name in ("e.HEIC", "renamed.jpg", "f.jxl", "g.dng"):
        assert "convert" in failed[name][1] or "pmm-ray[photos]" in failed[name][1]
    assert report.accounting.found == 13
    assert {k: g.count for k, g in report.accounting.left_out.items()} == {
        "hidden": 1,
        "no ending of a photograph": 2,
    }
    lines = report.accounting.lines("there")
    assert lines[0] == "4 of 13 images"
    assert "movie.mov, notes" in lines[1]


def test_one_name_in_another_encoding_is_one_error_row(tmp_path: Path) -> None:
    noise(tmp_path / "images/a.jpg")
    with open(os.fsencode(tmp_path / "images") + b"/caf\xe9.jpg", "wb") as file:
        file.write(encoded())
    report = import_folder(str(tmp_path), str(tmp_path / "out"))
    assert (report.rows, [e.image_id for e in report.errors]) == (1, [r"caf\xe9"])
    assert tables.read_errors(str(tmp_path / "out/errors"))[0].uri.endswith(r"caf\xe9.jpg")


def test_results_of_ours_are_no_photographs(tmp_path: Path) -> None:
    noise(tmp_path / "a.jpg")
    out = tmp_path / "out"
    noise(out / "masks/a.png")
    report = import_folder(str(tmp_path), str(out))
    assert report.rows == 1
    again = import_folder(str(tmp_path), str(tmp_path / "other"))
    assert again.rows == 1
    assert "results of an earlier command" in again.accounting.left_out


def test_photographs_beside_results_of_ours_stay_photographs(tmp_path: Path) -> None:
    for name in ("a.jpg", "day1/b.jpg", "day1/trip/c.jpg", "day1/make_cams-0a1b2c3d/d.jpg"):
        noise(tmp_path / name)
    report = import_folder(str(tmp_path / "day1"), str(tmp_path / "day1"))
    assert report.rows == 3
    # as `pmm predict` leaves it that was stopped
    record = {"stages": [{"stage": "make_cams", "folder": "make_cams-0a1b2c3d"}]}
    (tmp_path / "day1/run.json").write_text(json.dumps(record))
    for out in ("day1", "out"):
        report = import_folder(str(tmp_path), str(tmp_path / out))
        assert {Path(row["uri"]).name for row in rows(report).values()} == {
            *("a.jpg", "b.jpg", "c.jpg")
        }
        assert report.accounting.left_out["results of an earlier command"].count == 4
        assert report.accounting.found == 7


@pytest.mark.parametrize("photographs", ["", "images/"])
def test_masks_that_a_command_made_beside_the_photographs_are_no_truth(
    tmp_path: Path, photographs: str
) -> None:
    noise(tmp_path / f"{photographs}a.jpg")
    (tmp_path / "masks").mkdir()
    Image.new("L", (64, 48), 1).save(tmp_path / "masks/a.png")
    (tmp_path / "masks" / MASKS_MARKER).write_text(section_hash("predict_masks", 1))
    report = import_folder(str(tmp_path), str(tmp_path / "out"))
    assert rows(report)["a"]["ground_truth_uri"] is None
    assert "is not read as ground truth: delete" in " ".join(report.notes)
    (tmp_path / "masks" / MASKS_MARKER).unlink()
    report = import_folder(str(tmp_path), str(tmp_path / "out"))
    assert rows(report)["a"]["ground_truth_uri"] == str(tmp_path / "masks/a.png")


def test_other_programs_may_have_files_of_our_names(tmp_path: Path) -> None:
    noise(tmp_path / "trip/a.jpg")
    (tmp_path / "trip/summary.json").write_text('{"photos": 1}')
    (tmp_path / "trip/run.json").write_text("[" * 100_000)
    (tmp_path / "trip/.stage").write_text("live")
    (tmp_path / "trip/manifest.parquet").write_bytes(b"PAR1")
    report = import_folder(str(tmp_path), str(tmp_path / "out"))
    assert report.rows == 1
    assert "results of an earlier command" not in report.accounting.left_out


# 13: splits that no stage uses


def test_a_split_that_no_stage_uses_is_said(tmp_path: Path) -> None:
    a_folder(tmp_path, "image_id,labels,split\na,dog,train\nb,cat,validation\n")
    report = import_source(DataConfig(source="folder", root=str(tmp_path)), str(tmp_path / "o"), 0)
    text = " ".join(console(report).split())
    assert "1 image of split validation is in neither train nor val" in text
    assert "set data.held_out_split=validation" in text


def test_what_may_have_been_meant_is_only_said_where_something_is_missing() -> None:
    lines = unused_splits({"train": 2, "val": 1, "test": 3}, ("train", "val"))
    assert lines == ["3 images of split test are in neither train nor val"]
