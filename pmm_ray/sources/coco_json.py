"""COCO-style JSON, streamed: never more of the file in memory than one of its objects.

The annotations of an image may stand anywhere in the file. `ObjectSpill` collects those of each
image through files on disk, so that memory does not grow with their number.
"""

from __future__ import annotations

import codecs
import contextlib
import hashlib
import math
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pmm_ray.labels import normalize_name
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import scan_parts, write_index
from pmm_ray.sources.names import join_key
from pmm_ray.sources.text import encoding_of

_BUFFER_BYTES = 1 << 20
# what stands where a value may; `-Infinity` is the longest
_NO_NUMBER = re.compile(rb"([:\[,]\s*)(?:NaN|-?Infinity)(?=\s*[,\]}])")
# the end of a piece of the file where such a word may go on in the next
_UNFINISHED = re.compile(rb"[:\[,]\s*(?:-|-?[NI][A-Za-z]*\s*)?\Z")
_LONGEST = 64
# annotations kept in memory before they are spilled
_SPILL_ROWS = 20_000
# images in a part of the objects table, and the most parts: each is an open file while reading
_PART_IMAGES, _MOST_PARTS = 512, 200

_OBJECT_FIELDS = [
    ("label", pa.int16()),
    ("crowd", pa.bool_()),
    ("polygons", pa.list_(pa.list_(pa.float64()))),
    ("counts", pa.list_(pa.int64())),
    ("rle", pa.string()),
]
OBJECT = pa.struct(_OBJECT_FIELDS)
"""One annotated object: polygons (x, y, x, y, ... in px), or run lengths, or COCO's packed ones.
Of an object without an outline the polygon is its box, and the label `NO_OUTLINE`."""
NO_OUTLINE = 0

OBJECTS = pa.schema([("image_id", pa.string()), ("objects", pa.list_(OBJECT))])
"""One row per image: its objects in the order of the file."""


@dataclass(frozen=True)
class CocoImage:
    """An entry of `images`; `fault` says what it lacks. Sizes are 0 where it states none."""

    key: str
    file_name: str
    height: int
    width: int
    split: str = ""
    """Not in the official files; own ones may name a split for each image."""
    fault: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), px; (0, 0) where the entry does not state both."""
        return (self.height, self.width) if self.height and self.width else (0, 0)


@dataclass(frozen=True)
class Category:
    """An entry of `categories`; `key` is its id as `join_key` gives it."""

    key: str
    name: str
    parent: str = ""

    @property
    def number(self) -> int | None:
        return int(self.key) if self.key.isdecimal() else None


def read_images(uri: str) -> list[CocoImage]:
    """The entries of `images`, in the order of the file.

    Raises:
        CannotRunError: no such file, not JSON, or none with an id and a file_name.
    """
    images = [_image(entry, position) for position, entry in enumerate(_items(uri, "images.item"))]
    if not images:
        raise CannotRunError(f"{uri} has no list `images`: it is not a COCO annotation file")
    if all(image.fault for image in images):
        raise CannotRunError(f"{uri}: {images[0].fault}")
    return images


def _image(entry: Any, position: int) -> CocoImage:
    try:
        height, width = (int(entry.get(side) or 0) for side in ("height", "width"))
        name = entry["file_name"]
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"file_name {name!r}")
        split = str(entry.get("split") or "")
        return CocoImage(join_key(entry["id"]), name, height, width, split)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        fault = (
            f"entry {position} of `images` needs id and file_name: {type(error).__name__} {error}"
        )
        return CocoImage("", f"entry-{position}", 0, 0, fault=fault)


def read_categories(uri: str) -> list[Category]:
    """The entries of `categories`. Raises CannotRunError if there are none, or an id twice."""
    found: dict[str, Category] = {}
    for entry in _items(uri, "categories.item"):
        try:
            key, name = join_key(entry["id"]), normalize_name(str(entry["name"]))
            if entry["name"] is None:
                raise ValueError("no name")
            parent = normalize_name(str(entry.get("supercategory") or ""))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CannotRunError(f"{uri}: an entry of `categories` lacks id or name") from error
        if found.setdefault(key, Category(key, name, parent)).name != name:
            raise CannotRunError(f"{uri}: the category id {key} occurs twice")
    if not found:
        raise CannotRunError(f"{uri} has no list `categories`: it is not a COCO annotation file")
    return list(found.values())


def used_categories(uri: str) -> set[str]:
    """The keys of the categories that an annotation has."""
    used = set()
    for value in _items(uri, "annotations.item.category_id"):
        with contextlib.suppress(ValueError):
            used.add(join_key(value))
    return used


def read_annotations(uri: str) -> Iterator[Any]:
    """The entries of `annotations` as they stand, one after another."""
    yield from _items(uri, "annotations.item")


class _Cleaned:
    """A stream of JSON without what other programs put in: byte order marks, NaN, Infinity.

    JSON knows no such numbers and Python writes them; they become null.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._decoder: codecs.IncrementalDecoder | None = None
        self._rest = b""
        self._begun = False

    def read(self, size: int = -1) -> bytes:
        if size == 0:
            return b""  # ijson asks for nothing to learn the type
        while True:
            data: bytes = self._stream.read(size)
            more = self._recoded(data)
            whole = self._rest + more if self._rest else more
            self._rest = b""
            # one byte is sought ten times as fast as a word
            if (b"N" in whole or b"I" in whole) and (b"NaN" in whole or b"Infinity" in whole):
                whole = _NO_NUMBER.sub(rb"\1null", whole)
            unfinished = _UNFINISHED.search(whole, max(0, len(whole) - _LONGEST)) if data else None
            if unfinished:
                whole, self._rest = whole[: unfinished.start()], whole[unfinished.start() :]
            if whole or not data:
                return whole

    def _recoded(self, data: bytes) -> bytes:
        if not self._begun and data:
            self._begun = True
            encoding = encoding_of(data[:4])
            if encoding != "utf-8":
                self._decoder = codecs.getincrementaldecoder(encoding)()
        if self._decoder is None:
            return data
        return self._decoder.decode(data, final=not data).encode("utf-8", "surrogatepass")


