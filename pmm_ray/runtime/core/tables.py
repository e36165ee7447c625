"""The Parquet tables between stages: their schemas, atomic parts, and reading by row.

A table is a folder of `part-*.parquet` files. A part appears whole or not at all. Order carries
no meaning: `image_id` is the identity.
"""

from __future__ import annotations

import hashlib
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow
from pmm_ray.runtime.core.store_faults import of_the_store, reaching

IMAGE_ID_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")

TEXT, BYTES = pa.string(), pa.large_binary()
INT16, INT32, INT64 = pa.int16(), pa.int32(), pa.int64()
FLOAT, DOUBLE = pa.float32(), pa.float64()
LABELS = pa.list_(INT16)


def columns(**types: pa.DataType) -> pa.Schema:
    """A schema: the names of the columns and their types, in order."""
    return pa.schema(list(types.items()))


_SIZE = {"height": INT32, "width": INT32}
MANIFEST = columns(
    image_id=TEXT, uri=TEXT, labels=LABELS, **_SIZE, split=TEXT, ground_truth_uri=TEXT
)
CAMS = columns(image_id=TEXT, **_SIZE, labels=LABELS, cam=BYTES, cam_height=INT32, cam_width=INT32)
MASKS = columns(
    image_id=TEXT, **_SIZE, mask_png=BYTES, foreground=FLOAT, labels=LABELS, round=INT16
)
# one row per image: the non-zero cells of its confusion matrix, flat index = truth * C + predicted
EVALUATION = columns(image_id=TEXT, split=TEXT, cells=pa.list_(INT32), counts=pa.list_(INT64))
ERRORS = columns(
    image_id=TEXT, stage=TEXT, kind=TEXT, message=TEXT, uri=TEXT, host=TEXT, process=INT64
)
# as runs wrote them before error rows had a place
ERRORS_WITHOUT_PLACE = pa.schema(
    [field for field in ERRORS if field.name not in ("host", "process")]
)

# Parts read at once: a bucket answers each in tens of milliseconds, and Arrow frees the lock.
READERS = 16
# Of a part, before compression.
_ROW_GROUP_BYTES = 4 * 1024**2
# Values that are Python objects at the same time.
_HASHED_AT_ONCE = 100_000
# Rows of a manifest row group: a worker reads one group to find the rows of its chunk.
MANIFEST_ROW_GROUP = 1024


def check_image_id(image_id: str) -> str:
    """The id itself. Raises ValueError unless it matches `IMAGE_ID_PATTERN` (never a path)."""
    if not IMAGE_ID_PATTERN.fullmatch(image_id):
        raise ValueError(
            f"image id {image_id!r} is not allowed: letters, digits, '.', '_' and '-', at most 128,"
            " starting with a letter or digit"
        )
    return image_id


def to_bytes(table: pa.Table, *, row_group_size: int | None = None) -> bytes:
    """The table as one zstd Parquet file, with checksums that our readers verify."""
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, compression="zstd", row_group_size=row_group_size, write_page_checksum=True
    )
    return bytes(sink.getvalue())


