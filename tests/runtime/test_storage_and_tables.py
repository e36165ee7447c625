"""Files that appear whole, rows by position, ids that are no paths, and the index."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow, error_budget
from pmm_ray.runtime.core.index import (
    index_file,
    index_of,
    read_all,
    read_index,
    scan_parts,
    write_index,
)

SCHEMA = pa.schema([("image_id", pa.string()), ("value", pa.int32())])


def rows(first: int, last: int) -> list[dict[str, object]]:
    return [{"image_id": f"i{n:04d}", "value": n} for n in range(first, last)]


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    uri = str(tmp_path / "a.bin")
    storage.write_bytes(uri, b"old")
    with pytest.raises(TypeError):
        storage.write_bytes(uri, "not bytes")  # type: ignore[arg-type]
    assert storage.read_bytes(uri) == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("part", ["../x", "a/../../x", "/etc/passwd"])
def test_paths_from_data_do_not_leave_their_root(part: str) -> None:
    with pytest.raises(ValueError, match="leaves its root"):
        storage.join("/data", part)


def test_anchor_keeps_absolute_and_remote_uris() -> None:
    assert storage.anchor("images/a.jpg", "/data") == "/data/images/a.jpg"
    assert storage.anchor("/else/a.jpg", "/data") == "/else/a.jpg"
    assert storage.anchor("s3://bucket/a.jpg", "/data") == "s3://bucket/a.jpg"


def test_listing_passes_over_hidden_and_missing(tmp_path: Path) -> None:
    (tmp_path / ".part.tmp").touch()
    (tmp_path / "b").touch()
    (tmp_path / "a").touch()
    assert [u.rsplit("/", 1)[1] for u in storage.list_files(str(tmp_path))] == ["a", "b"]
    assert storage.list_files(str(tmp_path / "absent")) == []
    storage.delete_file(str(tmp_path / "absent"))
    storage.delete_folder(str(tmp_path / "absent"))


@pytest.mark.parametrize("bad", ["", "../a", "a/b", ".hidden", "a b", "é", "a" * 129])
def test_image_ids_are_never_paths(bad: str) -> None:
    with pytest.raises(ValueError, match="is not allowed"):
        tables.check_image_id(bad)


def test_rows_by_position_over_row_groups(tmp_path: Path) -> None:
    uri = str(tmp_path / "t.parquet")
    table = pa.Table.from_pylist(rows(0, 25), SCHEMA)
    storage.write_bytes(uri, tables.to_bytes(table, row_group_size=10))
    found = tables.read_rows(uri, [24, 0, 9, 10])
    assert [row["value"] for row in found] == [24, 0, 9, 10]


def test_a_rewritten_file_is_read_anew(tmp_path: Path) -> None:
    uri = str(tmp_path / "t.parquet")
    tables.write_rows(uri, rows(0, 3), SCHEMA)
    assert tables.read_rows(uri, [0])[0]["value"] == 0
    tables.write_rows(uri, rows(5, 8), SCHEMA)
    assert tables.read_rows(uri, [0])[0]["value"] == 5


def test_a_part_that_is_damaged_later_is_named_with_the_way_out(tmp_path: Path) -> None:
    part = tmp_path / "part-a.parquet"
    tables.write_rows(str(part), rows(0, 9), SCHEMA)
    data = bytearray(part.read_bytes())
    data[30] ^= 1
    part.write_bytes(data)
    with pytest.raises(CannotRunError, match=rf"{part} is damaged .*Delete the summary\.json"):
        tables.read_rows(str(part), [2])


def test_a_file_of_a_finished_stage_that_is_gone_is_named_with_the_way_out(tmp_path: Path) -> None:
    folder = str(tmp_path)
    tables.write_rows(f"{folder}/part-a.parquet", rows(0, 9), SCHEMA)
    write_index(folder, scan_parts(folder)[0])
    (tmp_path / "part-a.parquet").unlink()
    said = r"parquet is missing\. Delete the summary\.json"
    with pytest.raises(CannotRunError, match=rf"part-a\.{said}"):
        read_all(folder)
    with pytest.raises(CannotRunError, match=rf"part-a\.{said}"):
        tables.read_rows(f"{folder}/part-a.parquet", [0])
    (tmp_path / "index.parquet").unlink()
    with pytest.raises(CannotRunError, match=rf"index\.{said}"):
        read_index(folder)


def test_names_and_hashes_do_not_depend_on_order() -> None:
    assert tables.chunk_name(["a", "b"]) == tables.chunk_name(["b", "a"])
    assert tables.chunk_name(["a", "b"]) != tables.chunk_name(["ab"])
    table = pa.Table.from_pylist(rows(0, 9), SCHEMA)
    turned = pa.concat_tables([table.slice(4), table.slice(0, 4)])
    assert tables.content_hash(table) == tables.content_hash(turned)
    assert tables.content_hash(table) != tables.content_hash(table.slice(1))


def test_errors_round_trip_in_order_of_ids(tmp_path: Path) -> None:
    folder = str(tmp_path / "errors")
    late, early = (ErrorRow(i, "make_cams", "decode", "cut", f"{i}.jpg") for i in "ba")
    tables.write_errors(folder, "1", [late])
    tables.write_errors(folder, "2", [early])
    assert tables.read_errors(folder) == [early, late]


def test_the_index_finds_every_row_once(tmp_path: Path) -> None:
    folder = str(tmp_path)
    tables.write_rows(f"{folder}/part-a.parquet", rows(0, 4), SCHEMA)
    tables.write_rows(f"{folder}/part-b.parquet", rows(3, 6), SCHEMA)  # i0003 stands in both
    (tmp_path / "part-c.parquet").write_bytes(b"PAR1 torn")
    index, broken = scan_parts(folder)
    assert [uri.rsplit("/", 1)[1] for uri in broken] == ["part-c.parquet"]
    assert index.image_ids == [f"i{n:04d}" for n in range(6)]
    write_index(folder, index)
    again = read_index(folder)
    assert again.parts == index.parts
    assert again.locations() == index.locations()
    assert read_all(folder).column("value").to_pylist() == list(range(6))
    assert again.select(["i0001", "foreign"]).image_ids == ["i0001"]
    some = again.select(["i0005", "i0004"])
    assert [rows.tolist() for rows in some.rows_of_parts()] == [[], [1, 2]]
    assert index_of([]).rows_of_parts() == []


def test_a_file_can_be_indexed_by_a_column(tmp_path: Path) -> None:
    uri = str(tmp_path / "t.parquet")
    tables.write_rows(uri, rows(0, 5), SCHEMA)
    places = index_file(uri).locations()
    assert places["i0003"] == (uri, 3)
    assert len(index_file(uri)) == 5


def test_the_budget_is_ten_images_or_one_percent() -> None:
    assert error_budget(None, 50) == 10
    assert error_budget(None, 82_081) == 820
    assert error_budget(0, 82_081) == 0


def test_a_large_part_is_read_by_pieces(tmp_path: Path) -> None:
    schema = pa.schema([("image_id", pa.string()), ("cam", pa.large_binary())])
    noise = np.random.default_rng(0)
    cams = [{"image_id": f"i{n}", "cam": noise.bytes(1 << 20)} for n in range(12)]
    large, small = str(tmp_path / "large.parquet"), str(tmp_path / "small.parquet")
    tables.write_rows(large, cams, schema)
    tables.write_rows(small, [row | {"cam": b"x"} for row in cams], schema)
    assert pq.ParquetFile(large).num_row_groups == 4
    assert pq.ParquetFile(small).num_row_groups == 1
    assert tables.read_rows(large, [11, 0]) == [cams[11], cams[0]]


@pytest.mark.parametrize(
    "place", ["az://x", "s3a://x", "S3://x/y", "foo://x", "https://x/y.jpg", "s3://", "gs:///"]
)
def test_a_place_that_cannot_be_used_is_named_with_those_that_can(place: str) -> None:
    with pytest.raises(CannotRunError, match=r"^\w+://.* s3://BUCKET/\.\.\. or gs://") as said:
        storage.exists(storage.absolute(place))
    assert "\n" not in str(said.value)
