from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmm_ray.labels import COCO14, VOC12, LabelSpace
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.manifest import (
    CONTENT_KEY,
    ManifestRow,
    check_labels,
    manifest_hash,
    open_manifest,
    write_manifest,
)


def rows(count: int = 5, folder: str = "images") -> list[ManifestRow]:
    return [
        ManifestRow(
            image_id=f"img-{i}",
            uri=f"{folder}/img-{i}.jpg",
            labels=(1, 2 + i % 3) if i else (),
            height=10 + i,
            width=20,
            split="train" if i % 2 else "val",
            ground_truth_uri=f"masks/img-{i}.png" if i % 2 == 0 else None,
        )
        for i in range(count)
    ]


def write(folder: Path, content: list[ManifestRow], space: LabelSpace = VOC12, **options: object):
    options = {"source": "test", "exif": "apply", **options}
    return write_manifest(str(folder / "manifest.parquet"), content, space, **options)


def test_round_trip(tmp_path: Path) -> None:
    written = write(tmp_path, rows()[::-1])
    manifest = open_manifest(str(tmp_path / "manifest.parquet"))
    assert manifest == written
    assert manifest.label_space == VOC12
    assert manifest.apply_exif
    assert manifest.num_rows == 5
    assert manifest.splits == {"train": 2, "val": 3}
    assert manifest.ground_truth == {"val": 3}
    table = tables.read_table(manifest.uri)
    assert table.schema.equals(tables.MANIFEST)
    assert tables.metadata_of(table.schema)["pmm.source"] == "test"
    assert table.column("image_id").to_pylist() == [f"img-{i}" for i in range(5)]
    assert table.column("labels").to_pylist()[:2] == [[], [1, 3]]


def test_a_large_manifest_has_row_groups_and_reads_by_position(tmp_path: Path) -> None:
    many = [replace(rows(2)[1], image_id=f"i{i:05}") for i in range(2500)]
    manifest = write(tmp_path, many)
    assert pq.ParquetFile(manifest.uri).num_row_groups == 3
    assert [r["image_id"] for r in tables.read_rows(manifest.uri, [2400, 3])] == [
        "i02400",
        "i00003",
    ]


def test_files_below_the_folder_are_named_relative_to_it(tmp_path: Path) -> None:
    inside = replace(rows(1)[0], uri=str(tmp_path / "images/a.jpg"))
    outside = replace(rows(2)[1], uri="/elsewhere/b.jpg", ground_truth_uri=str(tmp_path / "m.png"))
    remote = replace(rows(3)[2], uri="s3://bucket/c.jpg")
    manifest = write(tmp_path, [inside, outside, remote])
    table = tables.read_table(manifest.uri)
    assert table.column("uri").to_pylist() == [
        "images/a.jpg",
        "/elsewhere/b.jpg",
        "s3://bucket/c.jpg",
    ]
    assert table.column("ground_truth_uri").to_pylist()[1] == "m.png"
    assert manifest.locate("images/a.jpg") == str(tmp_path / "images/a.jpg")
    assert manifest.locate("/elsewhere/b.jpg") == "/elsewhere/b.jpg"
    with pytest.raises(ValueError, match="leaves its root"):
        manifest.locate("../a.jpg")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "../a"}, "not allowed"),
        ({"image_id": "img-1"}, "occur twice"),
        ({"labels": (0, 1)}, r"labels \[0\] are outside 1..20"),
        ({"labels": (21,)}, r"labels \[21\] are outside"),
        ({"labels": (3, 2)}, "not sorted"),
        ({"labels": (2, 2)}, "not sorted"),
        ({"height": 0}, "positive size"),
        ({"width": -1}, "positive size"),
        ({"split": ""}, "split"),
        ({"uri": "../../secret"}, "leaves its root"),
    ],
)
def test_bad_rows_are_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    content = rows()
    content[3] = replace(content[3], **change)
    with pytest.raises(ValueError, match=message):
        write(tmp_path, content)
    assert not list(tmp_path.iterdir())


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        write(tmp_path, [])


def test_check_labels() -> None:
    assert check_labels([1, 20], VOC12) == (1, 20)
    assert check_labels([], VOC12) == ()


def test_open_says_what_is_wrong(tmp_path: Path) -> None:
    path = tmp_path / "manifest.parquet"
    with pytest.raises(CannotRunError, match="pmm data import"):
        open_manifest(str(path))
    path.write_bytes(b"not parquet")
    with pytest.raises(CannotRunError, match="cannot be read"):
        open_manifest(str(path))
    pq.write_table(pa.table({"a": [1]}), path)
    with pytest.raises(CannotRunError, match="its columns must be"):
        open_manifest(str(path))
    tables.write_rows(str(path), [], tables.MANIFEST)
    with pytest.raises(CannotRunError, match="schema metadata"):
        open_manifest(str(path))
    manifest = write(tmp_path, rows())
    table = tables.read_table(manifest.uri)
    pq.write_table(pa.concat_tables([table, table]), path)
    with pytest.raises(CannotRunError, match="5 image ids occur twice"):
        open_manifest(str(path))


def test_hash_ignores_place_order_and_source(tmp_path: Path) -> None:
    first = write(tmp_path / "a", rows())
    second = write(tmp_path / "b", rows(folder="other")[::-1], source="another")
    shutil.copytree(tmp_path / "a", tmp_path / "c")
    expected = manifest_hash(first.uri)
    assert manifest_hash(second.uri) == expected
    assert manifest_hash(str(tmp_path / "c/manifest.parquet")) == expected


def test_hash_changes_with_what_decides_results(tmp_path: Path) -> None:
    hashes = {manifest_hash(write(tmp_path, rows()).uri)}
    changes = [
        {"image_id": "other"},
        {"labels": (5,)},
        {"height": 99},
        {"width": 99},
        {"split": "val"},
        {"ground_truth_uri": "m.png"},
    ]
    for change in changes:
        content = rows()
        content[3] = replace(content[3], **change)
        hashes.add(manifest_hash(write(tmp_path, content).uri))
    hashes.add(manifest_hash(write(tmp_path, rows(), COCO14).uri))
    hashes.add(manifest_hash(write(tmp_path, rows(), exif="ignore").uri))
    hashes.add(manifest_hash(write(tmp_path, rows(), metadata={CONTENT_KEY: "seed 1"}).uri))
    assert len(hashes) == 1 + len(changes) + 3
