"""COCO 2014: from annotation files to the manifest, and against the field's lists."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from pmm_ray.labels import COCO14
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import read_all
from pmm_ray.sources.datasets import coco_objects
from pmm_ray.sources.datasets.coco14 import import_coco14
from pmm_ray.sources.datasets.raster import draw_objects
from pmm_ray.sources.labels.lists import read_label_list

from .coco_tree import annotation, box, entry, photo, write
from .faulty import rows


def name(number: int, base: str = "train") -> str:
    return f"COCO_{base}2014_{number:012d}"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three training images, one of them without annotations, and one held-out image."""
    for number in (9, 2, 5):
        photo(tmp_path / f"train2014/{name(number)}.jpg")
    photo(tmp_path / f"val2014/{name(7, 'val')}.jpg")
    write(
        tmp_path / "annotations/instances_train2014.json",
        [entry(n, f"{name(n)}.jpg") for n in (9, 2, 5)],
        [
            annotation(9, 90, [box(1, 1, 4, 4)]),
            annotation(2, 1, {"counts": [0, 600], "size": [20, 30]}, crowd=1),
            annotation(9, 13, [box(0, 0, 20, 20), box(2, 2, 3, 3)]),
            annotation(9, 90, [box(5, 5, 4, 4)]),
        ],
    )
    write(
        tmp_path / "annotations/instances_val2014.json",
        [entry(7, f"{name(7, 'val')}.jpg")],
        [annotation(7, 3, [box(1, 1, 9, 9)])],
    )
    return tmp_path


def test_images_with_an_annotation_become_rows_of_contiguous_ids(tree: Path) -> None:
    report = import_coco14(str(tree), str(tree / "out"))
    found = rows(report)
    assert {i: row["labels"] for i, row in found.items()} == {
        name(2): [1],  # a crowd counts
        name(9): [12, 80],  # dataset ids 13 and 90
        name(7, "val"): [3],
    }
    assert report.counts["annotations"] == 5
    assert report.counts["images without annotation"] == 1
    first = found[name(9)]
    assert first["uri"] == str(tree / f"train2014/{name(9)}.jpg")
    assert (first["height"], first["width"], first["split"]) == (20, 30, "train")
    assert first["ground_truth_uri"] == f"masks/{name(9)}.png"
    assert report.manifest.label_space == COCO14
    assert not report.manifest.apply_exif


def test_the_objects_of_an_image_keep_the_order_of_the_file(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # every annotation is spilled on its own, every image gets a part of its own
    monkeypatch.setattr(coco_objects, "_SPILL_ROWS", 1)
    monkeypatch.setattr(coco_objects, "_PART_IMAGES", 1)
    import_coco14(str(tree), str(tree / "out"))
    objects = {r["image_id"]: r["objects"] for r in read_all(str(tree / "out/objects")).to_pylist()}
    assert [item["label"] for item in objects[name(9)]] == [80, 12, 80]
    assert objects[name(9)][1]["polygons"] == [box(0, 0, 20, 20), box(2, 2, 3, 3)]
    assert objects[name(2)] == [
        {"label": 1, "crowd": True, "polygons": None, "counts": [0, 600], "rle": None}
    ]
    assert set(objects) == {name(9), name(2), name(7, "val")}


@pytest.mark.parametrize("spelled", ["train2014", "train"])
def test_the_splits_have_two_names(tree: Path, spelled: str) -> None:
    report = import_coco14(str(tree), str(tree / "out"), splits=[spelled], truth_splits=[])
    assert report.manifest.splits == {spelled: 2}
    assert report.manifest.ground_truth == {}
    assert not storage.exists(str(tree / "out/objects"))


def test_unknown_splits_and_one_split_twice_are_refused(tree: Path) -> None:
    for splits in (["test2014"], ["train", "train2014"]):
        with pytest.raises(CannotRunError):
            import_coco14(str(tree), str(tree / "out"), splits=splits)


def test_what_is_wrong_with_one_image_is_one_error_row(tree: Path) -> None:
    path = tree / "annotations/instances_train2014.json"
    good = entry(9, f"{name(9)}.jpg")
    photo(tree / f"train2014/{name(25)}.jpg")
    write(
        path,
        [
            good,
            entry(1, f"{name(1)}.jpg"),  # not in the folder
            entry(3, "../../etc/passwd"),
            entry(4, good["file_name"]),  # the same file again
            entry(2, f"{name(2)}.jpg", height=0),
            entry(5, f"{name(5)}.jpg"),
            entry(6, f"{name(25)}.jpg"),
            {"id": 8, "height": 20, "width": 30},
        ],
        [
            *(annotation(n, 1, [box(1, 1, 4, 4)]) for n in (9, 1, 3, 4, 2, 6, 8)),
            annotation(5, 1, [[1, 2, "x", 4, 5, 6]]),
            annotation(77, 1, []),
        ],
    )
    report = import_coco14(str(tree), str(tree / "out"), splits=["train"])
    assert list(rows(report)) == [name(25)]
    assert sum(error.image_id == name(9) for error in report.errors) == 2
    kinds = {error.image_id: error.kind for error in report.errors}
    assert kinds == {
        name(1): "missing",
        "passwd": "missing",
        name(9): "label",
        name(2): "label",
        name(5): "label",
        "entry-7": "label",
    }
    # one of them is of the entry without a file
    assert report.counts["annotations of images that are not listed"] == 2


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ('{"images": [{"id": 1, "file_na', "is cut off"),
        ('{"images": [{"id" 1}]}', "not valid JSON"),
        ("[]", "no list `categories`"),
        ('{"categories": [{"id": 1, "name": "chair"}]}', "not COCO's categories"),
        ('{"categories": [{"id": 1, "name": "person"}]}', "no list `images`"),
    ],
)
def test_files_that_are_no_annotations(tree: Path, content: str, text: str) -> None:
    (tree / "annotations/instances_train2014.json").write_text(content)
    with pytest.raises(CannotRunError, match=text):
        import_coco14(str(tree), str(tree / "out"))


