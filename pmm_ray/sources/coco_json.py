"""COCO-style JSON, streamed: never more of the file in memory than one of its objects.

The annotations of an image may stand anywhere in the file. `ObjectSpill` collects those of each
image through files on disk, so that memory does not grow with their number.
"""

from __future__ import annotations

import hashlib
import math
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

_BUFFER_BYTES = 1 << 20
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
"""One annotated object: polygons (x, y, x, y, ... in px), or run lengths, or COCO's packed ones."""

OBJECTS = pa.schema([("image_id", pa.string()), ("objects", pa.list_(OBJECT))])
"""One row per image: its objects in the order of the file."""


@dataclass(frozen=True)
class CocoImage:
    """An entry of `images`."""

    number: int
    file_name: str
    height: int
    width: int
    split: str = ""
    """Not in the official files; own ones may name a split for each image."""


def read_images(uri: str) -> list[CocoImage]:
    """The entries of `images`, in the order of the file.

    Raises:
        CannotRunError: no such file, not JSON, or an entry without id, file_name, height or width.
    """
    images = []
    for position, entry in enumerate(_items(uri, "images.item")):
        try:
            image = CocoImage(
                number=int(entry["id"]),
                file_name=str(entry["file_name"]),
                height=int(entry["height"]),
                width=int(entry["width"]),
                split=str(entry.get("split") or ""),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CannotRunError(
                f"{uri}: entry {position} of `images` needs id, file_name, height and width: "
                f"{type(error).__name__} {error}"
            ) from error
        images.append(image)
    if not images:
        raise CannotRunError(f"{uri} has no list `images`: it is not a COCO annotation file")
    return images


def read_categories(uri: str) -> dict[int, str]:
    """id -> name of `categories`. Raises CannotRunError if there are none, or an id twice."""
    found: dict[int, str] = {}
    for entry in _items(uri, "categories.item"):
        try:
            number, name = int(entry["id"]), normalize_name(str(entry["name"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CannotRunError(f"{uri}: an entry of `categories` lacks id or name") from error
        if found.setdefault(number, name) != name:
            raise CannotRunError(f"{uri}: the category id {number} occurs twice")
    if not found:
        raise CannotRunError(f"{uri} has no list `categories`: it is not a COCO annotation file")
    return found


def read_annotations(uri: str) -> Iterator[dict[str, Any]]:
    """The entries of `annotations` as they stand, one after another."""
    yield from _items(uri, "annotations.item")


def _items(uri: str, prefix: str) -> Iterator[Any]:
    import ijson

    filesystem, path = storage.resolve(uri)
    try:
        with filesystem.open_input_stream(path, compression="detect") as stream:
            # floats, not decimals: COCO's coordinates have two places
            yield from ijson.items(stream, prefix, buf_size=_BUFFER_BYTES, use_float=True)
    except FileNotFoundError as error:
        raise CannotRunError(f"no annotation file at {uri}") from error
    except ijson.JSONError as error:
        # yajl quotes the place with an arrow over several lines
        text = " ".join(str(error).split())[:200]
        raise CannotRunError(f"{uri} is not valid JSON (cut off?): {text}") from error


def parse_object(annotation: Mapping[str, Any], label: int) -> dict[str, Any]:
    """A row of `OBJECT` from an annotation.

    Polygons of fewer than three points cover nothing and are dropped, as is a missing
    segmentation; its label stands.

    Raises:
        ValueError: a segmentation that is none, or coordinates that are not finite numbers.
    """
    out: dict[str, Any] = {
        "label": label,
        "crowd": bool(annotation.get("iscrowd")),
        "polygons": None,
        "counts": None,
        "rle": None,
    }
    segmentation = annotation.get("segmentation") or []
    if isinstance(segmentation, Mapping):
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
            raise ValueError(f"a polygon holds something that is no number: {error}") from error
        if not finite:
            raise ValueError("a polygon holds a number that is not finite")
        if len(polygon) >= 6:
            polygons.append(polygon)
    out["polygons"] = polygons
    return out


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
