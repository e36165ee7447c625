"""Photographs and labels in Parquet files, as Hugging Face's `datasets` stores them.

    ROOT/train-00000-of-00002.parquet    also ROOT/data/..., ROOT/SPLIT/*.parquet, or one file
        image: struct<bytes: binary, path: string>     or plain bytes
        label, labels, class or classes, or the column that `data.label_column` names: an integer,
        a string, a list of either, or a list of 0 and 1 a class
        split or subset, optional; else the file's name or that of its folder tells the split

Integers are positions in the names that the file's `huggingface` metadata gives (ClassLabel), else
0, 1, 2, ... The bytes of each image become a file `images/ID.ext` beside the manifest; its id is
made from the image's path, else from the split and the row. EXIF orientation is applied. Our own
results below ROOT are left out.
"""

from __future__ import annotations

import io
import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pmm_ray.labels import normalize_name
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.rows.images import MAX_PIXELS
from pmm_ray.sources import label_lines
from pmm_ray.sources.import_report import ImportReport, reads_source
from pmm_ray.sources.importing import Importer
from pmm_ray.sources.label_columns import ColumnLabels, read_column
from pmm_ray.sources.label_files import class_list
from pmm_ray.sources.label_lines import DEFAULT_SPLIT
from pmm_ray.sources.names import has_ending, safe_image_id, stem_path
from pmm_ray.sources.photographs import is_result, result_folders
from pmm_ray.sources.split_names import is_split

_IMAGE_COLUMNS = ("image", "img", "pixel_values")
_LABEL_COLUMNS = ("labels", "label", "classes", "class")
_ID_COLUMN = "image_id"
_BATCH_ROWS = 64
_SHARD = re.compile(r"-\d+(-of-\d+)?$")


@dataclass(frozen=True)
class _File:
    uri: str
    split: str
    image: str
    label: str | None
    names: tuple[str, ...] | None
    """Of integer labels, from the file's metadata."""
    ids: bool
    split_column: str | None


@reads_source
def import_parquet(
    root: str,
    out: str,
    *,
    label_column: str = "",
    class_names: Sequence[str] | None = None,
    max_pixels: int = MAX_PIXELS,
) -> ImportReport:
    """Write the manifest of Parquet files and their photographs as files.

    Args:
        root: a `.parquet` file, or a folder of them; a file's split is its name without the
            shard's number, or that of its folder; a column `split` or `subset` may say it instead.
        out: folder that gets `manifest.parquet`, `errors/` and `images/`.
        label_column: default: `labels`, `label`, `classes` or `class`, the only one that is there;
            without it all photographs are unlabelled.
        class_names: the classes in the order of their ids; default: the metadata's, else the
            labels found, strings sorted and integers as `0`, `1`, ...
        max_pixels: a photograph that declares more becomes an error row.

    Raises:
        CannotRunError: no such files, or columns that are not there.
        ValueError: class names that make no label space.
    """
    root, out = storage.absolute(root), storage.absolute(out)
    files: list[_File] = []
    broken: dict[str, str] = {}
    for uri, split in _find(root, out):
        try:
            files.append(_open(uri, split, label_column))
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and not tables.is_damage(error):
                raise
            broken[uri] = f"it cannot be read as a Parquet file: {error}"
    if not files:
        uri, text = next(iter(broken.items()))
        raise CannotRunError(f"{uri}: {text}")
    lacking = [file.uri for file in files if file.label is None]
    if 0 < len(lacking) < len(files):
        known = label_column or ", ".join(_LABEL_COLUMNS)
        raise CannotRunError(
            f"{lacking[0]} has no column of labels ({known}), and other files have one: give it "
            "the same name in all"
        )
    read = _read_labels(files)
    if class_names is not None:
        read = replace(read, names=tuple(map(normalize_name, class_names)))
    classes = class_list(read.names, "parquet")
    importer = Importer(out, classes.space, source="parquet", exif="apply", max_pixels=max_pixels)
    columns = sorted({file.label for file in files if file.label is not None})
    importer.labels_from = f"column {', '.join(columns)}, {read.form}" if columns else "none"
    importer.background = classes.background
    seen: set[str] = set()
    found = len(broken)
    for uri, text in broken.items():
        importer.fail(safe_image_id(stem_path(uri, root)), "decode", text, uri)
    for file in files:
        for number, row in enumerate(_rows(file)):
            found += 1
            _add(importer, file, number, row, read, root, seen)
    return importer.finish(found=found)


def _find(root: str, out: str) -> list[tuple[str, str]]:
    """(uri, split) of the files, but for our results; no split where no name tells it."""
    if has_ending(root, ".parquet"):
        return [(root, _split(root))]
    there = storage.list_files(root, recursive=True)
    results = result_folders(there, out)
    found = []
    for uri in there:
        if not has_ending(uri, ".parquet") or is_result(uri, root, results):
            continue
        folder = storage.parent(uri)
        in_root = folder in (root, storage.join(root, "data"))
        found.append((uri, _split(uri) or ("" if in_root else folder.rsplit("/", 1)[-1])))
    if not found:
        raise CannotRunError(f"no .parquet files in {root}")
    return found


def _split(uri: str) -> str:
    """`train-00000-of-00002.parquet` -> `train`, and so is `train-0.parquet`."""
    stem = posixpath.basename(uri).removesuffix(".parquet")
    name = _SHARD.sub("", stem)
    return name if (name != stem and "-of-" in stem) or is_split(name) else ""


