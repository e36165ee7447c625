from __future__ import annotations

import json

import numpy as np
import pytest

from pmm_ray.labels import COCO14, VOC12, LabelSpace, voc_palette


def wide_space(classes: int) -> LabelSpace:
    return LabelSpace.from_names([f"class {i}" for i in range(1, classes + 1)])


def test_palette_is_the_voc_colour_map() -> None:
    # the first entries and the void colour as printed in the VOC2012 development kit
    first = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)]
    assert [tuple(row) for row in voc_palette()[:6].tolist()] == first
    assert voc_palette()[20].tolist() == [0, 64, 128]
    assert voc_palette()[255].tolist() == [224, 224, 192]
    assert VOC12.palette.shape == (256, 3)
    assert VOC12.palette.dtype == np.uint8
    with pytest.raises(ValueError, match="read-only"):
        VOC12.palette[0, 0] = 1


def test_voc_and_coco_are_as_the_field_uses_them() -> None:
    assert (VOC12.num_classes, VOC12.num_foreground, VOC12.ignore) == (21, 20, 255)
    assert VOC12.id_of("aeroplane") == 1
    assert VOC12.id_of("person") == 15
    assert VOC12.id_of("tvmonitor") == 20
    assert VOC12.dataset_ids == tuple(range(21))
    assert COCO14.num_foreground == 80
    assert COCO14.dataset_ids[-1] == 90
    missing = set(range(91)) - set(COCO14.dataset_ids)
    assert missing == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    for name, original in [("person", 1), ("stop sign", 13), ("tv", 72), ("toothbrush", 90)]:
        assert COCO14.dataset_ids[COCO14.id_of(name)] == original


def test_coco_names_and_ids_equal_the_official_annotations(shared) -> None:
    path = shared / "data/coco14-mini/annotations/instances_val2014.json"
    categories = json.loads(path.read_text())["categories"]
    official = {category["name"]: category["id"] for category in categories}
    assert dict(zip(COCO14.names[1:], COCO14.dataset_ids[1:], strict=True)) == official


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64])
def test_dataset_ids_round_trip(dtype: type) -> None:
    contiguous = np.array([[0, 1, 12, 80], [255, 11, 79, 0]], dtype)
    dataset = COCO14.to_dataset(contiguous)
    assert dataset.dtype == np.uint8
    assert dataset.tolist() == [[0, 1, 13, 90], [255, 11, 89, 0]]
    back = COCO14.to_contiguous(dataset.astype(dtype))
    assert back.dtype == np.uint8
    assert np.array_equal(back, contiguous)


@pytest.mark.parametrize("value", [12, 83, 91, 254, 300, -1])
def test_unknown_dataset_value_is_named(value: int) -> None:
    mask = np.array([[1, value]], np.int32)
    with pytest.raises(ValueError, match=rf"unknown mask values {value}: allowed are 0\.\.11, 13"):
        COCO14.to_contiguous(mask)


def test_unknown_contiguous_value_and_float_masks_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"unknown mask values 21, 30: allowed are 0\.\.20 and 255"
    ):
        VOC12.to_dataset(np.array([21, 3, 30], np.uint8))
    with pytest.raises(ValueError, match="integers"):
        VOC12.to_contiguous(np.zeros((2, 2)))


def test_more_than_254_classes_use_16_bits() -> None:
    assert (wide_space(254).ignore, wide_space(254).mask_dtype) == (255, np.uint8)
    space = wide_space(255)
    assert (space.ignore, space.mask_dtype) == (65535, np.uint16)
    mask = np.array([0, 255, 65535], np.uint16)
    assert np.array_equal(space.to_contiguous(space.to_dataset(mask)), mask)


def test_dataset_ids_above_255_need_16_bits_in_dataset_masks_only() -> None:
    space = LabelSpace("sparse", ("background", "a", "b"), (0, 7, 1000))
    dataset = space.to_dataset(np.array([0, 1, 2, 255], np.uint8))
    assert dataset.dtype == np.uint16
    assert dataset.tolist() == [0, 7, 1000, 255]
    assert space.to_contiguous(dataset).dtype == np.uint8


def test_empty_mask_keeps_its_shape() -> None:
    assert VOC12.to_contiguous(np.zeros((0, 4), np.uint8)).shape == (0, 4)


def test_id_of_names_the_nearest_class() -> None:
    with pytest.raises(ValueError, match="nearest known one is 'aeroplane'"):
        VOC12.id_of("airplane")
    with pytest.raises(ValueError, match="nearest known one is 'person'"):
        VOC12.id_of("PERSON")


def test_names_in_any_script_and_any_unicode_form() -> None:
    space = LabelSpace.from_names(["café", "собака", "猫"])
    assert space.id_of("café") == 1
    assert space.id_of(" 猫 ") == 3
    with pytest.raises(ValueError, match="twice"):
        LabelSpace.from_names(["café", "café"])


@pytest.mark.parametrize("space", [VOC12, COCO14, LabelSpace.from_names(["猫"]), wide_space(1000)])
def test_json_round_trip(space: LabelSpace) -> None:
    assert LabelSpace.from_json(space.to_json()) == space
    assert LabelSpace.from_json(space.to_json()).to_json() == space.to_json()


def test_from_names_accepts_a_leading_background() -> None:
    assert LabelSpace.from_names(["background", "a"]) == LabelSpace.from_names(["a"])


@pytest.mark.parametrize(
    ("names", "ids", "message"),
    [
        (("a", "b"), (0, 1), "background"),
        ((), (), "background"),
        (("background",), (0,), "0 foreground classes"),
        (("background", "a", "a"), (0, 1, 2), "twice"),
        (("background", "a", " "), (0, 1, 2), "empty"),
        (("background", "a"), (0, 1, 2), "3 dataset ids"),
        (("background", "a", "b"), (0, 1, 1), "unique"),
        (("background", "a"), (1, 0), "begin with 0"),
        (("background", "a"), (0, 255), "ignore value"),
        (("background", "a"), (0, 70000), "0..65534"),
    ],
)
def test_impossible_spaces_are_refused(
    names: tuple[str, ...], ids: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LabelSpace("x", names, ids)


def test_too_many_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="1001 foreground"):
        wide_space(1001)