def _items(uri: str, prefix: str) -> Iterator[Any]:
    import ijson

    filesystem, path = storage.resolve(uri)
    try:
        with filesystem.open_input_stream(path, compression="detect") as stream:
            # floats, not decimals: COCO's coordinates have two places
            cleaned = _Cleaned(stream)
            yield from ijson.items(cleaned, prefix, buf_size=_BUFFER_BYTES, use_float=True)
    except FileNotFoundError as error:
        raise CannotRunError(f"no annotation file at {uri}") from error
    except (ijson.JSONError, UnicodeError) as error:
        raise CannotRunError(f"{uri}: {_json_fault(uri, error)}") from error
    except OSError as error:
        raise CannotRunError(f"{uri} cannot be read: {_one_line(error)}") from error


def _json_fault(uri: str, error: Exception) -> str:
    """What is wrong with text at which the parser gave up: no JSON at all, cut off, or a fault."""
    head = storage.read_bytes(uri, 64)
    if not head:
        return "the file is empty (0 bytes)"
    if stand_in := storage.stand_in(head):
        return stand_in
    text = _one_line(error)
    if "UTF8" in text or isinstance(error, UnicodeError):
        return "not UTF-8 text: save it as UTF-8"
    at_end = any(word in text for word in ("premature EOF", "incomplete", "Incomplete"))
    return "the JSON is cut off: load the file again" if at_end else f"not valid JSON: {text}"


def _one_line(error: Exception) -> str:
    text = next((a.decode(errors="replace") for a in error.args if type(a) is bytes), str(error))
    # yajl quotes the place with an arrow over several lines
    return " ".join(text.split())[:200]


def parse_object(
    annotation: Mapping[str, Any], label: int, image: CocoImage | None = None
) -> dict[str, Any]:
    """A row of `OBJECT` from an annotation.

    Polygons of fewer than three points cover nothing and are dropped.

    Args:
        annotation: as it stands in the file.
        label: contiguous id.
        image: whose size run lengths must have.

    Raises:
        ValueError: a segmentation that is none or of another size, or coordinates that are not
            finite numbers.
    """
    out: dict[str, Any] = {
        "label": label,
        "crowd": annotation.get("iscrowd") in (1, "1"),
        "polygons": None,
        "counts": None,
        "rle": None,
    }
    segmentation = annotation.get("segmentation") or []
    if isinstance(segmentation, Mapping):
        stated = segmentation.get("size")
        size = list(image.size) if image is not None else [0, 0]
        if stated is not None and all(size) and list(stated) != size:
            raise ValueError(f"run lengths for {stated} (height, width), of an image of {size} px")
        counts = segmentation.get("counts")
        if isinstance(counts, str):
            out["rle"] = counts
        elif isinstance(counts, list) and all(type(c) is int and c >= 0 for c in counts):
            out["counts"] = counts
        else:
            raise ValueError("a segmentation's run lengths (`counts`) are no whole numbers")
        return out
    if not isinstance(segmentation, list):
        raise ValueError("a segmentation is neither a list of polygons nor run lengths")
    polygons = []
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) % 2:
            raise ValueError("a polygon is not a list x, y, x, y, ...")
        try:
            finite = math.isfinite(sum(polygon))
        except TypeError as error:
            raise ValueError("a polygon holds something that is no number") from error
        if not finite:
            raise ValueError("a polygon holds a number that is not finite")
        if len(polygon) >= 6:
            polygons.append(polygon)
    if not polygons:
        out["label"] = NO_OUTLINE
        polygons = _box(annotation.get("bbox"))
    out["polygons"] = polygons
    return out


