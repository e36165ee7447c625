"""Parquet files that lost rows, made several of one photograph, or did not say what they hold."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.datasets.parquet import import_parquet
from pmm_ray.sources.importing.import_report import ImportReport

from .faulty import noise, rows


def drawn(number: int, kind: str = "JPEG") -> bytes:
    """A photograph like no other."""
    out = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(out, kind)
    return out.getvalue()


def read(root: Path, shards: dict[str, dict[str, Any]], **options: str) -> ImportReport:
    for name, columns in shards.items():
        (root / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), root / "set" / name)
    return import_parquet(str(root / "set"), str(root / "out"), **options)


def test_a_photograph_of_several_rows_is_an_error_of_each(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        noise(tmp_path / f"set/images/{name}.jpg")
    paths = ["images/a.jpg", "images/a.jpg", "images/b.jpg", "images/c.jpg", "./images/c.jpg"]
    columns = {
        "image": [*paths, "images/a.jpg"],
        "label": ["cat", "dog", "cat", "cat", "dog", "dog"],
        "split": ["train", "train", "val", "train", "val", "val"],
    }
    report = read(tmp_path, {"all.parquet": columns})
    assert [Path(row["uri"]).name for row in rows(report).values()] == ["b.jpg"]
    assert [error.kind for error in report.errors] == ["label"] * 5
    said = "'images/c.jpg' (all.parquet row 3) and './images/c.jpg' (all.parquet row 4) are one"
    assert sum(said in error.message for error in report.errors) == 2


@pytest.mark.parametrize(
    ("written", "there"),
    [
        ("images\\a.jpg", "images/a.jpg"),
        ("images/B.jpg", "images/b.jpg"),
        ("a%20b.jpg", "a b.jpg"),
        ("/home/me/set/y/1.jpg", "y/1.jpg"),
    ],
)
def test_paths_of_another_system_are_found_and_said(
    written: str, there: str, tmp_path: Path
) -> None:
    for name in (there, "x/1.jpg"):
        noise(tmp_path / "set" / name)
    report = read(tmp_path, {"train.parquet": {"image": [written], "label": ["cat"]}})
    [row] = rows(report).values()
    assert row["uri"] == str(tmp_path / "set" / there)
    assert any(note.startswith("photographs found ") for note in report.notes)


def test_a_path_means_no_mask_and_no_hidden_file(tmp_path: Path) -> None:
    for name in ("images/a.png", "masks/a.png", "masks/b.png", ".thumbs/b.jpg"):
        noise(tmp_path / "set" / name)
    columns = {"image": ["a.png", "b.png"], "label": ["cat", "dog"]}
    report = read(tmp_path, {"train.parquet": columns, ".old/train.parquet": columns})
    assert [row["uri"] for row in rows(report).values()] == [str(tmp_path / "set/images/a.png")]
    assert [error.kind for error in report.errors] == ["missing"]


def test_a_column_may_spell_the_split_of_its_file_otherwise(tmp_path: Path) -> None:
    name = "validation-00000-of-00001.parquet"
    columns = {"image": [drawn(1), drawn(2)], "label": ["cat", "dog"], "split": ["val", "test"]}
    report = read(tmp_path, {name: columns})
    assert report.manifest.splits == {"val": 1}
    assert "its column says split 'test'" in report.errors[0].message


def test_a_folder_may_be_imported_in_place_again(tmp_path: Path) -> None:
    columns = {"image": [drawn(1), b"junk"], "label": ["cat", "cat"]}
    inside = {"day1/train.parquet": columns}
    for root, shards in ((tmp_path / "set/day1", inside), (tmp_path / "set", {})):
        for _ in range(2):
            read(tmp_path, shards)
            report = import_parquet(str(root), str(root))
            assert [Path(row["uri"]).parent.name for row in rows(report).values()] == ["images"]
            assert len(report.errors) == 1


def test_ids_may_begin_anew_in_each_split(tmp_path: Path) -> None:
    shards = {
        f"{split}-00000-of-00001.parquet": {
            "image": [drawn(first), drawn(first + 1)],
            "label": [split] * 2,
            "image_id": [0, first],
        }
        for first, split in ((3, "train"), (6, "val"))
    }
    report = read(tmp_path, shards)
    assert not report.errors
    found = {image_id: row["labels"] for image_id, row in rows(report).items()}
    assert sorted(found.values()) == [[1], [1], [2], [2]]
    assert (found["3"], found["6"]) == ([1], [2])
    assert any("several shards or splits have: 1, such as '0'" in note for note in report.notes)
    for row in rows(report).values():
        expected = {"3": drawn(4), "6": drawn(7)}.get(row["image_id"], drawn(3 * row["labels"][0]))
        assert (tmp_path / "out" / row["uri"]).read_bytes() == expected


def test_splits_of_a_column_may_number_alike_and_one_photograph_stays_one(tmp_path: Path) -> None:
    columns = {
        "image": [drawn(1), drawn(2), drawn(3), drawn(3)],
        "label": ["cat", "dog", "cat", "dog"],
        "image_id": ["1", "1", "2", "2"],
        "split": ["train", "val", "train", "val"],
    }
    report = read(tmp_path, {"all.parquet": columns})
    assert [row["labels"] for row in rows(report).values()] == [[1], [1], [2]]
    assert [error.message for error in report.errors] == [
        "the image id occurs twice; the first one stays"
    ]


def test_shards_of_two_configurations_may_have_one_name(tmp_path: Path) -> None:
    name = "train-00000-of-00001.parquet"
    shards = {
        f"{config}/{name}": {"image": [drawn(number)], "label": [config]}
        for number, config in enumerate(("one", "two"))
    }
    report = read(tmp_path, shards)
    assert [row["labels"] for row in rows(report).values()] == [[1], [2]]
    assert not report.errors
    assert any(note.startswith("names that several shards have: 1") for note in report.notes)


@pytest.mark.parametrize("several", [True, False])
def test_masks_in_the_column_of_labels_are_no_labels(several: bool, tmp_path: Path) -> None:
    mask: Any = {"bytes": drawn(2, "PNG"), "path": None}
    columns = {"image": [drawn(1)], "label": [[mask] if several else mask], "kind": ["cat"]}
    with pytest.raises(CannotRunError, match="'label' holds pictures, not labels") as caught:
        read(tmp_path, {"train.parquet": columns})
    assert len(str(caught.value)) < 500
    report = read(tmp_path, {"train.parquet": columns}, label_column="kind")
    assert [row["labels"] for row in rows(report).values()] == [[1]]


def test_a_long_value_is_cut_in_a_message(tmp_path: Path) -> None:
    value = "cat; " * 10_000
    columns = {"image": [drawn(1), drawn(2)], "label": ["cow", value]}
    [error] = read(tmp_path, {"train.parquet": columns}).errors
    assert "label 'cat; cat; cat" in error.message
    assert len(error.message) < 300


def test_columns_that_may_be_the_labels_are_named(tmp_path: Path) -> None:
    columns = {
        "image": [{"bytes": drawn(1), "path": "a.jpg"}],
        "image_id": ["a"],
        "split": ["train"],
        "category": [1],
        "is_cat": [True],
        "objects": [[{"kind": 1, "box": [1, 2]}]],
    }
    report = read(tmp_path, {"all.parquet": columns})
    [note] = [note for note in report.notes if "data.label_column" in note]
    assert "in one of category, is_cat, objects.kind, say which" in note
    assert report.counts["unlabelled"] == 1


@pytest.mark.parametrize("lists", [True, False])
def test_a_field_of_objects_may_be_the_labels(lists: bool, tmp_path: Path) -> None:
    kinds = [[2, 0, 2], [], [1]]
    objects: list[Any] = [{"kind": found, "area": [1.0] * len(found)} for found in kinds]
    kind: Any = {"feature": {"kind": {"names": ["u", "v", "w"]}, "area": {"dtype": "float32"}}}
    if lists:
        objects = [[{"kind": k, "area": 1.0} for k in found] for found in kinds]
        kind = [kind["feature"]]
    table = pa.table({"image": [drawn(n) for n in range(3)], "objects": objects})
    info = {"info": {"features": {"objects": kind}}}
    table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    (tmp_path / "set").mkdir()
    pq.write_table(table, tmp_path / "set/train.parquet")
    report = read(tmp_path, {}, label_column="objects.kind")
    assert report.manifest.label_space.names[1:] == ("u", "v", "w")
    assert [row["labels"] for row in rows(report).values()] == [[1, 3], [], [2]]
    assert report.labels_from == "column objects.kind, class numbers"
    with pytest.raises(CannotRunError, match=r"no column 'objects\.sort': there are"):
        read(tmp_path, {}, label_column="objects.sort")
