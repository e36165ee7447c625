"""Parquet files of photographs and labels: which there are, their columns and rows."""

from __future__ import annotations

import json
import posixpath
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.importing.results import is_result, results_in
from pmm_ray.sources.labels import label_lines
from pmm_ray.sources.reading.names import (
    has_ending,
    is_hidden,
    path_below,
    safe_image_id,
    stem_path,
)
from pmm_ray.sources.reading.noted import note
from pmm_ray.sources.reading.split_names import is_split

LABEL_COLUMNS = ("labels", "label", "classes", "class")
ID_COLUMN = "image_id"
_IMAGE_COLUMNS = ("image", "img", "pixel_values")
_BATCH_ROWS = 64
_SHARD = re.compile(r"-\d+(-of-\d+)?$")


@dataclass(frozen=True)
class Shard:
    """A file and its columns; `split` is empty where no name tells it."""

    uri: str
    split: str
    image: str
    label: str | None
    """A column, or a field of one of structures: `objects.category`."""
    field: str
    """Empty where the labels are a column of their own."""
    others: tuple[str, ...]
    """What else could be the labels."""
    names: tuple[str, ...] | None
    """Of integer labels, from the file's metadata."""
    ids: bool
    split_column: str | None

    @property
    def label_column(self) -> str | None:
        return self.label and self.label.removesuffix(f".{self.field}")

    def labels_in(self, row: Mapping[str, Any]) -> Any:
        """The labels of a row; of a field of several objects, each of them once."""
        value = row[self.label_column] if self.label_column else None
        if not self.field:
            return value
        if isinstance(value, list):
            value = [item[self.field] for item in value if item is not None]
        elif value is not None:
            value = value[self.field]
        found = {label for label in value if label is not None} if isinstance(value, list) else None
        return value if found is None else sorted(found)


def find_files(root: str, out: str) -> list[tuple[str, str]]:
    """(uri, split) of the files, but for hidden ones and our results; no split where no name tells
    it."""
    if has_ending(root, ".parquet"):
        return [(root, _split(root))]
    there = storage.list_files(root, recursive=True)
    results = results_in(there, root, out, "parquet")
    found = []
    for uri in there:
        if not has_ending(uri, ".parquet") or is_hidden(path_below(uri, root)):
            continue
        if is_result(uri, root, results):
            continue
        folder = storage.parent(uri)
        in_root = folder in (root, storage.join(root, "data"))
        found.append((uri, _split(uri) or ("" if in_root else folder.rsplit("/", 1)[-1])))
    if not found:
        raise CannotRunError(f"no .parquet files in {root}")
    return found


def hold_photographs(root: str) -> bool:
    """Whether one of the Parquet files of a folder has a column of images, or is damaged."""
    try:
        files = find_files(root, root)
    except CannotRunError:
        return False
    return any(_has_images(uri) for uri, _ in files)


def _has_images(uri: str) -> bool:
    try:
        return _column(tables.schema_of(uri).names, _IMAGE_COLUMNS) is not None
    except (pa.ArrowInvalid, OSError):
        return True


def _split(uri: str) -> str:
    """`train-00000-of-00002.parquet` -> `train`, and so is `train-0.parquet`."""
    stem = posixpath.basename(uri).removesuffix(".parquet")
    name = _SHARD.sub("", stem)
    return name if (name != stem and "-of-" in stem) or is_split(name) else ""


def open_file(uri: str, split: str, wanted: str) -> Shard:
    """The columns of a file. Raises CannotRunError where they are not there, or not clear."""
    schema = tables.schema_of(uri)
    columns = schema.names
    image = _column(columns, _IMAGE_COLUMNS)
    if image is None:
        raise CannotRunError(
            f"{uri} has no column of images ({', '.join(_IMAGE_COLUMNS)}): there are {columns}"
        )
    choices = [name for column in columns for name in (column, *_fields(schema, column))]
    if wanted and wanted not in choices:
        raise CannotRunError(f"{uri} has no column {wanted!r}: there are {choices}")
    labels = [column for column in columns if column.casefold() in LABEL_COLUMNS]
    if len(labels) > 1 and not wanted:
        raise CannotRunError(
            f"{uri} has the columns {labels}, which may all be the labels: say which one counts "
            f"({label_lines.LABEL_COLUMN})"
        )
    label = wanted or next(iter(labels), None)
    field = "" if label is None or label in columns else label.rsplit(".", 1)[-1]
    split_column = _column(columns, label_lines.COLUMNS["split"])
    used = (image, ID_COLUMN, split_column)
    others = [n for c in columns if c not in used for n in _fields(schema, c) or [c]]
    ids = ID_COLUMN in columns
    names = _metadata_names(schema, label, field)
    shard = Shard(uri, split, image, label, field, tuple(others), names, ids, split_column)
    if shard.label_column and not field and _holds_bytes(schema.field(shard.label_column).type):
        raise CannotRunError(
            f"{uri}: the column {label!r} holds pictures, not labels: name the column of labels "
            f"({label_lines.LABEL_COLUMN}); without one, call this column otherwise"
        )
    return shard


