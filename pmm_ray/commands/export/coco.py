"""A run's masks as COCO's annotation JSON: one file per split, one RLE region per image and class.

Categories have the data set's own ids (COCO: 1..90 with gaps). If the ids of all images of a split
end in numbers of 64 bits (as COCO's file names do), and no two in the same, images have these
numbers, else their positions in the order of ids. Pixels of no class (255) belong to no region.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pmm_ray.commands.export.out import Out
from pmm_ray.commands.export.source import RunMasks, Written
from pmm_ray.labels import LabelSpace
from pmm_ray.report.outcome import SplitMasks
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.rows.images import decode_mask

_COLUMNS = ["image_id", "uri", "height", "width"]


def write(masks: RunMasks, out: Out, progress: Progress) -> Written:
    """Write `instances_<split>.json` below `out` for every split.

    Raises:
        CannotRunError: pycocotools is not installed.
    """
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise CannotRunError(
            "--format coco needs pycocotools: pip install 'pmm-ray[coco]'"
        ) from error
    written = Written()
    for split in masks.splits:
        uri = out.place(f"instances_{split.split}.json")
        storage.write_bytes(uri, b"".join(_document(masks, split, progress)))
        written.image_ids |= set(split.index.image_ids)
        progress.message(f"{uri}: from {split.stage}")
    return written


def _document(masks: RunMasks, split: SplitMasks, progress: Progress) -> Iterator[bytes]:
    """The pieces of the file, as text: about a kilobyte an image."""
    space = masks.manifest.label_space
    images = _images(masks, split)
    numbers = {image_id: image["id"] for image_id, image in images.items()}
    head = {
        "info": {"description": f"{masks.name}: {split.stage}, split {split.split}"},
        "licenses": [],
        "categories": [
            {"id": space.dataset_ids[i], "name": space.names[i], "supercategory": ""}
            for i in range(1, space.num_classes)
        ],
        "images": [*images.values()],
    }
    text = json.dumps(head, ensure_ascii=False)
    yield (text[:-1] + ', "annotations": [').encode()
    count = 0
    for _, regions in masks.each(split, progress, lambda row: [*_regions(row, numbers, space)]):
        for region in regions:
            count += 1
            yield (",\n" if count > 1 else "\n").encode()
            yield json.dumps(region | {"id": count}).encode()
    yield b"\n]}\n"


def _images(masks: RunMasks, split: SplitMasks) -> dict[str, dict[str, Any]]:
    """Our id -> COCO's record of an image, in the order of ids."""
    table = tables.read_table(masks.manifest.uri, _COLUMNS)
    wanted = pa.array(split.index.image_ids, pa.string())
    rows = table.filter(pc.is_in(table.column("image_id"), value_set=wanted)).to_pylist()
    rows.sort(key=lambda row: row["image_id"])
    found = [re.search(r"\d+$", row["image_id"]) for row in rows]
    own = [int(match[0]) for match in found if match]
    fits = len(set(own)) == len(rows) and max(own, default=0) < 2**63
    numbers = own if fits else range(1, len(rows) + 1)
    names = file_names([row["uri"] for row in rows])
    return {
        row["image_id"]: {
            "id": number,
            "file_name": name,
            "height": row["height"],
            "width": row["width"],
        }
        for number, row, name in zip(numbers, rows, names, strict=True)
    }


def file_names(uris: Sequence[str]) -> list[str]:
    """The files' own names; where two are the same, paths below the folder that holds them all."""
    names = [uri.rsplit("/", 1)[-1] for uri in uris]
    if len(set(names)) == len(names):
        return names
    above = posixpath.commonprefix(uris).rpartition("/")[0]
    return [uri[len(above) :].lstrip("/") for uri in uris]


def _regions(
    row: dict[str, Any], numbers: dict[str, int], space: LabelSpace
) -> Iterator[dict[str, Any]]:
    """One annotation for every class of a mask, without its id."""
    from pycocotools import mask as coco_mask

    mask_HW = decode_mask(row["mask_png"])
    for label in np.unique(mask_HW):
        if label in (0, space.ignore):
            continue
        region = coco_mask.encode(np.asfortranarray(mask_HW == label, dtype=np.uint8))
        yield {
            "image_id": numbers[row["image_id"]],
            "category_id": space.dataset_ids[label],
            "segmentation": {"size": region["size"], "counts": region["counts"].decode()},
            "area": int(coco_mask.area(region)),
            "bbox": coco_mask.toBbox(region).tolist(),
            "iscrowd": 0,
        }
