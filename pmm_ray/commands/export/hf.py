"""A run's masks as Parquet files that Hugging Face's `datasets` loads as they are.

    OUT/data/SPLIT-00000-of-00003.parquet
        image_id: string
        image, mask: struct<bytes: binary, path: string>   the photograph's bytes, an indexed PNG
        labels: list<int64>                                the image-level labels, of ClassLabel

A photograph that others may show otherwise than its mask is (transparent, of 16 bits, or turned by
metadata, which `datasets` obeys) is a PNG of its pixels. Labels and mask values count alike: 0 is
the background, 255 no class (65535 with more than 254 classes). `load_dataset(OUT)` gives the
splits; `pmm data import parquet OUT` reads images and labels.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from pmm_ray.commands.export.out import Out
from pmm_ray.commands.export.source import RunMasks, Written, in_threads, portable
from pmm_ray.labels import LabelSpace
from pmm_ray.report.outcome import SplitMasks
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.core.progress import Progress

# A file is in memory while it is made; Hugging Face's own have 500 MB at most.
_FILE_BYTES = 256 << 20
_ROW_GROUP = 64
_PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
_SCHEMA = pa.schema(
    [
        ("image_id", pa.string()),
        ("image", _PICTURE),
        ("mask", _PICTURE),
        ("labels", pa.list_(pa.int64())),
    ]
)


def write(masks: RunMasks, out: Out, progress: Progress) -> Written:
    """Write `data/SPLIT-*.parquet` below `out` for every split."""
    written = Written()
    schema = _SCHEMA.with_metadata({"huggingface": _features(masks.manifest.label_space)})
    for split in masks.splits:
        uris = [masks.photographs[image_id]["uri"] for image_id in split.image_ids]
        files = max(1, -(-sum(in_threads(_size, uris)) // _FILE_BYTES))
        rows = _rows(masks, split, progress, written)
        _write_split(out, split, files, rows, schema)
        progress.message(f"{out.uri}: {split.split} from {split.stage}")
    return written


def _write_split(
    out: Out, split: SplitMasks, files: int, rows: Iterator[dict[str, Any]], schema: pa.Schema
) -> None:
    """Write the rows as so many files, each of as many images; a file of none is not written."""
    each = -(-len(split.index) // files)
    for number in range(files):
        name = f"{split.split}-{number:05d}-of-{files:05d}.parquet"
        content = [row for _, row in zip(range(each), rows, strict=False)]
        if not content:
            continue
        table = pa.Table.from_pylist(content, schema=schema)
        data = tables.to_bytes(table, row_group_size=_ROW_GROUP)
        storage.write_bytes(out.place("data", name), data)


def _rows(
    masks: RunMasks, split: SplitMasks, progress: Progress, written: Written
) -> Iterator[dict[str, Any]]:
    """A row for each image whose photograph can be read; the others become error rows."""

    def read(row: dict[str, Any]) -> tuple[bytes, str] | RowError:
        uri = masks.photographs[row["image_id"]]["uri"]
        try:
            return portable(uri, apply_exif=masks.manifest.apply_exif)
        except RowError as error:
            return error

    for row, found in masks.each(split, progress, read):
        image_id = row["image_id"]
        if isinstance(found, RowError):
            written.add(image_id, found)
            continue
        written.add(image_id, None)
        data, ending = found
        yield {
            "image_id": image_id,
            "image": {"bytes": data, "path": image_id + ending},
            "mask": {"bytes": row["mask_png"], "path": f"{image_id}.png"},
            "labels": masks.photographs[image_id]["labels"],
        }


def _size(uri: str) -> int:
    filesystem, path = storage.resolve(uri)
    return int(filesystem.get_file_info(path).size or 0)


def _features(space: LabelSpace) -> str:
    """What the columns are, in the words of `datasets`."""
    features: dict[str, Any] = {
        "image_id": {"dtype": "string", "_type": "Value"},
        "image": {"_type": "Image"},
        "mask": {"_type": "Image"},
        "labels": {
            "feature": {"names": list(space.names), "_type": "ClassLabel"},
            "_type": "Sequence",
        },
    }
    return json.dumps({"info": {"features": features}})
