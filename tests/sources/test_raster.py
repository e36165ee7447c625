"""Objects painted into masks, by hand and against COCO's own tools."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from pmm_ray.labels import COCO14, LabelSpace
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.sources.datasets.coco_objects import parse_object
from pmm_ray.sources.datasets.raster import draw_objects, object_area

from .coco_tree import HEIGHT, WIDTH, box

SPACE = LabelSpace.from_names(["a", "b", "c"])


def item(label: int, segmentation: Any, crowd: bool = False) -> dict[str, Any]:
    return parse_object({"segmentation": segmentation, "iscrowd": crowd}, label)


# c is small and comes first, a is large and covers it, b touches both
FIRST = item(3, [box(2, 2, 4, 4)])
LARGE = item(1, [box(0, 0, 20, 10)])
MIDDLE = item(2, [box(4, 4, 10, 10)])


@pytest.mark.parametrize(
    ("overlap", "expected"),
    [
        # pixels [y, x]: c over a; all three; a and b; b alone; a alone
        ("last", [1, 2, 2, 2, 1]),
        ("smallest", [3, 3, 2, 2, 1]),
        ("highest_id", [3, 3, 2, 2, 1]),
        ("ignore", [255, 255, 255, 2, 1]),
    ],
)
def test_overlap_rules(overlap: str, expected: list[int]) -> None:
    mask = draw_objects([FIRST, LARGE, MIDDLE], HEIGHT, WIDTH, SPACE, overlap=overlap)
    assert [int(mask[y, x]) for y, x in ((3, 3), (5, 5), (8, 8), (12, 8), (8, 18))] == expected
    assert mask[19, 29] == 0


def test_smallest_counts_pixels_and_highest_id_the_class() -> None:
    small_low, large_high = item(1, [box(2, 2, 4, 4)]), item(3, [box(0, 0, 20, 10)])
    by_size = draw_objects([small_low, large_high], HEIGHT, WIDTH, SPACE, overlap="smallest")
    by_id = draw_objects([large_high, small_low], HEIGHT, WIDTH, SPACE, overlap="highest_id")
    assert (by_size[3, 3], by_id[3, 3]) == (1, 3)


def test_objects_of_one_class_do_not_contest_a_pixel() -> None:
    mask = draw_objects([LARGE, item(1, [box(2, 2, 4, 4)])], HEIGHT, WIDTH, SPACE, overlap="ignore")
    assert set(np.unique(mask)) == {0, 1}


@pytest.mark.parametrize(
    ("crowd", "expected"), [("class", [2, 2]), ("ignore", [1, 255]), ("background", [1, 0])]
)
def test_crowd_rules(crowd: str, expected: list[int]) -> None:
    everywhere = item(2, {"counts": [0, HEIGHT * WIDTH]}, crowd=True)
    mask = draw_objects([LARGE, everywhere], HEIGHT, WIDTH, SPACE, crowd=crowd)
    assert [int(mask[5, 5]), int(mask[19, 29])] == expected


def test_sixteen_bit_masks() -> None:
    space = LabelSpace.from_names([f"class {i}" for i in range(1000)])
    objects = [item(1000, [box(0, 0, 10, 10)]), item(255, {"counts": [0, 600]}, crowd=True)]
    mask = draw_objects(objects[::-1], HEIGHT, WIDTH, space, crowd="ignore")
    assert mask.dtype == np.uint16
    assert set(np.unique(mask)) == {1000, 65535}


def test_polygons_that_cover_nothing() -> None:
    empty = item(1, [[1, 1, 2, 2], []])
    assert empty["polygons"] == []
    assert not object_area(empty, HEIGHT, WIDTH).any()
    assert not object_area(item(1, None), HEIGHT, WIDTH).any()


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1, 2, 3, 4, 5]],
        [["x", 2, 3, 4, 5, 6]],
        [[float("nan"), 2, 3, 4, 5, 6]],
        "text",
        [3],
        {"counts": [-1, 601]},
        {"counts": [1.5]},
        {},
    ],
)
def test_segmentations_that_are_none(segmentation: Any) -> None:
    if segmentation == {}:
        # nothing drawn is no fault: the label stands
        assert not object_area(item(1, segmentation), HEIGHT, WIDTH).any()
        return
    with pytest.raises(ValueError, match=r"polygon|segmentation"):
        item(1, segmentation)


@pytest.mark.parametrize(
    "segmentation",
    [
        {"counts": [1, 2, 3]},
        {"counts": "T04Fefga"},
        [box(0, 0, 1e9, 1e9)],
    ],
)
def test_what_does_not_fit_the_image_is_a_row_error(segmentation: Any) -> None:
    with pytest.raises(RowError) as caught:
        object_area(item(1, segmentation), HEIGHT, WIDTH)
    assert caught.value.kind == "label"


def test_every_object_is_what_cocos_own_tools_draw(shared: Path) -> None:
    path = shared / "data/coco14-mini/annotations/instances_val2014.json"
    content = json.loads(path.read_text())
    official = COCO()
    official.dataset = content
    official.createIndex()
    crowds = 0
    for annotation in content["annotations"]:
        image = official.imgs[annotation["image_id"]]
        drawn = object_area(parse_object(annotation, 1), image["height"], image["width"])
        np.testing.assert_array_equal(drawn, official.annToMask(annotation) > 0)
        crowds += annotation["iscrowd"]
    assert crowds
    assert len(content["annotations"]) > 400


def test_dataset_ids_of_drawn_masks_round_trip() -> None:
    mask = draw_objects([item(80, [box(0, 0, 9, 9)])], HEIGHT, WIDTH, COCO14)
    assert COCO14.to_dataset(mask).max() == 90
    np.testing.assert_array_equal(COCO14.to_contiguous(COCO14.to_dataset(mask)), mask)


@pytest.mark.parametrize("seed", range(5))
def test_packed_run_lengths_are_read_as_pycocotools_writes_them(seed: int) -> None:
    random = np.random.default_rng(seed)
    area = random.random((HEIGHT, WIDTH)) < (0.5, 0.02, 0.98, 0, 1)[seed]
    packed = coco_mask.encode(np.asfortranarray(area, np.uint8))["counts"].decode()
    found = item(1, {"size": [HEIGHT, WIDTH], "counts": packed})
    np.testing.assert_array_equal(object_area(found, HEIGHT, WIDTH), area)


@pytest.mark.parametrize("packed", ["", "0", "PPYo1", "b'PPYo1'", "\n", "ж", "o" * 99])
def test_packed_run_lengths_that_do_not_fit_are_an_error(packed: str) -> None:
    found = item(1, {"size": [HEIGHT, WIDTH], "counts": packed})
    with pytest.raises(RowError, match="run lengths of"):
        object_area(found, HEIGHT, WIDTH)


def test_an_object_outside_of_the_image_is_an_error() -> None:
    for polygon in (box(WIDTH + 1, 2, 4, 4), box(2, HEIGHT + 1, 4, 4), box(-9, 2, 4, 4)):
        with pytest.raises(RowError, match="lies outside the image of 30 x 20 px"):
            object_area(item(1, [polygon]), HEIGHT, WIDTH)
    both = item(1, [box(WIDTH + 1, 2, 4, 4), box(2, 2, 4, 4)])
    assert object_area(both, HEIGHT, WIDTH).sum() == 16


@pytest.mark.parametrize("crowd", ["0", 0, None, 0.0, "1", 1, True])
def test_a_crowd_is_one_however_it_is_written(crowd: object) -> None:
    found = parse_object({"segmentation": [box(1, 1, 5, 5)], "iscrowd": crowd}, 1)
    assert found["crowd"] is (crowd in ("1", 1))
