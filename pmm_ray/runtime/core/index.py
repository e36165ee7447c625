"""Which row of which file holds an image: the small table that stages find each other's rows by.

A finished table folder has an `index.parquet` (image_id, part, row), so no later stage lists a
folder or reads bytes it does not need. A manifest is a single file and its own index. A stage that
goes on does not use it: it lists the parts, see `mapping.ledger`.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pmm_ray.runtime.core import storage, tables

_INDEX = pa.schema([("image_id", pa.string()), ("part", pa.int32()), ("row", pa.int32())])
_PARTS_KEY, _SCHEMA_KEY = b"pmm.parts", b"pmm.schema"


Ids: TypeAlias = "pa.Array | pa.ChunkedArray | Iterable[str]"
"""Image ids; millions of them are an Arrow column, since Python strings take ten times as much."""


def id_column(image_ids: Ids) -> pa.ChunkedArray:
    """The ids as an Arrow column."""
    if isinstance(image_ids, pa.ChunkedArray):
        return image_ids
    column = image_ids if isinstance(image_ids, pa.Array) else pa.array([*image_ids], pa.string())
    return pa.chunked_array([column], pa.string())


def ids_hash(image_ids: Ids) -> str:
    """Eight hex digits over a set of images, in whatever order they come."""
    ids = id_column(image_ids).cast(pa.large_string()).combine_chunks()
    ids = ids.take(pc.sort_indices(ids))
    lengths = pc.binary_length(ids).to_numpy(zero_copy_only=False)
    digest = hashlib.sha256(lengths.astype("<i8").tobytes())
    digest.update(memoryview(ids.buffers()[2] or b"")[: int(lengths.sum())])
    return digest.hexdigest()[:8]


def ids_without(image_ids: Ids, left_out: Ids) -> pa.ChunkedArray:
    """The ids that are not among others, in their order."""
    column = id_column(image_ids)
    return column.filter(pc.invert(pc.is_in(column, value_set=id_column(left_out))))


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
    def ids(self) -> pa.ChunkedArray:
        return self.table.column("image_id")

    @property
    def image_ids(self) -> list[str]:
        """As Python strings: for what a stage does with few images, or once."""
        return self.ids.to_pylist()

    def places(self, image_ids: Ids) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Part and row of each of these images. Raises KeyError where one is not in the table."""
        wanted = id_column(image_ids)
        at = pc.index_in(wanted, value_set=self.ids)
        if at.null_count:
            raise KeyError(wanted.filter(pc.is_null(at))[0].as_py())
        places = self.table.select(["part", "row"]).take(at)
        return places.column("part").to_numpy(), places.column("row").to_numpy()

    def locations(self) -> dict[str, tuple[str, int]]:
        """image_id -> (file uri, row)."""
        ids, parts, rows = (self.table.column(name).to_pylist() for name in _INDEX.names)
        return {i: (self.parts[part], row) for i, part, row in zip(ids, parts, rows, strict=True)}

    def rows_of_parts(self) -> list[NDArray[np.int32]]:
        """The rows of each part, ascending."""
        table = self.table.select(["part", "row"]).sort_by(
            [("part", "ascending"), ("row", "ascending")]
        )
        parts, rows = (table.column(name).to_numpy() for name in ("part", "row"))
        bounds = np.searchsorted(parts, np.arange(len(self.parts) + 1))
        return [rows[begin:end] for begin, end in pairwise(bounds)]

    def select(self, image_ids: Ids) -> TableIndex:
        """The part of the index about these images."""
        keep = pc.is_in(self.ids, value_set=id_column(image_ids))
        return TableIndex(self.parts, self.table.filter(keep))


def index_file(
    uri: str, keep: Mapping[str, Sequence[str]] | None = None, *, labelled: bool = False
) -> TableIndex:
    """Index of one Parquet file such as a manifest.

    Args:
        keep: column -> allowed values, for example `{"split": ["train"]}`.
        labelled: leave out rows without labels.
    """
    keep = keep or {}
    table = tables.read_table(uri, ["image_id", *keep, *(["labels"] if labelled else [])])
    rows = np.arange(table.num_rows, dtype=np.int32)
    index = table_of(table.column("image_id"), np.zeros_like(rows), rows)
    for column, values in keep.items():
        mask = pc.is_in(table.column(column), value_set=pa.array(list(values)))
        index, table = index.filter(mask), table.filter(mask)
    if labelled:
        has_label = pc.greater(pc.list_value_length(table.column("labels")), 0)
        index = index.filter(pc.fill_null(has_label, False))
    return TableIndex((uri,), index)


def part_files(folder: str) -> list[str]:
    """Sorted uris of a table folder's parts."""
    return [uri for uri in storage.list_files(folder, ".parquet") if is_part(uri)]


def is_part(uri: str) -> bool:
    """Whether a file is a part of a table, by its name."""
    return uri.rsplit("/", 1)[-1].startswith("part-")


