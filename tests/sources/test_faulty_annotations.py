"""COCO-style JSON and label columns of other programs, misread or refused once.

Each test is a case of faults found with inputs of public bug reports, or its kin.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmm_ray.commands.check_data import source_of
from pmm_ray.config import DataConfig
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.datasets.coco import import_coco
from pmm_ray.sources.datasets.coco14 import import_coco14
from pmm_ray.sources.datasets.coco_json import read_annotations
from pmm_ray.sources.datasets.coco_objects import parse_object
from pmm_ray.sources.datasets.parquet import import_parquet
from pmm_ray.sources.datasets.raster import draw_objects
from pmm_ray.sources.importing.understood import console
from pmm_ray.stages.import_data import import_source

from .coco_tree import HEIGHT, OFFICIAL, WIDTH, annotation, box, entry, photo
from .coco_tree import write as write_coco
from .faulty import a_coco, a_folder, rows
from .test_parquet import encoded
from .test_parquet import write as write_parquet

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
    mask = draw_objects([parse_object(boxed, 1)], HEIGHT, WIDTH, space)
    expected = np.zeros((HEIGHT, WIDTH), np.uint8)
    expected[2:5, 10:14] = 255
    np.testing.assert_array_equal(mask, expected)


def test_run_lengths_of_another_size_are_a_label_error(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    turned = {"size": [WIDTH, HEIGHT], "counts": [WIDTH * HEIGHT]}
    path = a_coco(tmp_path, annotations=[annotation(1, 1, turned)])
    with pytest.raises(CannotRunError, match=r"run lengths for \[30, 20\]"):
        import_coco(str(path), str(tmp_path / "out"))


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


# 16, 17: files of other programs and systems


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_byte_order_marks_and_no_numbers(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo(tmp_path / "a.jpg")
    more = {"area": float("nan"), "score": float("-inf"), "note": 'a\\\\", [NaN, -Infinity]\\\\'}
    annotations = [annotation(1, 1, [box(1, 1, 5, 5)]) | more for _ in range(50)]
    path = a_coco(tmp_path, annotations=annotations)
    path.write_bytes(path.read_text().encode(encoding))
    for buffer in (1 << 20, 7, 64):
        monkeypatch.setattr("pmm_ray.sources.reading.json_stream._BUFFER_BYTES", buffer)
        report = import_coco(str(path), str(tmp_path / "out"))
        assert rows(report)["a"]["labels"] == [1]
        assert report.counts["annotations"] == 50
        for item in read_annotations(str(path)):
            assert item["note"] == more["note"]
            assert item["area"] is item["score"] is None


@pytest.mark.parametrize("image_id", [uuid.UUID(int=2**127 + 9).int, 2**64 - 1])
def test_integers_of_any_size(image_id: int, tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    item = {"score": float("nan")} | annotation(image_id, 1, [box(1, 1, 5, 5)])
    path = a_coco(tmp_path, images=[entry(image_id, "a.jpg")], annotations=[item])
    assert rows(import_coco(str(path), str(tmp_path / "out")))["a"]["labels"] == [1]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b'{"images": [', "cut off"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b'{"images": [{"id": 1,}]}', "not valid JSON"),
        (b'{"images": [{"id": ' + b"9" * 5000 + b"}]}", "not valid JSON"),
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


# 21: a part is useful


def test_coco_of_which_one_split_is_there(tmp_path: Path) -> None:
    name = "COCO_val2014_000000000001.jpg"
    photo(tmp_path / "val2014" / name)
    file = tmp_path / "annotations/instances_val2014.json"
    write_coco(file, [entry(1, name)], [annotation(1, 1, [box(1, 1, 5, 5)])], OFFICIAL)
    report = import_coco14(str(tmp_path), str(tmp_path / "out"))
    assert report.manifest.splits == {"val": 1}
    assert "split train is left out: there is no" in " ".join(console(report).split())


# what a COCO file says twice, or in another unit


@pytest.mark.parametrize("splits", [("train", "train"), ("train", "val")])
def test_a_file_that_is_listed_twice_has_no_truth(splits: tuple[str, str], tmp_path: Path) -> None:
    for name in ("a.jpg", "b.jpg"):
        photo(tmp_path / name)
    images = [entry(n, name) for n, name in enumerate(("a.jpg", "b.jpg", "a.jpg"), 1)]
    annotations = [annotation(n, 1 + n % 2, [box(n, n, 5, 5)]) for n in (1, 2, 3)]
    if splits[0] == splits[1]:
        write_coco(tmp_path / "train.json", images, annotations)
    else:
        write_coco(tmp_path / "train.json", images[:2], annotations[:2])
        write_coco(tmp_path / "val.json", images[2:], annotations[2:])
    report = import_coco(str(tmp_path), str(tmp_path / "out"))
    assert list(rows(report)) == ["b"]
    assert [(e.image_id, "a.jpg is listed twice" in e.message) for e in report.errors] == [
        ("a", True)
    ] * 2


@pytest.mark.parametrize("boxes", [True, False])
def test_coordinates_that_are_shares_of_the_sides_are_refused(boxes: bool, tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    found = annotation(1, 1, [] if boxes else [[0.1, 0.1, 0.9, 0.1, 0.5, 1.0]])
    found |= {"bbox": [0.1, 0.1, 0.8, 0.9]}
    path = a_coco(tmp_path, annotations=[annotation(1, 1, []), found])
    with pytest.raises(CannotRunError, match="shares of the sides"):
        import_coco(str(path), str(tmp_path / "out"))


def test_a_category_without_a_name_is_refused(tmp_path: Path) -> None:
    path = a_coco(tmp_path, categories=[{"id": 1, "name": None}])
    with pytest.raises(CannotRunError, match="lacks id or name"):
        import_coco(str(path), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ('{"images": [{"id": 1, "file_name": "m\u00f6we"}]}'.encode("latin-1"), "not UTF-8 text"),
        (b"\x1f\x8b\x08\0\0", "a gzip archive"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b'{"images": [1,,]}', "not valid JSON: parse error"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_in_words(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "set.json").write_bytes(data)
    with pytest.raises(CannotRunError, match=said) as caught:
        import_coco(str(tmp_path / "set.json"), str(tmp_path / "out"))
    assert "b'" not in str(caught.value)


# where tools put their COCO files


@pytest.mark.parametrize(
    ("file", "photographs"),
    [
        ("result.json", "images"),
        ("annotations/instances_train2017.json", "train2017"),
        ("annotations/instances_default.json", "images/default"),
    ],
)
def test_coco_files_of_other_tools_are_found(file: str, photographs: str, tmp_path: Path) -> None:
    photo(tmp_path / photographs / "a.jpg")
    write_coco(tmp_path / file, [entry(1, "a.jpg")], [annotation(1, 1, [box(1, 1, 5, 5)])])
    assert source_of(str(tmp_path)) == "coco"
    report = import_coco(str(tmp_path), str(tmp_path / "out"))
    assert report.rows == 1
    assert "is not imported" not in console(report)


def test_a_file_of_a_split_that_nobody_asked_for_is_named_where_there_is_no_other(
    tmp_path: Path,
) -> None:
    write_coco(tmp_path / "valid/_annotations.coco.json", [entry(1, "a.jpg")], [])
    with pytest.raises(
        CannotRunError, match=r"valid/_annotations.coco.json is not imported.*--split"
    ):
        import_coco(str(tmp_path), str(tmp_path / "out"))


# columns of Parquet files


@pytest.mark.parametrize("labels", [[1.0, 0.0, None], [1.0, 0.0, float("nan")], [[1.0], [0.0], []]])
def test_numbers_that_became_floats_are_class_numbers(labels: Any, tmp_path: Path) -> None:
    images = [(encoded(), f"{i}.jpg") for i in range(3)]
    write_parquet(tmp_path / "train.parquet", images, labels, {"names": ["u", "v"]}, "labels")
    report = import_parquet(str(tmp_path), str(tmp_path / "out"))
    assert [row["labels"] for row in rows(report).values()] == [[2], [1], []]


def test_texts_of_0_and_1_are_no_class_names(tmp_path: Path) -> None:
    images = [(encoded(), f"{i}.jpg") for i in range(2)]
    write_parquet(tmp_path / "train.parquet", images, ["0 1 1", "1 0 0"], None, "labels")
    with pytest.raises(CannotRunError, match="0 or 1 for each of 3 classes"):
        import_parquet(str(tmp_path), str(tmp_path / "out"))


def test_columns_in_any_case_and_images_by_their_paths(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    table = pa.table({"Image": ["images/a.jpg", "gone.jpg"], "Label": ["cat", "dog"]})
    pq.write_table(table, tmp_path / "train.parquet")
    report = import_parquet(str(tmp_path / "train.parquet"), str(tmp_path / "out"))
    assert [row["labels"] for row in rows(report).values()] == [[1]]
    assert [(e.image_id, e.kind) for e in report.errors] == [("gone", "missing")]
