"""Lists, tables and annotations after accidents: read, or refused in a sentence."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from pmm_ray.labels import VOC12
from pmm_ray.sources.datasets.coco import import_coco
from pmm_ray.sources.datasets.coco14 import import_coco14
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.sources.labels.label_files import read_label_space
from pmm_ray.sources.labels.lists import read_label_list, read_members

from ..sources.coco_tree import OFFICIAL, annotation, box, entry, photo
from .mutations import alone, damaged, fuzz, ours

CSVS = [
    b"image_id,labels,split\na,dog;cat,train\nb.jpg,cat,val\n,,\n",
    b'image_id;labels\na;"dog, cat"\nimages\\b.jpg;0;1;0;1\n',
    "\ufeffimage_id\tlabels\nmöwe\tцвет\n".encode("utf-16"),
]
LISTS = {
    "names.txt": [
        b"__ignore__\n_background_\ncat\n",
        b"cat\ndog\n",
        b"background:0,0,0::\na:1,2,3::",
    ],
    "names.csv": [b"id,name\n0,background\n1,cat\n300,dog\n", b"Pixel Value, Class\n0, bg\n1, x\n"],
    "names.json": [b'{"categories": [{"id": 7, "name": "cat"}]}', VOC12.to_json().encode()],
    "names.yaml": [b"names: [cat, dog]\n", b"names:\n  0: cat\n  1: dog\n"],
}


def coco(categories: list[dict[str, Any]]) -> bytes:
    annotations = [
        annotation(1, categories[0]["id"], [box(1, 1, 5, 5)]) | {"area": float("nan")},
        annotation(1, categories[1]["id"], []) | {"bbox": [1.0, 2.0, 3.0, 4.0]},
        annotation(2, categories[1]["id"], {"size": [20, 30], "counts": [0, 600]}, crowd=1),
        annotation(2, categories[0]["id"], {"size": [20, 30], "counts": "PPYo1"}) | {"id": "x"},
    ]
    images = [entry(1, "a.jpg", split="val"), entry(2, "images\\b%20c.jpg")]
    content = {"images": images, "annotations": annotations, "categories": categories}
    return json.dumps(content).encode()


KINDS = [
    {"id": 0, "name": "cat", "supercategory": "none"},
    {"id": 1, "name": "cat", "supercategory": "cat"},
    {"id": "2", "name": "_background_"},
]
COCO = [
    coco(KINDS),
    coco(KINDS[1:]),
    b"\xef\xbb\xbf" + coco(KINDS),
    coco(KINDS).decode().encode("utf-16"),
]


@pytest.mark.parametrize("name", LISTS)
def test_class_lists(name: str) -> None:
    @fuzz
    @given(damaged(LISTS[name]))
    def read(data: bytes) -> None:
        with alone(name, data) as path:
            ours(lambda: read_label_space(str(path)))

    read()


@fuzz
@given(damaged([b"2007_000032 0 14\n2007_000033 19\n", b"/JPEGImages/a.jpg /Masks/a.png\n"]))
def test_lists_of_labels_and_ids(data: bytes) -> None:
    with alone("train_cls.txt", data) as path:
        ours(lambda: read_label_list(str(path), VOC12))
        ours(lambda: read_members(str(path)))


@fuzz
@given(damaged(CSVS))
def test_labels_of_a_folder(data: bytes) -> None:
    with alone("labels.csv", data) as path:
        folder = path.parent
        for name in ("a.jpg", "b.jpg", "sub/möwe.jpg"):
            photo(folder / "images" / name)
        ours(lambda: import_folder(str(folder), f"{folder}/out"))


@fuzz
@given(damaged(COCO))
def test_coco_style_annotations(data: bytes) -> None:
    with alone("set.json", data) as path:
        for name in ("a.jpg", "images/b c.jpg"):
            photo(path.parent / name)
        ours(lambda: import_coco(str(path), f"{path.parent}/out"))


@fuzz
@given(damaged([coco(OFFICIAL)]))
def test_official_annotations(data: bytes) -> None:
    with alone("annotations/instances_train2014.json", data) as path:
        folder = path.parent.parent
        ours(lambda: import_coco14(str(folder), f"{folder}/out"))
