"""Inputs of real people that were misread, lost or refused; each test is one of them or its kin.

Those that need a stage on Ray are in tests/test_faulty_inputs.py.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pmm_ray.config import DataConfig
from pmm_ray.labels import is_background
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.sources.cam_files import CamReader, find_cams
from pmm_ray.sources.coco import import_coco
from pmm_ray.sources.coco14 import import_coco14
from pmm_ray.sources.folder import import_folder
from pmm_ray.sources.importing import ImportReport
from pmm_ray.sources.label_files import read_label_space
from pmm_ray.sources.mask_files import find_masks, match_masks
from pmm_ray.sources.parquet import import_parquet
from pmm_ray.sources.raster import draw_objects
from pmm_ray.sources.understood import console, unused_splits
from pmm_ray.stages.import_data import import_source

from .coco_tree import HEIGHT, OFFICIAL, WIDTH, annotation, box, entry, photo
from .coco_tree import write as write_coco
from .test_parquet import encoded
from .test_parquet import write as write_parquet

KINDS = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def rows(report: ImportReport) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row for row in tables.read_table(report.manifest.uri).to_pylist()}


def noise(path: Path, size: tuple[int, int] = (64, 48), kind: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(len(path.name))
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    image.save(path, kind)


def a_folder(root: Path, csv: str | bytes, *names: str) -> ImportReport:
    for name in names or ("a.jpg", "b.jpg"):
        noise(root / "images" / name)
    data = csv if isinstance(csv, bytes) else csv.encode()
    (root / "labels.csv").write_bytes(data)
    return import_folder(str(root), str(root / "out"))


def a_coco(root: Path, *, file_names: tuple[str, ...] = ("a.jpg",), **changes: Any) -> Path:
    """One image of id 1, a cat in its corner."""
    content: dict[str, Any] = {
        "images": [entry(n, name) for n, name in enumerate(file_names, 1)],
        "annotations": [annotation(1, 1, [box(1, 1, 5, 5)])],
        "categories": KINDS,
    }
    path = root / "set.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | changes), encoding="utf-8")
    return path


# 2: an option of one source is an option of all


@pytest.mark.parametrize("truth", ["all", "held_out", "none"])
@pytest.mark.parametrize("source", ["coco", "coco14"])
def test_truth_of_every_source_may_be_left_out(source: str, truth: Any, tmp_path: Path) -> None:
    if source == "coco":
        photo(tmp_path / "a.jpg")
        root = a_coco(tmp_path)
    else:
        root = tmp_path
        name = "COCO_train2014_000000000001.jpg"
        photo(tmp_path / "train2014" / name)
        file = tmp_path / "annotations/instances_train2014.json"
        write_coco(file, [entry(1, name)], [annotation(1, 1, [box(1, 1, 5, 5)])], OFFICIAL)
    data = DataConfig(source=source, root=str(root), ground_truth=truth)  # type: ignore[arg-type]
    report = import_source(data, str(tmp_path / "out"), 0)
    assert report.rows == 1
    assert report.manifest.ground_truth == ({"train": 1} if truth == "all" else {})
    drawn = "pmm.objects" in tables.table_metadata(report.manifest.uri)
    assert drawn is (truth == "all" or (truth == "held_out" and source == "coco"))


# 3: lists of labels


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", [int, bool, float])
def test_multi_hot_labels_are_read_as_such_and_said(
    named: bool, kind: type, tmp_path: Path
) -> None:
    feature = {"feature": {"names": ["u", "v", "w", "x"]}} if named else None
    hot = [[kind(v) for v in values] for values in ([0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0])]
    images = [(encoded(), f"{i}.jpg") for i in range(3)]
    write_parquet(tmp_path / "train.parquet", images, hot, feature, "labels")
    report = import_parquet(str(tmp_path), str(tmp_path / "out"))
    assert [row["labels"] for row in rows(report).values()] == [[2, 4], [1], []]
    assert "0 or 1 for each class" in console(report)


def test_lists_that_are_neither_numbers_nor_multi_hot_are_label_errors(tmp_path: Path) -> None:
    images = [(encoded(), f"{i}.jpg") for i in range(3)]
    feature = {"feature": {"names": ["u", "v", "w", "x"]}}
    values = [[0, 1, 0], [0, 3], [1, 1]]
    write_parquet(tmp_path / "train.parquet", images, values, feature, "labels")
    report = import_parquet(str(tmp_path), str(tmp_path / "out"))
    assert {i: row["labels"] for i, row in rows(report).items()} == {"1": [1, 4]}
    assert [(e.kind, "repeats a class" in e.message) for e in report.errors] == [
        ("label", True)
    ] * 2


# 4: ids that one list holds as numbers and another as text


@pytest.mark.parametrize("ids", [("1", 1), (1, "1"), ("one", "one"), (1.0, 1), (" 1", "01")])
def test_ids_join_whatever_their_type(ids: tuple[Any, Any], tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    path = a_coco(
        tmp_path,
        images=[entry(1, "a.jpg") | {"id": ids[0]}],
        annotations=[
            annotation(1, 1, [box(1, 1, 5, 5)]) | {"image_id": ids[1], "category_id": "2"},
            annotation(77, 1, []),
        ],
    )
    report = import_coco(str(path), str(tmp_path / "out"))
    assert rows(report)["a"]["labels"] == [2]
    assert report.counts["annotations of images that are not listed"] == 1


def test_an_image_id_that_stands_twice_labels_neither(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        photo(tmp_path / name)
    images = [entry(1, "a.jpg"), entry(1, "b.jpg"), entry(2, "c.jpg")]
    report = import_coco(str(a_coco(tmp_path, images=images)), str(tmp_path / "out"))
    assert [(e.image_id, e.kind) for e in report.errors] == [("a", "label"), ("b", "label")]


# 5: truth that is known to be incomplete


def test_boxes_are_no_background(tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        photo(tmp_path / name)
    boxed = annotation(1, 1, []) | {"bbox": [10.0, 2.0, 4.0, 3.0]}
    outlined = annotation(1, 2, [box(1, 1, 5, 5)])
    path = a_coco(
        tmp_path,
        images=[entry(n, f"{c}.jpg") for n, c in enumerate("abc", 1)],
        annotations=[boxed, outlined, boxed | {"image_id": 2}, annotation(3, 1, [])],
    )
    report = import_coco(str(path), str(tmp_path / "out"))
    found = rows(report)
    assert [row["labels"] for row in found.values()] == [[1, 2], [1], [1]]
    assert [bool(row["ground_truth_uri"]) for row in found.values()] == [True, False, False]
    assert "boxes only: 3" in console(report)
    space = report.manifest.label_space
    item = {"label": 1, "crowd": False, "polygons": [], "counts": None, "rle": None}
    mask = draw_objects([item | {"box": boxed["bbox"]}], HEIGHT, WIDTH, space)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[2:5, 10:14] = 255
    np.testing.assert_array_equal(mask, expected)


def test_run_lengths_of_another_size_are_a_label_error(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    turned = {"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}
    path = a_coco(tmp_path, annotations=[annotation(1, 1, turned)])
    with pytest.raises(CannotRunError, match=r"run lengths for \[30, 20\]"):
        import_coco(str(path), str(tmp_path / "out"))


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


# 11: categories that are no classes


@pytest.mark.parametrize("root", ["cat", "animals"])
def test_a_root_category_that_nothing_has_is_dropped(root: str, tmp_path: Path) -> None:
    photo(tmp_path / "train/a.jpg")
    categories = [
        {"id": 0, "name": root, "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": root},
    ]
    images, annotations = [entry(0, "a.jpg")], [annotation(0, 1, [box(1, 1, 5, 5)])]
    write_coco(tmp_path / "train/_annotations.coco.json", images, annotations, categories)
    report = import_coco(str(tmp_path), str(tmp_path / "out"))
    assert report.manifest.label_space.names == ("background", "cat")
    assert rows(report)["a"]["labels"] == [1]
    assert f"category '{root}' (0) is dropped" in console(report)


def test_two_categories_of_one_name_are_a_sentence_with_the_file(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    both = [annotation(1, n, [box(1, 1, 5, 5)]) for n in (1, 2)]
    kinds = [{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]
    path = a_coco(tmp_path, annotations=both, categories=kinds)
    with pytest.raises(CannotRunError, match=r"set\.json: the categories 1 and 2"):
        import_coco(str(path), str(tmp_path / "out"))


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


# 16, 17: files of other programs and systems


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_and_no_numbers(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(tmp_path / "a.jpg")
    more = {"area": float("nan"), "score": float("-inf"), "note": "Infinity, NaN"}
    annotations = [annotation(1, 1, [box(1, 1, 5, 5)]) | more for _ in range(50)]
    path = a_coco(tmp_path, annotations=annotations)
    path.write_bytes(path.read_text().encode(encoding))
    for buffer in (1 << 20, 7, 64):
        monkeypatch.setattr("pmm_ray.sources.coco_json._BUFFER_BYTES", buffer)
        report = import_coco(str(path), str(tmp_path / "out"))
        assert rows(report)["a"]["labels"] == [1]
        assert report.counts["annotations"] == 50


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b'{"images": [', "cut off"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'{"images": [{"id": 1,}]}', "not valid JSON"),
        (b"PK\x03\x04", "JSON"),
    ],
)
def test_what_is_wrong_with_a_json_file_is_not_guessed(
    content: bytes, reason: str, tmp_path: Path
) -> None:
    (tmp_path / "set.json").write_bytes(content)
    with pytest.raises(CannotRunError, match=reason):
        import_coco(str(tmp_path / "set.json"), str(tmp_path / "out"))


def test_one_bad_entry_is_one_error_row(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "b.jpg")
    unsized = {"id": 2, "file_name": "b.jpg"}
    path = a_coco(tmp_path, images=[entry(1, "a.jpg"), unsized, {"id": 3}, None])
    report = import_coco(str(path), str(tmp_path / "out"))
    assert set(rows(report)) == {"a", "b"}
    assert [e.image_id for e in report.errors] == ["entry-2", "entry-3"]


@pytest.mark.parametrize(
    "written",
    [
        "images\\b c.jpg",
        "b%20c.jpg",
        ".\\images\\b c.JPG",
        "C:\\Users\\me\\set\\images\\b c.jpg",
        "/home/me/set/b c.jpg",
        "../other/b c.jpg",
        "B C.jpg",
        "file/images/b%20c.JPEG",
    ],
)
def test_names_written_on_another_system_are_found_and_said(written: str, tmp_path: Path) -> None:
    photo(tmp_path / "images/b c.jpg")
    photo(tmp_path / "images/other.jpg")
    if written.endswith("JPEG"):
        photo(tmp_path / "images/b c.jpeg")
        (tmp_path / "images/b c.jpg").unlink()
    report = import_coco(str(a_coco(tmp_path, file_names=(written,))), str(tmp_path / "out"))
    assert report.rows == 1
    assert "photographs found" in console(report)


def test_a_name_that_may_be_two_files_is_an_error(tmp_path: Path) -> None:
    for name in ("x/a.jpg", "y/a.jpg", "b.jpg"):
        photo(tmp_path / "images" / name)
    path = a_coco(tmp_path, file_names=("/home/me/a.jpg", "b.jpg"))
    report = import_coco(str(path), str(tmp_path / "out"))
    assert [e.kind for e in report.errors] == ["missing"]
    assert "may be any of 2 files" in report.errors[0].message


def test_names_of_a_csv_in_other_spellings(tmp_path: Path) -> None:
    csv = "image_id,labels\nimages\\a.JPG,cat\nsub/b%20c,dog\nIMG_1.jpg,cat\n"
    report = a_folder(tmp_path, csv, "a.jpg", "sub/b c.jpg", "img_1.jpg")
    assert not report.errors
    assert sorted(row["labels"] for row in rows(report).values()) == [[1], [1], [2]]
    assert "names of the CSV found" in console(report)


# 15, 20: dictionaries of other programs


@pytest.mark.parametrize("name", ["attn_highres", "high_res", "cam"])
def test_maps_under_the_names_of_the_field(name: str, tmp_path: Path) -> None:
    cam = np.linspace(0, 1, 24, dtype=np.float16).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", {"keys": np.array([0, 4]), name: cam})
    labels, scores = read_cam(tmp_path)
    assert labels == [1, 5]
    np.testing.assert_array_equal(scores, cam)


def read_cam(folder: Path, height: int = 3, width: int = 4) -> tuple[list[int], Any]:
    found = find_cams(str(folder), str(folder / "listing.parquet"), trust_pickle=True)
    uri, row = found.index.locations()["a"]
    manifest = {"height": height, "width": width, "labels": []}
    source = tables.read_rows(uri, [row])[0]
    return CamReader(20, True, 10_000)({"manifest": manifest, "cams": source})


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_scores_with_a_background_are_no_cams(classes: int, dtype: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    planes = rng.random((classes + 1, 3, 4))
    planes = (planes / planes.sum(0)).astype(dtype)
    np.save(tmp_path / "a.npy", dict(enumerate(planes)))
    with pytest.raises(RowError, match="add up to one") as caught:
        read_cam(tmp_path)
    assert caught.value.kind == "label"


# 18, 19: pairs of masks and truth


def masks_in(folder: Path, *names: str) -> Any:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(folder / f"{name}.png")
    return find_masks(str(folder), str(folder.parent / f"{folder.name}.parquet"))


def matched(tmp_path: Path, masks: Any, truth: Any, wanted: list[str] | None = None) -> Any:
    listings = (str(tmp_path / "m.parquet"), str(tmp_path / "t.parquet"))
    return match_masks(masks, truth, listings, wanted)


def uris(index: Any) -> dict[str, str]:
    places = index.locations()
    return {i: tables.read_rows(uri, [row])[0]["uri"] for i, (uri, row) in places.items()}


def test_masks_are_paired_by_path_and_by_name_only_where_unique(tmp_path: Path) -> None:
    masks = masks_in(tmp_path / "m", "x/a", "y/a", "b", "z/c", "d")
    truth = masks_in(tmp_path / "t", "x/a", "y/a", "deep/b", "c", "p/d", "q/d")
    found = matched(tmp_path, masks, truth)
    m, t = uris(found.masks), uris(found.truth)
    pairs = {
        uri.removeprefix(f"{tmp_path}/m/"): t[image_id].removeprefix(f"{tmp_path}/t/")
        for image_id, uri in m.items()
    }
    assert pairs == {
        "x/a.png": "x/a.png",
        "y/a.png": "y/a.png",
        "b.png": "deep/b.png",
        "z/c.png": "c.png",
    }
    assert found.unsure == {"d": "d fits p/d, q/d: make the paths of both sides alike"}
    assert not found.lacking
    assert found.notes == ("pairs found by the file's name alone: 2",)


@pytest.mark.parametrize(
    "line",
    [
        "my photo 1",
        "my photo 1.jpg",
        "/JPEGImages/my.jpg /SegmentationClass/my.png",
        "my 1 0",
        "MY",
    ],
)
def test_lines_of_a_list(line: str, tmp_path: Path) -> None:
    wanted = "my photo 1" if "photo" in line else "my"
    masks = masks_in(tmp_path / "m", "my photo 1", "my", "other")
    truth = masks_in(tmp_path / "t", "my photo 1", "my", "other")
    found = matched(tmp_path, masks, truth, [line, "nobody"])
    assert [Path(uri).stem for uri in uris(found.masks).values()] == [wanted]
    assert list(found.lacking.values()) == ["the list names 'nobody': neither side has it"]


# 21: a part is useful


def test_coco_of_which_one_split_is_there(tmp_path: Path) -> None:
    name = "COCO_val2014_000000000001.jpg"
    photo(tmp_path / "val2014" / name)
    file = tmp_path / "annotations/instances_val2014.json"
    write_coco(file, [entry(1, name)], [annotation(1, 1, [box(1, 1, 5, 5)])], OFFICIAL)
    report = import_coco14(str(tmp_path), str(tmp_path / "out"))
    assert report.manifest.splits == {"val": 1}
    assert "split train is left out: there is no" in " ".join(console(report).split())