def _open(uri: str, split: str, wanted: str) -> _File:
    filesystem, path = storage.resolve(uri)
    schema = pq.read_schema(path, filesystem=filesystem)
    columns = schema.names
    image = _column(columns, _IMAGE_COLUMNS)
    if image is None:
        raise CannotRunError(
            f"{uri} has no column of images ({', '.join(_IMAGE_COLUMNS)}): there are {columns}"
        )
    if wanted and wanted not in columns:
        raise CannotRunError(f"{uri} has no column {wanted!r}: there are {columns}")
    labels = [column for column in columns if column.casefold() in _LABEL_COLUMNS]
    if len(labels) > 1 and not wanted:
        raise CannotRunError(
            f"{uri} has the columns {labels}, which may all be the labels: say which one counts "
            f"({label_lines.LABEL_COLUMN})"
        )
    label = wanted or next(iter(labels), None)
    names = _metadata_names(schema, label)
    split_column = _column(columns, label_lines.COLUMNS["split"])
    return _File(uri, split, image, label, names, _ID_COLUMN in columns, split_column)


def _column(columns: Sequence[str], names: Sequence[str]) -> str | None:
    """The first column of one of these names, in any case."""
    return next((c for name in names for c in columns if c.casefold() == name), None)


def _metadata_names(schema: pa.Schema, label: str | None) -> tuple[str, ...] | None:
    """The ClassLabel names of a column, alone or in a list, from the `huggingface` metadata."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None or label is None:
        return None
    try:
        feature = json.loads(text)["info"]["features"][label]
        while "names" not in feature:
            # Sequence(ClassLabel) is {"feature": {...}}, or a list of one in older files
            feature = feature[0] if isinstance(feature, list) else feature["feature"]
        return tuple(str(name) for name in feature["names"])
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _rows(file: _File) -> Iterator[dict[str, Any]]:
    optional = (file.label, file.split_column, _ID_COLUMN if file.ids else None)
    columns = [file.image, *filter(None, optional)]
    filesystem, path = storage.resolve(file.uri)
    with pq.ParquetFile(path, filesystem=filesystem) as parquet:
        for batch in parquet.iter_batches(_BATCH_ROWS, columns=columns):
            yield from batch.to_pylist()


def _read_labels(files: Sequence[_File]) -> ColumnLabels:
    """How the label columns of all files are to be read, from all their values.

    Raises:
        CannotRunError: files that contradict one another, see `read_column`.
    """
    named = {file.names for file in files if file.names is not None}
    if len(named) > 1:
        raise CannotRunError("the files name different classes in their metadata")
    return read_column(_values(files), named.pop() if named else None)


def _values(files: Sequence[_File]) -> Iterator[Any]:
    for file in files:
        if file.label is None:
            continue
        filesystem, path = storage.resolve(file.uri)
        with pq.ParquetFile(path, filesystem=filesystem) as parquet:
            for batch in parquet.iter_batches(10_000, columns=[file.label]):
                yield from batch.column(0).to_pylist()


def _add(
    importer: Importer,
    file: _File,
    number: int,
    row: dict[str, Any],
    read: ColumnLabels,
    root: str,
    seen: set[str],
) -> None:
    """One row of one file: its image as a file, and a row of the manifest."""
    if all(value in (None, "", b"", []) for value in row.values()):
        importer.leave_out("empty rows", f"{posixpath.basename(file.uri)} row {number}")
        return
    image = row[file.image]
    # a text is the path of a file
    path: Any = image if isinstance(image, str) else ""
    data = None if isinstance(image, str) else image
    if isinstance(image, dict):
        data, path = image.get("bytes"), image.get("path")
    shard = posixpath.basename(file.uri).removesuffix(".parquet")
    known = row.get(_ID_COLUMN)
    name = ("" if known is None else str(known)) or posixpath.splitext(str(path or ""))[0]
    image_id = safe_image_id(name) if name else safe_image_id(f"{shard}-{number:07d}")
    if image_id in seen and row.get(_ID_COLUMN) is None:
        # paths are unique within a folder of origin, not within a data set
        image_id = safe_image_id(f"{shard}-{number:07d}")
    if image_id in seen:
        importer.fail(image_id, "label", "the image id occurs twice; the first one stays")
        return
    seen.add(image_id)
    labels = partial(read.ids, row.get(file.label) if file.label else None)
    split = str(row.get(file.split_column or "") or file.split or DEFAULT_SPLIT)
    if is_split(file.split) and file.split != split:
        text = f"its column says split {split!r}, its file {file.split!r}: keep one of them"
        importer.fail(image_id, "label", text, file.uri)
        return
    try:
        uri = _photograph(data, path, importer.out, image_id, root)
    except ValueError as error:
        importer.fail(image_id, "missing", str(error), file.uri)
        return
    importer.add(image_id, uri, split, labels)


def _photograph(data: Any, path: str | None, out: str, image_id: str, root: str) -> str:
    """The uri of the image's file: written from its bytes, or the one that its path names."""
    if isinstance(data, bytes):
        uri = storage.join(out, "images", f"{image_id}{_suffix(data)}")
        storage.write_bytes(uri, data)
        return uri
    if not path:
        raise ValueError("the row has neither the image's bytes nor its path")
    if path.startswith("/") or storage.is_remote(path):
        raise ValueError(f"the row has no bytes, and its path leaves the data set: {path}")
    folder = storage.parent(root) if root.endswith(".parquet") else root
    return storage.join(folder, path)


def _suffix(data: bytes) -> str:
    """By content: `.jpg`, `.png`, ...; what is no image keeps no ending and fails as such."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = (image.format or "").lower()
    # Pillow raises nearly any type on a damaged file; the importer says what is wrong
    except Exception:
        return ".bin"
    return {"jpeg": ".jpg", "mpo": ".jpg", "tiff": ".tif"}.get(kind, f".{kind}")
