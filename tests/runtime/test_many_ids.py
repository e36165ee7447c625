"""Millions of ids are an Arrow column in the driver: few Python objects are made of them."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import TableIndex, ids_without, index_of, table_of
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.mapping.chunks import make_chunks, read_chunk
from pmm_ray.runtime.mapping.ledger import Ledger

IDS = 200_000
# a chunk's own text: an id and the number of its row
BYTES_AN_ID = 60


def test_what_a_driver_knows_of_an_image_is_small(tmp_path: Path) -> None:
    names = pa.array([f"image-{n:08d}" for n in range(IDS)])
    rows = np.arange(IDS, dtype=np.int32)
    index = TableIndex(("manifest.parquet",), table_of(names, np.zeros_like(rows), rows))
    ledger = Ledger(StageFolder.below(str(tmp_path), "masks", "00000000"), tables.MASKS)
    tracemalloc.start()
    for start in range(0, IDS // 2, 100):
        done = json.dumps(names.slice(start, 100).to_pylist())
        ledger.add({"part": f"{start}", "done": done, "failed": "[]", "bytes": 1})
    todo = ledger.uncommitted(index.ids)
    chunks = make_chunks(todo, {"manifest": index}, 100)
    found = ledger.index(index.ids)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(todo), len(chunks), len(found)) == (IDS // 2, IDS // 200, IDS // 2)
    assert peak / IDS < BYTES_AN_ID


def test_a_chunk_finds_the_rows_of_tables_in_other_orders(tmp_path: Path) -> None:
    names = ["a", "b", "c", "d"]
    schema = pa.schema([("image_id", pa.string()), ("value", pa.int32())])
    parts = []
    for part, ids in enumerate((["d", "a"], ["c", "b", "x"])):
        uri = str(tmp_path / f"part-{part}.parquet")
        tables.write_rows(uri, [{"image_id": i, "value": ord(i)} for i in ids], schema)
        parts.append((uri, pa.chunked_array([ids])))
    index = index_of(parts)
    [first, second] = make_chunks(names, {"scores": index}, 3)
    rows = [row["scores"] for chunk in (first, second) for row in read_chunk(json.loads(chunk))]
    assert rows == [{"image_id": i, "value": ord(i)} for i in names]
    with pytest.raises(KeyError, match="y"):
        make_chunks(["a", "y"], {"scores": index}, 3)


def test_an_image_in_two_parts_is_found_in_the_first() -> None:
    index = index_of([("p", pa.chunked_array([["a", "b"]])), ("q", pa.chunked_array([["b", "c"]]))])
    assert index.locations() == {"a": ("p", 0), "b": ("p", 1), "c": ("q", 1)}
    assert ids_without(["c", "a", "d"], {"a"}).to_pylist() == ["c", "d"]