def _inner(kind: pa.DataType) -> pa.DataType:
    """What a list is of; any other type is its own."""
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return kind.value_type if any(is_list(kind) for is_list in lists) else kind


def _fields(schema: pa.Schema, column: str) -> list[str]:
    """The plain fields of a column of structures, or of lists of them: `objects.category`."""
    kind = schema.field(column).type
    inner = _inner(kind)
    if not pa.types.is_struct(inner):
        return []
    one_list = (field.type if inner is not kind else _inner(field.type) for field in inner)
    return [
        f"{column}.{field.name}"
        for field, value in zip(inner, one_list, strict=True)
        if not pa.types.is_nested(value)
    ]


def _holds_bytes(kind: pa.DataType) -> bool:
    kind = _inner(kind)
    if pa.types.is_struct(kind):
        return any(_holds_bytes(field.type) for field in kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first column of one of these names, in any case."""
    return next((c for name in names for c in columns if c.casefold() == name), None)


def _metadata_names(schema: pa.Schema, label: str | None, field: str) -> tuple[str, ...] | None:
    """The ClassLabel names of a column, alone or in a list, from the `huggingface` metadata."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None or label is None:
        return None
    try:
        feature = json.loads(text)["info"]["features"]
        feature = feature[label.removesuffix(f".{field}")]
        while "names" not in feature:
            # Sequence(ClassLabel) is {"feature": {...}}, or a list of one in older files
            inner = 0 if isinstance(feature, list) else field if field in feature else "feature"
            feature = feature[inner]
        return tuple(str(name) for name in feature["names"])
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def shard_rows(shard: Shard) -> Iterator[dict[str, Any]]:
    """The rows, of the columns that count."""
    optional = (shard.label_column, shard.split_column, ID_COLUMN if shard.ids else None)
    yield from _batches(shard, [shard.image, *filter(None, optional)], _BATCH_ROWS)


def _batches(shard: Shard, columns: list[str], rows: int) -> Iterator[dict[str, Any]]:
    note(shard.uri)
    filesystem, path = storage.resolve(shard.uri)
    with pq.ParquetFile(path, filesystem=filesystem) as parquet:
        for batch in parquet.iter_batches(rows, columns=columns):
            yield from batch.to_pylist()


def label_values(shards: Sequence[Shard]) -> Iterator[Any]:
    """All values of the columns of labels."""
    for shard in shards:
        if column := shard.label_column:
            yield from map(shard.labels_in, _batches(shard, [column], 10_000))


class RowIds:
    """The image ids of rows: of the column `image_id`, else of the image's path or of the row.

    A name that several shards have gets the shard's path before it, for all rows of that name.

    Args:
        shards: all of them.
        root: below which they are.
    """

    def __init__(self, shards: Sequence[Shard], root: str) -> None:
        names = Counter(posixpath.basename(shard.uri) for shard in shards)
        self._whole = {shard.uri: stem_path(shard.uri, root) for shard in shards}
        self._name = {
            uri: path if names[posixpath.basename(uri)] > 1 else posixpath.basename(path)
            for uri, path in self._whole.items()
        }
        first: dict[str, str] = {}
        # that rows of several shards have, or of several splits of one
        self._shared: set[str] = set()
        self._same_names: set[str] = set()
        for shard in shards:
            columns = [*filter(None, (ID_COLUMN, shard.split_column))]
            for row in _batches(shard, columns, 10_000) if shard.ids else ():
                known = _text(row[ID_COLUMN])
                place = self._place(shard, row)
                if known and first.setdefault(known, place) != place:
                    self._shared.add(known)

    def _place(self, shard: Shard, row: Mapping[str, Any]) -> str:
        split = _text(row[shard.split_column]) if shard.split_column else ""
        return posixpath.join(self._whole[shard.uri], split)

    def of_column(self, shard: Shard, row: Mapping[str, Any]) -> str:
        """The id that its column gives a row; empty where it gives none."""
        known = _text(row.get(ID_COLUMN))
        if not known:
            return ""
        place = self._place(shard, row)
        return safe_image_id(f"{place}/{known}" if known in self._shared else known)

    def shared(self, row: Mapping[str, Any]) -> str:
        """What the column says of a row, if rows of other shards say so, too; else empty."""
        known = _text(row.get(ID_COLUMN))
        return known if known in self._shared else ""

    def of_row(self, shard: Shard, number: int) -> str:
        """The id of a row that nothing names."""
        if self._name[shard.uri] != posixpath.basename(self._name[shard.uri]):
            self._same_names.add(posixpath.basename(shard.uri))
        return safe_image_id(f"{self._name[shard.uri]}-{number:07d}")

    def notes(self) -> list[str]:
        """What to say of ids that shards share."""
        said = (
            ("image ids that several shards or splits have", self._shared),
            ("names that several shards have", self._same_names),
        )
        return [
            f"{what}: {len(names)}, such as {min(names)!r}; the ids of their rows begin with the "
            "shard's path"
            for what, names in said
            if names
        ]


def _text(value: Any) -> str:
    return "" if value is None else str(value)
