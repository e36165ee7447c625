"""Photographs and labels in Parquet files, as Hugging Face's `datasets` stores them.

    ROOT/train-00000-of-00002.parquet    also ROOT/data/..., ROOT/SPLIT/*.parquet, or one file
        image: struct<bytes: binary, path: string>     or plain bytes
        label, labels, class or classes, or the column that `data.label_column` names, or field of
        structures (`objects.category`): an integer, a string, a list of either, or a list of 0 and
        1 a class
        split or subset, optional; else the file's name or that of its folder tells the split

Integers are positions in the names that the file's `huggingface` metadata gives (ClassLabel), else
0, 1, 2, ... The bytes of each image become a file `images/ID.ext` beside the manifest; its id is
that of the column `image_id`, else made from the image's path, else from the shard and the row. An
id that rows of several shards have gets the shard's path before it. A row without bytes names a
file below ROOT, looked for as those of `coco` are; a file that two rows name is an error of both.
EXIF orientation is applied. Hidden files and our own results are left out, not what stands beside
them.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa
from PIL import Image

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.rows.images import MAX_PIXELS
from pmm_ray.sources.datasets.parquet_files import (
    LABEL_COLUMNS,
    RowIds,
    Shard,
    find_files,
    label_values,
    open_file,
    shard_rows,
)
from pmm_ray.sources.importing.import_report import ImportReport, reads_source
from pmm_ray.sources.importing.importer import Importer
from pmm_ray.sources.importing.places import Places, Wanted, find_wanted
from pmm_ray.sources.labels.label_columns import ColumnLabels, read_column
from pmm_ray.sources.labels.label_files import class_list
from pmm_ray.sources.labels.label_lines import DEFAULT_SPLIT, LABEL_COLUMN
from pmm_ray.sources.reading.names import has_ending, safe_image_id, stem_path
from pmm_ray.sources.reading.split_names import is_split, same_split


@reads_source
def import_parquet(
    root: str,
    out: str,
    *,
    label_column: str = "",
    max_pixels: int = MAX_PIXELS,
) -> ImportReport:
    """Write the manifest of Parquet files and their photographs as files.

    The classes are those of the metadata, else the labels found: strings sorted, integers as `0`,
    `1`, ...

    Args:
        root: a `.parquet` file, or a folder of them; a file's split is its name without the
            shard's number, or that of its folder; a column `split` or `subset` may say it instead.
        out: folder that gets `manifest.parquet`, `errors/` and `images/`.
        label_column: default: `labels`, `label`, `classes` or `class`, the only one that is there;
            without it all photographs are unlabelled, and the other columns are named. It may be
            a field of a column of structures, or of lists of them: `objects.category`.
        max_pixels: a photograph that declares more becomes an error row.

    Raises:
        CannotRunError: no such files, or columns that are not there.
        ValueError: class names that make no label space.
    """
    root, out = storage.absolute(root), storage.absolute(out)
    files: list[Shard] = []
    broken: dict[str, str] = {}
    for uri, split in find_files(root, out):
        try:
            files.append(open_file(uri, split, label_column))
        except (pa.ArrowInvalid, OSError) as error:
            if isinstance(error, OSError) and not tables.is_damage(error):
                raise
            broken[uri] = f"it cannot be read as a Parquet file: {error}"
    if not files:
        uri, text = next(iter(broken.items()))
        raise CannotRunError(f"{uri}: {text}")
    lacking = [file.uri for file in files if file.label is None]
    if 0 < len(lacking) < len(files):
        known = label_column or ", ".join(LABEL_COLUMNS)
        raise CannotRunError(
            f"{lacking[0]} has no column of labels ({known}), and other files have one: give it "
            "the same name in all"
        )
    nameless = [file.uri for file in files if not (file.split or file.split_column)]
    named = [file.uri for file in files if is_split(file.split) and not file.split_column]
    if nameless and named:
        raise CannotRunError(
            f"{nameless[0]} is not called as a split is, and {named[0]} is: call it `train`, `val` "
            "or `test`, or give it a column split"
        )
    read = _read_labels(files)
    classes = class_list(read.names, "parquet")
    importer = Importer(out, classes.space, source="parquet", exif="apply", max_pixels=max_pixels)
    columns = sorted({file.label for file in files if file.label is not None})
    importer.labels_from = f"column {', '.join(columns)}, {read.form}" if columns else "none"
    importer.background = classes.background
    others = sorted({name for file in files for name in file.others})
    if not columns and others:
        more = f" and {len(others) - 20} more" if len(others) > 20 else ""
        importer.notes.append(
            f"no column is called as labels are ({', '.join(LABEL_COLUMNS)}); if they are in one "
            f"of {', '.join(others[:20])}{more}, say which ({LABEL_COLUMN})"
        )
    found = len(broken)
    for uri, text in broken.items():
        importer.fail(safe_image_id(stem_path(uri, root)), "decode", text, uri)
    folder = storage.parent(root) if has_ending(root, ".parquet") else root
    places = Places([folder], out, "parquet")
    rows = _Rows(importer, RowIds(files, root), read, places)
    for file in files:
        for number, row in enumerate(shard_rows(file)):
            found += 1
            rows.add(file, number, row)
    rows.finish()
    importer.notes += rows.ids.notes()
    return importer.finish(found=found)


def _read_labels(files: Sequence[Shard]) -> ColumnLabels:
    """How the label columns of all files are to be read, from all their values.

    Raises:
        CannotRunError: files that contradict one another, see `read_column`.
    """
    named = {file.names for file in files if file.names is not None}
    if len(named) > 1:
        raise CannotRunError("the files name different classes in their metadata")
    try:
        return read_column(label_values(files), named.pop() if named else None)
    except CannotRunError as error:
        raise CannotRunError(f"{files[0].uri}, column {files[0].label!r}: {error}") from error


@dataclass
class _Rows:
    """Turns rows into images; those that name files wait for one another."""

    importer: Importer
    ids: RowIds
    read: ColumnLabels
    places: Places
    _seen: set[str] = field(default_factory=set)
    _copies: set[tuple[str, str]] = field(default_factory=set)
    _named: list[tuple[str, Wanted, Callable[[], list[int]]]] = field(default_factory=list)
    """(image id, file, labels) of rows that name a file and do not hold it."""

    def add(self, file: Shard, number: int, row: dict[str, Any]) -> None:
        """One row of one file: its bytes as a file, and a row of the manifest."""
        place = f"{posixpath.basename(file.uri)} row {number}"
        if all(value in (None, "", b"", []) for value in row.values()):
            self.importer.leave_out("empty rows", place)
            return
        image = row[file.image]
        # a text is the path of a file
        path: Any = image if isinstance(image, str) else ""
        data = None if isinstance(image, str) else image
        if isinstance(image, dict):
            data, path = image.get("bytes"), image.get("path")
        image_id = self.ids.of_column(file, row)
        if not image_id and path:
            image_id = safe_image_id(posixpath.splitext(str(path))[0])
            if isinstance(data, bytes) and image_id in self._seen:
                # paths are unique within a folder of origin, not within a data set
                image_id = ""
        image_id = image_id or self.ids.of_row(file, number)
        split = str(row.get(file.split_column or "") or file.split or DEFAULT_SPLIT)
        labels = partial(self.read.ids, file.labels_in(row))
        if is_split(file.split) and not same_split(file.split, split):
            text = f"its column says split {split!r}, its file {file.split!r}: keep one of them"
            self.importer.fail(image_id, "label", text, file.uri)
        elif isinstance(data, bytes):
            self._add_bytes(image_id, data, split, labels, file, self.ids.shared(row))
        elif path:
            wanted = Wanted(str(path), place, self.places, split)
            self._named.append((image_id, wanted, labels))
        else:
            text = "the row has neither the image's bytes nor its path"
            self.importer.fail(image_id, "missing", text, file.uri)

    def _add_bytes(
        self,
        image_id: str,
        data: bytes,
        split: str,
        labels: Callable[[], list[int]],
        file: Shard,
        shared: str,
    ) -> None:
        """A row that holds its photograph; `shared` is its id where other shards have it, too."""
        # one photograph in two shards stays one
        copies = {(shared, hashlib.sha256(data).hexdigest())} if shared else set()
        if image_id in self._seen or copies & self._copies:
            text = "the image id occurs twice; the first one stays"
            self.importer.fail(image_id, "label", text, file.uri)
            return
        self._seen.add(image_id)
        self._copies |= copies
        uri = storage.join(self.importer.out, "images", f"{image_id}{_suffix(data)}")
        storage.write_bytes(uri, data)
        self.importer.add(image_id, uri, split, labels)

    def finish(self) -> None:
        """Find the files that rows name."""
        photographs = find_wanted(dict(enumerate(wanted for _, wanted, _ in self._named)))
        for number, (image_id, wanted, labels) in enumerate(self._named):
            photograph = photographs[number]
            if isinstance(photograph, RowError):
                self.importer.fail(image_id, photograph.kind, photograph.message, photograph.uri)
            else:
                self.importer.add(image_id, photograph, wanted.split, labels)
        self.importer.notes += self.places.notes()


def _suffix(data: bytes) -> str:
    """By content: `.jpg`, `.png`, ...; what is no image keeps no ending and fails as such."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            kind = (image.format or "").lower()
    # Pillow raises nearly any type on a damaged file; the importer says what is wrong
    except Exception:
        return ".bin"
    return {"jpeg": ".jpg", "mpo": ".jpg", "tiff": ".tif"}.get(kind, f".{kind}")
