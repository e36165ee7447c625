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
from pmm_ray.sources.coco_json import NO_OUTLINE

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
        objects: rows of `coco_json.OBJECT`, in the order of the file.
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
        RowError: `label`, run lengths that do not fit the image.
    """
    from pycocotools import mask as coco_mask

    if item["counts"] is not None:
        return _from_runs(item["counts"], height, width)
    if item["rle"] is not None:
        packed = {"size": [height, width], "counts": item["rle"].encode()}
        try:
            area = coco_mask.decode(packed)
        except (ValueError, RuntimeError) as error:
            raise RowError("label", f"run lengths that do not fit the image: {error}") from error
        return area.astype(bool)
    if not item["polygons"]:
        return np.zeros((height, width), bool)
    polygons = [np.asarray(polygon, np.float64) for polygon in item["polygons"]]
    # far outside points would make the rasteriser walk to them, pixel by pixel
    reach = 4.0 * max(height, width)
    if any(np.abs(polygon).max() > reach for polygon in polygons):
        raise RowError("label", f"a polygon leaves the image of {width} x {height} px by far")
    runs = coco_mask.frPyObjects([polygon.tolist() for polygon in polygons], height, width)
    area = coco_mask.decode(coco_mask.merge(runs))
    return area.astype(bool)


def _from_runs(counts: Sequence[int], height: int, width: int) -> NDArray[np.bool_]:
    """Alternating lengths of zeros and ones, down the columns (COCO's uncompressed form)."""
    if sum(counts) != height * width:
        raise RowError(
            "label", f"run lengths of {sum(counts)} px for an image of {width} x {height}"
        )
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(width, height).T