def write_rows(uri: str, rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> int:
    """Write rows as one Parquet file, atomically; returns the number of bytes."""
    table = pa.Table.from_pylist(list(rows), schema=schema)
    # a reader of few rows must not read a large part whole
    group = max(1, table.num_rows * _ROW_GROUP_BYTES // max(1, table.nbytes))
    data = to_bytes(table, row_group_size=group)
    storage.write_bytes(uri, data)
    return len(data)


def part_uri(folder: str, name: str) -> str:
    """Where the part of this name (see `chunk_name`) is in a table folder."""
    return storage.join(folder, f"part-{name}.parquet")


def write_errors(folder: str, name: str, errors: Sequence[ErrorRow]) -> int:
    """Write error rows as a part of this name, atomically; returns its bytes."""
    return write_rows(part_uri(folder, name), [error.as_dict() for error in errors], ERRORS)


def read_errors(folder: str) -> list[ErrorRow]:
    """All error rows of a folder, by image id.

    Raises:
        CannotRunError: a part is damaged, or its store fails.
    """
    with ThreadPoolExecutor(READERS) as readers:
        parts = [*readers.map(read_finished, storage.list_files(folder, ".parquet"))]
    rows = [
        ErrorRow(**({"host": "", "process": 0} | row)) for part in parts for row in part.to_pylist()
    ]
    return sorted(rows, key=lambda row: (row.image_id, row.stage))


def read_table(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """One Parquet file, or some of its columns."""
    filesystem, path = storage.resolve(uri)
    with (
        reaching(uri),
        pq.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True) as file,
    ):
        return file.read(columns=list(columns) if columns is not None else None)


def read_finished(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """`read_table` of a file that a finished stage wrote.

    Raises:
        CannotRunError: it is missing or damaged, or its store fails.
    """
    with _finished(uri):
        return read_table(uri, columns)


@contextmanager
def _finished(uri: str) -> Iterator[None]:
    """Say what to do where a file that a finished stage wrote is missing or damaged."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        missing = isinstance(error, FileNotFoundError)
        if not missing and not is_damage(error):
            raise
        raise CannotRunError(
            f"{uri} {'is missing' if missing else f'is damaged ({error})'}. Delete the "
            "summary.json of its stage and run again what made it: only what is missing or damaged "
            "is made again."
        ) from error


def is_damage(error: BaseException) -> bool:
    """Whether an error of reading a Parquet file is about its content.

    Errors of the disk or the system (no such file, input/output error) have a number; those of
    Arrow about content have none. What a store says is never about content.
    """
    if isinstance(error, OSError):
        return error.errno is None and not of_the_store(error)
    return isinstance(error, (pa.ArrowException, KeyError))


def chunk_name(image_ids: Iterable[str]) -> str:
    """The name of the part that holds just these images: the same ids give the same name.

    A task that runs twice therefore overwrites its own file instead of adding a second one.
    """
    digest = hashlib.sha256("\n".join(sorted(image_ids)).encode()).hexdigest()
    return digest[:20]


@lru_cache(maxsize=8)
def _row_group_bounds(uri: str, version: tuple[int | None, ...]) -> tuple[int, ...]:
    filesystem, path = storage.resolve(uri)
    with pq.ParquetFile(path, filesystem=filesystem) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
    return tuple(accumulate(sizes, initial=0))


@lru_cache(maxsize=2)
def _row_group(uri: str, version: tuple[int | None, ...], group: int) -> pa.Table:
    filesystem, path = storage.resolve(uri)
    with pq.ParquetFile(path, filesystem=filesystem, page_checksum_verification=True) as file:
        return file.read_row_group(group)


def read_rows(uri: str, rows: Sequence[int]) -> list[dict[str, Any]]:
    """Rows of one Parquet file by position, in the order asked for.

    Only the row groups that hold them are read; the last two stay cached in the process.

    Raises:
        CannotRunError: the file was deleted or damaged after its stage was done, or its store
            fails.
    """
    out: list[dict[str, Any]] = []
    with _finished(uri), reaching(uri):
        version = storage.version(uri)
        bounds = _row_group_bounds(uri, version)
        for row in rows:
            group = bisect_right(bounds, row) - 1
            table = _row_group(uri, version, group)
            out.append(table.slice(row - bounds[group], 1).to_pylist()[0])
    return out


def schema_of(uri: str) -> pa.Schema:
    """The schema of a Parquet file, with its key-value metadata."""
    filesystem, path = storage.resolve(uri)
    with reaching(uri):
        return pq.read_schema(path, filesystem=filesystem)


def metadata_of(schema: pa.Schema) -> dict[str, str]:
    """The key-value metadata of a schema."""
    return {key.decode(): value.decode() for key, value in (schema.metadata or {}).items()}


def table_metadata(uri: str) -> dict[str, str]:
    """The key-value metadata of a Parquet file's schema."""
    return metadata_of(schema_of(uri))


def content_hash(table: pa.Table) -> str:
    """A hash of the rows that does not depend on their order or on how they were split in files."""
    table = table.combine_chunks().sort_by("image_id")
    digest = hashlib.sha256(json.dumps(table.column_names).encode())
    for name in table.column_names:
        column = table.column(name)
        for start in range(0, len(column), _HASHED_AT_ONCE):
            for value in column.slice(start, _HASHED_AT_ONCE).to_pylist():
                digest.update(repr(value).encode())
                digest.update(b"\x00")
    return digest.hexdigest()
