"""Annotated objects -> one mask of class ids: COCO's polygons and run lengths, painted.

Legend: H, W = height, width in pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.sources.datasets.coco_objects import NO_OUTLINE

Object = Mapping[str, Any]


def require_pycocotools() -> None:
    """Raises CannotRunError with the fix where pycocotools is not installed."""
    try:
        import pycocotools.mask  # noqa: F401
    except ImportError as error:
        raise CannotRunError(
            "drawing COCO's polygons needs pycocotools: pip install 'pmm-ray[coco]', "
            "or leave the masks out (data.ground_truth: none, --ground-truth none)"
        ) from error


def draw_objects(
    objects: Sequence[Object],
    height: int,
    width: int,
    space: LabelSpace,
    *,
    overlap: str = "last",
    crowd: str = "class",
) -> NDArray[Any]:
    """Paint the objects of one image.

    Args:
        objects: rows of `coco_objects.OBJECT`, in the order of the file.
        height, width: of the image, px.
        space: its contiguous ids are written.
        overlap: what a pixel gets that several objects cover: `last` the later one of the file,
            `smallest` the one with the fewest pixels, `highest_id` the one whose class id is
            highest, `ignore` the ignore value where they are of different classes.
        crowd: what crowd regions are: `class` objects like any other, `ignore` the ignore value
            where no object covers them, `background` nothing.

    Returns:
        [H, W], `space.mask_dtype`: 0 background, 1..C, or `space.ignore`; that, too, in the box of
        an object without an outline where no other object is.

    Raises:
        RowError: `label`, run lengths that do not fit the image.
    """
    mask = np.zeros((height, width), space.mask_dtype)
    painted: list[tuple[int, NDArray[np.bool_]]] = []
    for item in objects:
        if item["crowd"] and crowd == "background":
            continue
        area = object_area(item, height, width)
        # which pixels of a box are the object's is not known
        if item["label"] == NO_OUTLINE or (item["crowd"] and crowd == "ignore"):
            mask[area] = space.ignore
        else:
            painted.append((int(item["label"]), area))
    if overlap == "smallest":
        painted.sort(key=lambda pair: -int(pair[1].sum()))
    elif overlap == "highest_id":
        painted.sort(key=lambda pair: pair[0])
    taken = np.zeros((height, width), bool) if overlap == "ignore" else None
    for label, area in painted:
        if taken is None:
            mask[area] = label
            continue
        contested = area & taken & (mask != label)
        mask[area] = label
        mask[contested] = space.ignore
        taken |= area
    return mask


def object_area(item: Object, height: int, width: int) -> NDArray[np.bool_]:
    """The pixels of one object, bool [H, W], as COCO's own tools rasterise them.

    Raises:
        RowError: `label`, run lengths that do not fit the image, or an object outside of it.
    """
    from pycocotools import mask as coco_mask

    if item["counts"] is not None:
        return _from_runs(item["counts"], height, width)
    if item["rle"] is not None:
        return _from_runs(_unpacked(item["rle"]), height, width)
    if not item["polygons"]:
        return np.zeros((height, width), bool)
    polygons = [np.asarray(polygon, np.float64) for polygon in item["polygons"]]
    if all(_outside(polygon, height, width) for polygon in polygons):
        raise RowError("label", f"an object lies outside the image of {width} x {height} px")
    # far outside points would make the rasteriser walk to them, pixel by pixel
    reach = 4.0 * max(height, width)
    if any(np.abs(polygon).max() > reach for polygon in polygons):
        raise RowError("label", f"a polygon leaves the image of {width} x {height} px by far")
    runs = coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width)
    area = coco_mask.decode(coco_mask.merge(runs))
    return area.astype(bool)


def _outside(polygon: NDArray[np.float64], height: int, width: int) -> bool:
    """Whether no point of x, y, x, y, ... can have a pixel of the image, nor a line between two."""
    x, y = polygon[0::2], polygon[1::2]
    return bool(x.max() < 0 or y.max() < 0 or x.min() > width or y.min() > height)


def _unpacked(packed: str) -> list[int]:
    """The run lengths that COCO's text holds: five bits a letter, each less the last but one.

    pycocotools' own `decode` leaves to chance what too few of them do not reach.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in packed:
        bits = ord(letter) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return runs


def _from_runs(counts: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """Alternating lengths of zeros and ones, down the columns (COCO's uncompressed form)."""
    if sum(counts) != height * width or min(counts) < 0:
        raise RowError(
            "label", f"run lengths of {sum(counts)} px for an image of {width} x {height}"
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T
