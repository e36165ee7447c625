"""A user's own COCO-style JSON: any categories, names and sizes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmm_ray.commands.check_data import source_of
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import read_all
from pmm_ray.sources.datasets.coco import import_coco
from pmm_ray.sources.datasets.coco_objects import NO_OUTLINE, parse_object
from pmm_ray.sources.datasets.raster import draw_objects

from .coco_tree import HEIGHT, WIDTH, annotation, box, entry, photo, write
from .faulty import rows

KINDS = [{"id": 7, "name": "кошка"}, {"id": 3, "name": "犬"}, {"id": 40, "name": "Vögel"}]


def test_one_file_with_splits_folders_and_other_scripts(tmp_path: Path) -> None:
    photo(tmp_path / "images/a.jpg")
    photo(tmp_path / "images/деревня/b 1.png")
    photo(tmp_path / "c.jpg")
    corner = box(1, 1, 5, 5)
    write(
        tmp_path / "annotations.json",
        [entry(1, "a.jpg"), entry(2, "деревня/b 1.png", split="val"), entry(3, "c.jpg")],
        [annotation(1, 40, [corner]), annotation(2, 3, [corner]), annotation(1, 7, [corner])],
        KINDS,
    )
    report = import_coco(str(tmp_path), str(tmp_path / "out"))
    space = report.manifest.label_space
    assert space.names == ("background", "犬", "кошка", "Vögel")
    assert space.dataset_ids == (0, 3, 7, 40)
    found = {row["uri"].removeprefix(f"{tmp_path}/"): row for row in rows(report).values()}
    assert {uri: (row["labels"], row["split"]) for uri, row in found.items()} == {
        "images/a.jpg": ([2, 3], "train"),
        "images/деревня/b 1.png": ([1], "val"),
        "c.jpg": ([], "train"),
    }
    assert report.manifest.ground_truth == {"train": 1, "val": 1}
    assert report.counts["unlabelled"] == 1
    assert not report.errors


def test_a_file_for_each_split_and_a_json_alone(tmp_path: Path) -> None:
    for split, image in (("train", "x"), ("val", "y")):
        photo(tmp_path / f"images/{split}/{image}.jpg")
        content = ([entry(1, f"{image}.jpg")], [annotation(1, 3, [])], KINDS)
        write(tmp_path / f"annotations/{split}.json", *content)
    report = import_coco(str(tmp_path), str(tmp_path / "out"))
    assert report.manifest.splits == {"train": 1, "val": 1}
    alone = tmp_path / "images/val/_annotations.coco.json"
    write(alone, *content)
    report = import_coco(str(alone), str(tmp_path / "out2"))
    assert report.manifest.splits == {"train": 1}


def test_a_category_called_background_is_no_class(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    kinds = [{"id": 0, "name": "background"}, {"id": 1, "name": "cat"}]
    path = write(
        tmp_path / "a.json",
        [entry(1, "a.jpg")],
        [annotation(1, 0, [box(0, 0, 30, 20)]), annotation(1, 1, [box(1, 1, 3, 3)])],
        kinds,
    )
    report = import_coco(str(path), str(tmp_path / "out"))
    assert report.manifest.label_space.names == ("background", "cat")
    assert rows(report)["a"]["labels"] == [1]


def test_a_thousand_categories_need_sixteen_bits(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    kinds = [{"id": i, "name": f"вид {i}"} for i in range(1000)]
    content = ([entry(1, "a.jpg")], [annotation(1, 999, [box(0, 0, 30, 20)])], kinds)
    report = import_coco(str(write(tmp_path / "a.json", *content)), str(tmp_path / "out"))
    space = report.manifest.label_space
    assert (space.num_foreground, space.ignore) == (1000, 65535)
    assert rows(report)["a"]["labels"] == [1000]
    [objects] = read_all(str(tmp_path / "out/objects")).to_pylist()
    mask = draw_objects(objects["objects"], HEIGHT, WIDTH, space)
    assert set(np.unique(mask)) == {1000}


def test_what_is_wrong_with_one_image_is_one_error_row(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "other-size.jpg", (8, 8))
    (tmp_path / "broken.jpg").write_bytes(b"no image")
    names = ("a.jpg", "other-size.jpg", "broken.jpg", "absent.jpg", "../../etc/passwd")
    write(
        tmp_path / "train.json",
        [entry(i, name) for i, name in enumerate(names)],
        [annotation(0, 3, []), annotation(1, 3, [])],
        KINDS,
    )
    report = import_coco(str(tmp_path), str(tmp_path / "out"))
    assert list(rows(report)) == ["a"]
    kinds = sorted(error.kind for error in report.errors)
    assert kinds == ["decode", "label", "missing", "missing"]
    assert any("8 x 8" in error.message for error in report.errors)


def test_nothing_to_import_is_said(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match="no annotation file"):
        import_coco(str(tmp_path), str(tmp_path / "out"))


@pytest.mark.parametrize(
    ("segmentation", "said"),
    [
        ({"size": 5, "counts": "abc"}, "run lengths for 5"),
        ({"size": [HEIGHT, WIDTH], "counts": [10**17]}, "no whole numbers"),
        ([[2**60, 1, 2, 3, 4, 5]], "no pixel of an image"),
    ],
)
def test_an_odd_number_costs_one_image(segmentation: Any, said: str, tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "b.jpg")
    objects = [annotation(1, 1, segmentation), annotation(2, 1, [box(1, 1, 5, 5)])]
    path = write(tmp_path / "set.json", [entry(1, "a.jpg"), entry(2, "b.jpg")], objects)
    report = import_coco(str(path), str(tmp_path / "out"))
    assert list(rows(report)) == ["b"]
    [error] = report.errors
    assert (error.image_id, error.kind) == ("a", "label")
    assert said in error.message


def test_a_text_that_holds_nan_stays(tmp_path: Path) -> None:
    photo(tmp_path / "a,NaN,b.jpg")
    image, item = entry(1, "a,NaN,b.jpg"), annotation(1, 1, [box(1, 1, 5, 5)])
    path = write(tmp_path / "set.json", [image], [item], [{"id": 1, "name": "x [NaN]"}])
    report = import_coco(str(path), str(tmp_path / "out"))
    assert report.manifest.label_space.names[1:] == ("x [NaN]",)
    assert len(rows(report)) == 1


@pytest.mark.parametrize("key", ["split", "subset"])
def test_a_packed_file_whose_images_name_their_splits(key: str, tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    photo(tmp_path / "b.jpg")
    images = [entry(1, "a.jpg", **{key: "val"}), entry(2, "b.jpg")]
    path = write(tmp_path / "set.json", images, [annotation(1, 3, [box(1, 1, 5, 5)])], KINDS)
    packed = tmp_path / "set.json.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert source_of(str(packed)) == "coco"
    report = import_coco(str(packed), str(tmp_path / "out"))
    assert {i: (row["split"], row["labels"]) for i, row in rows(report).items()} == {
        "a": ("val", [1]),
        "b": ("train", []),
    }


def test_a_polygon_may_be_a_list_of_points(tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    points = [[2, 3], [8, 3], [8, 9], [2, 9]]
    path = write(tmp_path / "a.json", [entry(1, "a.jpg")], [annotation(1, 3, points)], KINDS)
    report = import_coco(str(path), str(tmp_path / "out"))
    assert report.manifest.ground_truth == {"train": 1}
    [objects] = read_all(str(tmp_path / "out/objects")).to_pylist()
    space = report.manifest.label_space
    drawn = draw_objects(objects["objects"], HEIGHT, WIDTH, space)
    flat = annotation(1, 3, [[2, 3, 8, 3, 8, 9, 2, 9]])
    expected = draw_objects([parse_object(flat, 1)], HEIGHT, WIDTH, space)
    assert np.count_nonzero(drawn) > 20
    np.testing.assert_array_equal(drawn, expected)
    # two points, or something else among them, are none
    for other in (points[:2], [*points, []]):
        assert parse_object(annotation(1, 3, other), 1)["label"] == NO_OUTLINE


@pytest.mark.parametrize("nested", [True, False])
def test_annotations_that_are_no_list_are_refused(nested: bool, tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    image, item = entry(1, "a.jpg"), annotation(1, 3, [box(1, 1, 5, 5)])
    content = {"images": [image], "annotations": {"1": item}, "categories": KINDS}
    if nested:
        content = {"images": [image | {"annotations": [item]}], "categories": KINDS}
    (tmp_path / "set.json").write_text(json.dumps(content), encoding="utf-8")
    said = "`images` hold the annotations" if nested else "`annotations` is a dictionary"
    with pytest.raises(CannotRunError, match=rf"set\.json: .*{said}.*as (one|a) list"):
        import_coco(str(tmp_path / "set.json"), str(tmp_path / "out"))
