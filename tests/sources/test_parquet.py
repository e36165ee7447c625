"""Parquet files as Hugging Face's `datasets` writes them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.datasets.parquet import import_parquet

from .faulty import rows

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def encoded(kind: str = "JPEG", size: tuple[int, int] = (16, 12)) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", size, "grey").save(out, kind)
    return out.getvalue()


def write(
    path: Path,
    images: list[tuple[bytes | None, str | None]],
    labels: list[Any] | None,
    feature: Any = None,
    column: str = "label",
    **more: list[Any],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns: dict[str, Any] = {
        "image": pa.array([{"bytes": b, "path": p} for b, p in images], IMAGE)
    }
    columns |= {column: labels} if labels is not None else {}
    table = pa.table(columns | more)
    if feature is not None:
        info = {"info": {"features": {"image": {"_type": "Image"}, column: feature}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, path)


def test_class_labels_of_shards_and_splits(tmp_path: Path) -> None:
    feature = {"names": ["кот", "犬", "Vogel"], "_type": "ClassLabel"}
    data = tmp_path / "data"
    write(
        data / "train-00000-of-00002.parquet",
        [(encoded(), "a.jpg"), (encoded("PNG"), None)],
        [2, 0],
        feature,
    )
    write(data / "train-00001-of-00002.parquet", [(encoded(), "a.jpg")], [1], feature)
    write(data / "validation-00000-of-00001.parquet", [(encoded(), "v.jpg")], [-1], feature)
    report = import_parquet(str(tmp_path), str(tmp_path / "out"))
    assert report.manifest.label_space.names == ("background", "кот", "犬", "Vogel")
    assert report.manifest.splits == {"train": 3, "validation": 1}
    found = rows(report)
    assert {i: row["labels"] for i, row in found.items()} == {
        "a": [3],
        "train-00000-of-00002-0000001": [1],
        "train-00001-of-00002-0000000": [2],  # another a.jpg
        "v": [],
    }
    assert found["train-00000-of-00002-0000001"]["uri"].endswith(".png")
    assert (tmp_path / "out" / found["a"]["uri"]).read_bytes() == encoded()
    assert report.manifest.apply_exif


@pytest.mark.parametrize(
    "feature",
    [
        {"feature": {"names": ["x", "y"], "_type": "ClassLabel"}, "_type": "Sequence"},
        [{"names": ["x", "y"], "_type": "ClassLabel"}],
    ],
)
def test_lists_of_class_labels(tmp_path: Path, feature: Any) -> None:
    images = [(encoded(), "a.jpg"), (encoded(), "b.jpg"), (encoded(), "c.jpg")]
    write(tmp_path / "train.parquet", images, [[1, 0], [1], []], feature, "labels")
    report = import_parquet(str(tmp_path / "train.parquet"), str(tmp_path / "out"))
    assert [row["labels"] for row in rows(report).values()] == [[1, 2], [2], []]


def test_names_as_labels_and_a_folder_for_each_split(tmp_path: Path) -> None:
    write(tmp_path / "train/0.parquet", [(encoded(), "a.jpg")], [["dog", "cat "]], column="labels")
    write(tmp_path / "val/0.parquet", [(encoded(), "b.jpg")], [["dog"]], column="labels")
    report = import_parquet(str(tmp_path), str(tmp_path / "out"))
    assert report.manifest.label_space.names == ("background", "cat", "dog")
    assert {i: (r["labels"], r["split"]) for i, r in rows(report).items()} == {
        "a": ([1, 2], "train"),
        "b": ([2], "val"),
    }


def test_integers_without_names_and_ids_of_their_own(tmp_path: Path) -> None:
    images = [(encoded(), None), (encoded(), None)]
    write(tmp_path / "train.parquet", images, [0, 999], image_id=["первый", "second"])
    report = import_parquet(str(tmp_path), str(tmp_path / "out"))
    assert report.manifest.label_space.num_foreground == 1000
    assert report.manifest.label_space.ignore == 65535
    assert [row["labels"] for row in rows(report).values()] == [[1], [1000]]


def test_a_path_instead_of_bytes(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.jpg").write_bytes(encoded())
    images = [(None, "pictures/a.jpg"), (None, "../a.jpg"), (None, "/etc/passwd"), (None, None)]
    write(tmp_path / "train.parquet", images, None)
    report = import_parquet(str(tmp_path), str(tmp_path / "out"))
    assert [row["uri"] for row in rows(report).values()] == [str(tmp_path / "pictures/a.jpg")]
    assert [error.kind for error in report.errors] == ["missing"] * 3


def test_bad_rows_are_error_rows(tmp_path: Path) -> None:
    images = [(encoded(), "a.jpg"), (b"no image", "b.jpg"), (encoded()[:100], "c.jpg")]
    write(
        tmp_path / "train.parquet",
        [*images, (encoded(), "a.jpg")],
        [0, 0, 1, 7],
        {"names": ["x", "y"]},
    )
    report = import_parquet(str(tmp_path), str(tmp_path / "out"))
    assert list(rows(report)) == ["a"]
    assert {e.image_id: e.kind for e in report.errors} == {
        "b": "decode",
        "c": "decode",
        "train-0000003": "label",
    }


def test_columns(tmp_path: Path) -> None:
    pq.write_table(pa.table({"picture": [b"x"]}), tmp_path / "train.parquet")
    with pytest.raises(CannotRunError, match="no column of images"):
        import_parquet(str(tmp_path), str(tmp_path / "out"))


def test_which_of_two_columns_holds_the_labels_is_asked(tmp_path: Path) -> None:
    found = {"label": [0, 1], "labels": [["x"], ["y"]], "kind": ["cat", "dog"]}
    table = pa.table({"image": [encoded(), encoded()], **found})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(CannotRunError, match=r"\['label', 'labels'\].*--label-column"):
        import_parquet(str(tmp_path), str(tmp_path / "out"))
    for column, names in (("labels", ("x", "y")), ("kind", ("cat", "dog"))):
        report = import_parquet(str(tmp_path), str(tmp_path / column), label_column=column)
        assert report.manifest.label_space.names[1:] == names
        assert [row["labels"] for row in rows(report).values()] == [[1], [2]]
    with pytest.raises(CannotRunError, match="no column 'sort': there are"):
        import_parquet(str(tmp_path), str(tmp_path / "out"), label_column="sort")


def test_no_files_and_no_parquet(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match=r"no \.parquet files"):
        import_parquet(str(tmp_path), str(tmp_path / "out"))
    (tmp_path / "train.parquet").write_bytes(b"PAR1")
    with pytest.raises(CannotRunError, match="cannot be read"):
        import_parquet(str(tmp_path), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("validation.parquet", "validation"),
        ("Val.parquet", "Val"),
        ("test-0.parquet", "test"),
        ("train-00000-of-00002.parquet", "train"),
        ("extra-00000-of-00001.parquet", "extra"),
        ("plain_text/validation-00000-of-00001.parquet", "validation"),
        ("default/train/0000.parquet", "train"),
        ("photographs.parquet", "train"),
    ],
)
def test_a_file_s_name_tells_its_split(tmp_path: Path, name: str, split: str) -> None:
    write(tmp_path / "set" / name, [(encoded(), None)], ["cat"])
    report = import_parquet(str(tmp_path / "set"), str(tmp_path / "out"))
    assert report.manifest.splits == {split: 1}


def test_a_column_tells_the_split_of_each_row(tmp_path: Path) -> None:
    images = [(encoded(), f"{n}.jpg") for n in range(3)]
    write(tmp_path / "set" / "all.parquet", images, ["cat"] * 3, Split=["train", "val", None])
    report = import_parquet(str(tmp_path / "set"), str(tmp_path / "out"))
    assert report.manifest.splits == {"train": 2, "val": 1}
    write(tmp_path / "two" / "train.parquet", images, ["cat"] * 3, split=["train", "val", None])
    report = import_parquet(str(tmp_path / "two"), str(tmp_path / "out2"))
    assert report.manifest.splits == {"train": 2}
    [error] = report.errors
    assert "its column says split 'val', its file 'train'" in error.message
    # a folder of another name is no evidence
    write(tmp_path / "three" / "plain_text" / "0.parquet", images, ["cat"] * 3, split=["val"] * 3)
    report = import_parquet(str(tmp_path / "three"), str(tmp_path / "out3"))
    assert report.manifest.splits == {"val": 3}


@pytest.mark.parametrize(
    ("texts", "names"),
    [
        (["cat;dog", "dog;bird", "cat"], ("cat",)),
        (["cat, dog", "dog, bird", "cow"], ("cow",)),
        (['["cat", "dog"]', "[]", "cow"], ("cow",)),
        (["['cat', 'dog']", "cow"], ("cow",)),
        # names with commas are names
        (["tench, Tinca tinca", "goldfish, Carassius auratus"], ()),
    ],
)
def test_lists_in_one_text_are_no_classes(
    tmp_path: Path, texts: list[str], names: tuple[str, ...]
) -> None:
    images = [(encoded(), f"{n}.jpg") for n in range(len(texts))]
    write(tmp_path / "set" / "train.parquet", images, texts)
    report = import_parquet(str(tmp_path / "set"), str(tmp_path / "out"))
    assert report.manifest.label_space.names[1:] == (names or tuple(sorted(texts)))
    assert len(report.errors) == (len(texts) - 1 if names else 0)
    assert all("write a list of names" in error.message for error in report.errors)


def test_a_file_whose_labels_have_another_name_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "set" / "train.parquet", [(encoded(), "a.jpg")], ["cat"])
    write(tmp_path / "set" / "val.parquet", [(encoded(), "b.jpg")], ["cat"], column="category")
    with pytest.raises(
        CannotRunError, match=r"val.parquet has no column of labels \(labels, label"
    ):
        import_parquet(str(tmp_path / "set"), str(tmp_path / "out"))


def test_results_below_the_root_are_no_data(tmp_path: Path) -> None:
    write(tmp_path / "train.PARQUET", [(encoded(), "a.jpg")], ["cat"])
    for _ in range(2):
        report = import_parquet(str(tmp_path), str(tmp_path / "out"))
        assert list(rows(report)) == ["a"]
    # of another command
    write(tmp_path / "run/cams-0a1b2c3d/part-0.parquet", [(encoded(), "b.jpg")], ["dog"])
    (tmp_path / "run/run.json").write_text('{"stages": [{"folder": "cams-0a1b2c3d"}]}')
    assert list(rows(import_parquet(str(tmp_path), str(tmp_path / "new")))) == ["a"]


def test_a_broken_shard_costs_its_own_rows(tmp_path: Path) -> None:
    write(tmp_path / "train-0.parquet", [(encoded(), "a.jpg")], ["cat"])
    (tmp_path / "train-1.parquet").write_bytes(b"PAR1")
    report = import_parquet(str(tmp_path), str(tmp_path / "out"))
    assert list(rows(report)) == ["a"]
    [error] = report.errors
    assert (error.image_id, error.kind) == ("train-1", "decode")
    assert error.uri == str(tmp_path / "train-1.parquet")