def test_labels_can_be_made_before_the_photographs_are_there(tree: Path) -> None:
    for path in (tree / "train2014").iterdir():
        path.unlink()
    (tree / "train2014").rmdir()
    report = import_coco14(str(tree), str(tree / "out"), splits=["train"])
    assert report.rows == 2
    assert report.counts["split train: photographs not there yet"] == 2


def test_lists_are_compared_with_and_used(tree: Path) -> None:
    lists = tree / "lists"
    lists.mkdir()
    (lists / "train_cls.txt").write_text(f"{name(9)} 11 79\n{name(2)} 0 4\n{name(1)} 3\n")
    (lists / "val_cls.txt").write_text("")
    report = import_coco14(str(tree), str(tree / "out"), lists=str(lists))
    with open(tree / "out/differences.csv", newline="") as file:
        differences = list(csv.DictReader(file))
    assert [(d["image_id"], d["kind"], d["only_here"], d["only_in_list"]) for d in differences] == [
        (name(1), "only in the list", "", "motorcycle"),
        (name(2), "labels differ", "", "airplane"),
        (name(7, "val"), "not in the list", "car", ""),
    ]
    assert report.counts["labels differ from the list"] == 1
    used = import_coco14(
        str(tree), str(tree / "out"), splits=["train"], labels_from="lists", lists=str(lists)
    )
    assert rows(used)[name(2)]["labels"] == [1, 5]
    with pytest.raises(CannotRunError, match=r"data\.lists"):
        import_coco14(str(tree), str(tree / "out"), labels_from="lists")


def test_the_fields_lists_are_what_is_seen_of_objects_painted_in_the_files_order(
    shared: Path, tmp_path: Path
) -> None:
    data = shared / "data"
    report = import_coco14(str(data / "coco14-mini"), str(tmp_path))
    assert report.manifest.splits == {"train": 110, "val": 60}
    assert not report.errors
    listed = {}
    for split in ("train", "val"):
        listed |= read_label_list(str(data / f"lists/coco14/{split}_cls.txt"), COCO14)
    objects = {r["image_id"]: r["objects"] for r in read_all(str(tmp_path / "objects")).to_pylist()}
    differing = 0
    for image_id, row in rows(report).items():
        mask = draw_objects(objects[image_id], row["height"], row["width"], COCO14)
        seen = tuple(sorted(set(mask.ravel().tolist()) - {0}))
        assert seen == listed[image_id], image_id
        assert set(seen) <= set(row["labels"])
        differing += seen != tuple(row["labels"])
    # objects that later ones hide wholly, or that are smaller than a pixel
    assert differing == 13


def test_the_official_lists_have_the_official_sizes(shared: Path) -> None:
    lists = shared / "data/lists/coco14"
    sizes = [len(read_label_list(str(lists / f"{s}_cls.txt"), COCO14)) for s in ("train", "val")]
    assert sizes == [82_081, 40_137]
    names = [line.split(maxsplit=1)[1] for line in (lists / "labels.txt").read_text().splitlines()]
    assert len(names) == COCO14.num_classes
    mini = json.loads((shared / "data/coco14-mini/annotations/instances_val2014.json").read_text())
    assert {c["id"]: c["name"] for c in mini["categories"]} == dict(
        zip(COCO14.dataset_ids[1:], COCO14.names[1:], strict=True)
    )
