"""A run's masks as a data set for YOLO segmentation: photographs, outlines as text, `data.yaml`.

    OUT/data.yaml                names of the classes from 0, and the folder of each split
    OUT/images/SPLIT/ID.jpg      the photographs, byte for byte; as PNG where YOLO does not read
                                 their format, or may show them otherwise than their masks are:
                                 transparent, of 16 bits, or turned by metadata
    OUT/labels/SPLIT/ID.txt      a line a region: class x y x y ..., shares of the sides

A region is a connected part of one class. Its outline runs along the borders of pixels, so that a
region without holes is given back exactly; holes are filled, as the format knows none. The
background and pixels of no class (255) have no line.
"""

# H, W: height, width in px; N: points of an outline.

from __future__ import annotations

from functools import partial
from typing import Any

import cv2
import numpy as np
import yaml
from numpy.typing import NDArray

from pmm_ray.commands.export.out import Out
from pmm_ray.commands.export.source import RunMasks, Written, portable
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.rows.images import decode_mask

# what ultralytics takes for a photograph; it passes over any other file and says nothing
_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")


def write(masks: RunMasks, out: Out, progress: Progress) -> Written:
    """Write the data set below `out`."""
    manifest, written = masks.manifest, Written()

    def write_image(split: str, row: dict[str, Any]) -> RowError | None:
        image_id = tables.check_image_id(row["image_id"])
        uri = masks.photographs[image_id]["uri"]
        try:
            data, ending = portable(uri, apply_exif=manifest.apply_exif, endings=_ENDINGS)
        except RowError as error:
            out.keep(split, image_id)
            return error
        lines = "".join(_lines(decode_mask(row["mask_png"]), manifest.label_space.ignore))
        name = image_id + ending
        storage.write_bytes(out.place("images", split, name), data)
        storage.write_bytes(out.place("labels", split, f"{image_id}.txt"), lines.encode())
        return None

    for split in masks.splits:
        for row, fault in masks.each(split, progress, partial(write_image, split.split)):
            written.add(row["image_id"], fault)
    if not written.image_ids:
        return written
    storage.write_bytes(out.place("data.yaml"), _data_yaml(masks).encode())
    progress.message(f"{out.uri}: {', '.join(f'{s.split} from {s.stage}' for s in masks.splits)}")
    places = _places(masks).values()
    left_out = [s.split for s in masks.splits if f"images/{s.split}" not in places]
    if left_out:
        progress.message(
            f"data.yaml leaves out {', '.join(left_out)}: it knows train, val and test"
        )
    return written


def _places(masks: RunMasks) -> dict[str, str]:
    """The folders of train, val and test, below that of data.yaml."""
    splits = [split.split for split in masks.splits]
    data = masks.config.data
    train = data.train_split if data.train_split in splits else splits[0]
    held_out = data.held_out_split if data.held_out_split in splits else train
    places = {"train": f"images/{train}", "val": f"images/{held_out}"}
    if "test" in splits:
        places["test"] = "images/test"
    return places


def _data_yaml(masks: RunMasks) -> str:
    """Where the splits are, and the names of the classes from 0."""
    names = dict(enumerate(masks.manifest.label_space.names[1:]))
    return yaml.safe_dump(_places(masks) | {"names": names}, sort_keys=False, allow_unicode=True)


def _lines(mask_HW: NDArray[Any], ignore: int) -> list[str]:
    """A line of text for each connected region of each class."""
    height, width = mask_HW.shape
    lines = []
    for label in np.unique(mask_HW):
        if label in (0, ignore):
            continue
        for outline in outlines(mask_HW == label):
            shares = outline / (width, height)
            numbers = " ".join(f"{value:.6g}" for value in shares.ravel())
            lines.append(f"{label - 1} {numbers}\n")
    return lines


def outlines(region_HW: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
    """The outer outlines of the connected parts of a region, along the borders of its pixels.

    OpenCV's `findContours` goes through the centres of pixels and would lose half a pixel at every
    side. Here each pixel is four: the outer ones at 2 x and 2 x + 1 mean its borders x and x + 1.

    Args:
        region_HW: bool [H, W].

    Returns:
        float64 [N, 2] each: x 0..W, y 0..H, in px from the upper left corner.
    """
    doubled = np.repeat(np.repeat(region_HW.astype(np.uint8), 2, axis=0), 2, axis=1)
    found, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [np.ceil(contour[:, 0, :] / 2) for contour in found]