def _box(value: Any) -> list[list[float]]:
    """The polygon of a box x, y, width, height; none where it covers nothing."""
    try:
        x, y, width, height = map(float, value)
    except (TypeError, ValueError):
        return []
    right, low = x + width, y + height
    if not math.isfinite(x + y + right + low) or width <= 0 or height <= 0:
        return []
    return [[x, y, right, y, right, low, x, low]]


@dataclass
class ObjectSpill:
    """Collects objects in any order, writes them grouped by image.

    Args:
        folder: uri of the objects table.
        image_ids: the images, in the order of the table.
        name: of the parts; two files may be collected into one folder.
    """

    folder: str
    image_ids: Sequence[str]
    name: str
    _rows: list[int] = field(default_factory=list)
    _objects: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._scratch = tempfile.TemporaryDirectory(prefix="pmm-objects-")
        self._files: dict[int, tuple[Any, Any]] = {}
        self._part_images = max(_PART_IMAGES, math.ceil(len(self.image_ids) / _MOST_PARTS))

    def add(self, row: int, item: dict[str, Any]) -> None:
        """One object of image `row` of `image_ids`."""
        self._rows.append(row)
        self._objects.append(item)
        if len(self._rows) >= _SPILL_ROWS:
            self._spill()

    def finish(self) -> None:
        """Write the parts; images without objects get no row."""
        self._spill()
        for bucket in sorted(self._files):
            self._write(bucket)
        self._scratch.cleanup()

    def _spill(self) -> None:
        rows = np.array(self._rows, np.int32)
        batch = pa.table({"row": rows, "object": pa.array(self._objects, OBJECT)})
        buckets = rows // self._part_images
        for bucket in np.unique(buckets).tolist():
            if bucket not in self._files:
                file = open(Path(self._scratch.name) / str(bucket), "wb")  # noqa: SIM115
                self._files[bucket] = (file, pa.ipc.new_stream(file, batch.schema))
            part = batch.take(np.flatnonzero(buckets == bucket))
            self._files[bucket][1].write_table(part)
        self._rows.clear()
        self._objects.clear()

    def _write(self, bucket: int) -> None:
        file, writer = self._files[bucket]
        writer.close()
        file.close()
        with open(file.name, "rb") as source:
            table = pa.ipc.open_stream(source).read_all().combine_chunks()
        # a stable order: an image's objects stay in the order of the file
        order = np.argsort(table.column("row").to_numpy(), kind="stable")
        table = table.take(order)
        rows, counts = np.unique(table.column("row").to_numpy(), return_counts=True)
        objects = table.column("object").combine_chunks()
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
        ids = pc.take(pa.array(self.image_ids, pa.string()), pa.array(rows))
        out = pa.table({"image_id": ids, "objects": pa.ListArray.from_arrays(offsets, objects)})
        uri = storage.join(self.folder, f"part-{self.name}-{bucket:05d}.parquet")
        storage.write_bytes(uri, tables.to_bytes(out.cast(OBJECTS), row_group_size=64))
        Path(file.name).unlink()


def index_objects(folder: str) -> str:
    """Finish an objects table: write the index that stages find an image's objects by.

    Returns:
        A fingerprint of the parts, 64 hex digits: masks drawn from other objects are not reused.
    """
    index = scan_parts(folder)[0]
    write_index(folder, index)
    digest = hashlib.sha256()
    for part in index.parts:
        digest.update(storage.read_bytes(part))
    return digest.hexdigest()
