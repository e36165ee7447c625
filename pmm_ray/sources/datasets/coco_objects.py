"""The annotated objects of COCO-style JSON, and the table that has those of each image together.

The annotations of an image may stand anywhere in the file. `ObjectSpill` collects those of each
image through files on disk, so that memory does not grow with their number.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.index import scan_parts, write_index
from pmm_ray.sources.datasets.coco_json import CocoImage

# more than any coordinate, and any run
_MOST = 1 << 53
# annotations kept in memory before they are spilled
_SPILL_ROWS = 20_000
# images in a part of the objects table, and the most parts: each is an open file while reading
_PART_IMAGES, _MOST_PARTS = 512, 200

OBJECT = pa.struct(
    {
        "label": tables.INT16,
        "crowd": pa.bool_(),
        "polygons": pa.list_(pa.list_(tables.DOUBLE)),
        "counts": pa.list_(tables.INT64),
        "rle": tables.TEXT,
    }
)
"""One annotated object: polygons (x, y, x, y, ... in px), or run lengths, or COCO's packed ones.
Of an object without an outline the polygon is its box, and the label `NO_OUTLINE`."""
NO_OUTLINE = 0

OBJECTS = tables.columns(image_id=tables.TEXT, objects=pa.list_(OBJECT))
"""One row per image: its objects in the order of the file."""


def parse_object(
    annotation: Mapping[str, Any], label: int, image: CocoImage | None = None
) -> dict[str, Any]:
    """A row of `OBJECT` from an annotation.

    Polygons of fewer than three points cover nothing and are dropped. A list of at least three
    pairs x, y is one polygon.

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
        if stated is not None and all(size) and stated != size:
            raise ValueError(f"run lengths for {stated} (height, width), of an image of {size} px")
        counts = segmentation.get("counts")
        if isinstance(counts, str):
            out["rle"] = counts
        elif isinstance(counts, list) and all(type(c) is int and 0 <= c < _MOST for c in counts):
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
            sound = abs(sum(polygon)) < _MOST
        except TypeError as error:
            raise ValueError("a polygon holds something that is no number") from error
        if not sound:
            raise ValueError("a polygon holds a number that is not finite, or no pixel of an image")
        if len(polygon) >= 6:
            polygons.append(polygon)
    if not polygons and len(segmentation) >= 3 and all(len(part) == 2 for part in segmentation):
        # one polygon as a list of points
        polygons = [[number for point in segmentation for number in point]]
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