def table_of(image_ids: Ids, parts: NDArray[np.int32], rows: NDArray[np.int32]) -> pa.Table:
    """The table of a `TableIndex`."""
    return pa.table([id_column(image_ids), pa.array(parts), pa.array(rows)], schema=_INDEX)


def index_of(parts: Sequence[tuple[str, pa.ChunkedArray]]) -> TableIndex:
    """The index of files whose ids are known; an image in two of them is kept in the first."""
    sizes = np.array([len(ids) for _, ids in parts], np.int64)
    chunks = [chunk for _, ids in parts for chunk in ids.chunks]
    ids = pa.chunked_array(chunks, pa.string())
    number = np.repeat(np.arange(len(parts), dtype=np.int32), sizes)
    starts = np.repeat(np.cumsum(sizes) - sizes, sizes)
    rows = (np.arange(len(ids)) - starts).astype(np.int32)
    table = table_of(ids, number, rows)
    first = pc.index_in(ids, value_set=ids).to_numpy() == np.arange(len(ids))
    if not first.all():
        table = table.filter(pa.array(first))
    return TableIndex(tuple(uri for uri, _ in parts), table)


Parts = list[tuple[str, pa.ChunkedArray]]
"""Uris of parts, each with its image ids in order of rows."""


def read_parts(
    uris: Sequence[str], schema: pa.Schema | None = None, *earlier: pa.Schema
) -> tuple[Parts, list[str]]:
    """The ids of parts.

    Args:
        uris: of the parts.
        schema: of parts that tasks wrote: they are read whole, and one with another schema or
            without rows is damaged. None: of any parts only the ids are read.
        earlier: schemas that such parts may have, too.

    Returns:
        The parts with their ids, in the order given; and the uris of damaged parts.

    Raises:
        OSError, CannotRunError: the disk or the store, not a part, is at fault.
    """

    def ids_of(uri: str) -> pa.ChunkedArray | None:
        try:
            table = tables.read_table(uri, None if schema is not None else ["image_id"])
            ids = table.column("image_id")
        except (OSError, pa.ArrowException, KeyError) as error:
            if not tables.is_damage(error):
                raise
            return None
        if schema is None or (len(ids) and any(map(table.schema.equals, (schema, *earlier)))):
            return ids
        return None

    with ThreadPoolExecutor(tables.READERS) as readers:
        found = list(zip(uris, readers.map(ids_of, uris), strict=True))
    whole = [(uri, ids) for uri, ids in found if ids is not None]
    return whole, [uri for uri, ids in found if ids is None]


def scan_parts(folder: str) -> tuple[TableIndex, list[str]]:
    """Index a folder without an `index.parquet`, and the uris of parts that cannot be read.

    An image in two parts is kept once: parts are visited in order of name, so that
    every reader keeps the same one.
    """
    parts, broken = read_parts(part_files(folder))
    return index_of(parts), broken


def write_index(folder: str, index: TableIndex, schema: pa.Schema | None = None) -> None:
    """Write `folder/index.parquet`; parts are named relative to the folder.

    Args:
        schema: of the table. Without a part, as every image failed, nothing else tells it.
    """
    names = [uri.rsplit("/", 1)[-1] for uri in index.parts]
    metadata = {_PARTS_KEY: json.dumps(names).encode()}
    if schema is not None:
        metadata[_SCHEMA_KEY] = base64.b64encode(schema.serialize().to_pybytes())
    table = index.table.replace_schema_metadata(metadata)
    storage.write_bytes(storage.join(folder, "index.parquet"), tables.to_bytes(table))


def read_index(folder: str) -> TableIndex:
    """The index of a finished table folder. Raises CannotRunError: it is missing or damaged."""
    return _read_index(folder)[0]


def _read_index(folder: str) -> tuple[TableIndex, pa.Schema | None]:
    table = tables.read_finished(storage.join(folder, "index.parquet"))
    metadata = table.schema.metadata
    names = json.loads(metadata[_PARTS_KEY])
    packed = metadata.get(_SCHEMA_KEY)
    schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(packed))) if packed else None
    return TableIndex(tuple(storage.join(folder, name) for name in names), table), schema


def read_all(folder: str, columns: Sequence[str] | None = None) -> pa.Table:
    """Every row of a finished table folder, in memory: for small tables or columns, and for tests.

    A table without rows has its columns all the same.
    """
    index, schema = _read_index(folder)
    if index.parts:
        with ThreadPoolExecutor(tables.READERS) as readers:
            wanted = readers.map(
                lambda uri, rows: tables.read_finished(uri, columns).take(pa.array(rows)),
                *(index.parts, index.rows_of_parts()),
            )
            return pa.concat_tables(wanted)
    empty = (schema or pa.schema([("image_id", pa.string())])).empty_table()
    return empty if columns is None else empty.select(list(columns))
