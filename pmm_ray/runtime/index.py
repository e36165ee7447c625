"""Which row of which file holds an image: the small table that stages find each other's rows by.

A finished table folder has an `index.parquet` (image_id, part, row), so nothing downstream lists a
folder or reads bytes it does not need. A manifest is a single file and its own index.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pmm_ray.runtime import storage, tables

_INDEX = pa.schema([("image_id", pa.string()), ("part", pa.int32()), ("row", pa.int32())])


@dataclass(frozen=True)
class TableIndex:
    """Where each image of a table is.

    `table` has columns image_id, part (index into `parts`) and row (position in that file).
    """

    parts: tuple[str, ...]
    table: pa.Table

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def image_ids(self) -> list[str]:
        return self.table.column("image_id").to_pylist()

    def locations(self) -> dict[str, tuple[str, int]]:
        """image_id -> (file uri, row)."""
        ids, parts, rows = (self.table.column(name).to_pylist() for name in _INDEX.names)
        return {i: (self.parts[part], row) for i, part, row in zip(ids, parts, rows, strict=True)}

    def select(self, image_ids: Iterable[str]) -> TableIndex:
        """The part of the index that speaks of these images."""
        wanted = pa.array(list(image_ids), pa.string())
        keep = pc.is_in(self.table.column("image_id"), value_set=wanted)
        return TableIndex(self.parts, self.table.filter(keep))


def index_file(uri: str, keep: Mapping[str, Sequence[str]] | None = None) -> TableIndex:
    """Index of one Parquet file such as a manifest.

    Args:
        uri: the file.
        keep: column -> allowed values, for example `{"split": ["train"]}`.
    """
    keep = keep or {}
    table = tables.read_table(uri, ["image_id", *keep])
    rows = pa.array(range(table.num_rows), pa.int32())
    index = pa.table(
        {
            "image_id": table.column("image_id"),
            "part": pa.array([0] * table.num_rows, pa.int32()),
            "row": rows,
        }
    ).cast(_INDEX)
    for column, values in keep.items():
        mask = pc.is_in(table.column(column), value_set=pa.array(list(values)))
        index, table = index.filter(mask), table.filter(mask)
    return TableIndex((uri,), index)


def scan_parts(folder: str) -> tuple[TableIndex, list[str]]:
    """Index a folder by opening its parts, and the uris of parts that cannot be read.

    An image that stands in two parts (a task that outlived its driver) is kept once: parts are
    visited in order of name, so every reader keeps the same one, and both hold the same bytes.
    """
    parts: list[str] = []
    broken: list[str] = []
    chunks: list[pa.Table] = []
    for uri in storage.list_files(folder, ".parquet"):
        if not uri.rsplit("/", 1)[-1].startswith("part-"):
            continue
        try:
            ids = tables.read_table(uri, ["image_id"]).column("image_id")
        except (pa.ArrowInvalid, OSError):
            broken.append(uri)
            continue
        count = len(ids)
        chunks.append(
            pa.table(
                {
                    "image_id": ids,
                    "part": pa.array([len(parts)] * count, pa.int32()),
                    "row": pa.array(range(count), pa.int32()),
                }
            ).cast(_INDEX)
        )
        parts.append(uri)
    table = pa.concat_tables(chunks) if chunks else _INDEX.empty_table()
    return TableIndex(tuple(parts), _first_of_each(table)), broken


def _first_of_each(table: pa.Table) -> pa.Table:
    ids = table.column("image_id").to_pylist()
    if len(set(ids)) == len(ids):
        return table
    seen: set[str] = set()
    keep = []
    for image_id in ids:
        keep.append(image_id not in seen)
        seen.add(image_id)
    return table.filter(pa.array(keep))


def write_index(folder: str, index: TableIndex) -> None:
    """Write `folder/index.parquet`; parts are named relative to the folder."""
    names = [uri.rsplit("/", 1)[-1] for uri in index.parts]
    table = index.table.replace_schema_metadata({"pmm.parts": json.dumps(names)})
    storage.write_bytes(storage.join(folder, "index.parquet"), tables.to_bytes(table))


def read_index(folder: str) -> TableIndex:
    """The index of a finished table folder."""
    uri = storage.join(folder, "index.parquet")
    filesystem, path = storage.resolve(uri)
    table = pq.read_table(path, filesystem=filesystem)
    names = json.loads(table.schema.metadata[b"pmm.parts"])
    return TableIndex(tuple(storage.join(folder, name) for name in names), table)


def read_all(folder: str) -> pa.Table:
    """Every row of a finished table folder, in memory: for small tables and for tests."""
    index = read_index(folder)
    parts = [tables.read_table(uri) for uri in index.parts]
    wanted: list[pa.Table] = []
    for number, part in enumerate(parts):
        rows = index.table.filter(pc.equal(index.table.column("part"), number)).column("row")
        wanted.append(part.take(rows))
    return pa.concat_tables(wanted) if wanted else pa.table({"image_id": pa.array([], pa.string())})
