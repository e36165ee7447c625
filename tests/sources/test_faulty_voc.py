"""VOC trees with labels, masks and photographs that say something else than they seem to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from pmm_ray.labels import voc_palette
from pmm_ray.runtime.core.errors import CannotRunError

from .test_voc12 import HEIGHT, WIDTH, Tree, kinds, rows, tree

__all__ = ["tree"]  # a fixture

ONE, TWO = "2007_000001", "2007_000002"


@pytest.mark.parametrize(
    "vector",
    [
        np.where(np.arange(20) == 7, 1, -1),  # of VOC's own lists
        np.full(20, np.nan),
        np.full(20, 0.03),
        np.array(["x"] * 20),
    ],
)
def test_vectors_that_are_not_0_or_1_are_errors(tree: Tree, vector: Any) -> None:
    sound = np.isin(np.arange(20), [7]).astype(bool)
    np.save(tree.voc / "cls_labels.npy", {ONE: vector, TWO: sound, "2007_000003": sound})
    report = tree.import_(trust_pickle=True)
    assert kinds(report) == {ONE: "label"}
    assert "0 or 1 a class" in report.errors[0].message
    assert rows(report)[TWO]["labels"] == [8]


@pytest.mark.parametrize("line", ["0 0 0 0 0 0 0 1 0 0 0 0 0 0 0 0 0 0 0 0", "7 7"])
def test_lists_that_repeat_a_class_are_refused(tree: Tree, line: str) -> None:
    lists = tree.root / "lists"
    lists.mkdir()
    (lists / "train_aug_cls.txt").write_text(f"{ONE} {line}\n{TWO} 19\n")
    with pytest.raises(CannotRunError, match=r"stands in it twice, .* not 0 or 1 for each"):
        tree.import_(lists=str(lists), labels_from="lists")


def test_masks_of_0_and_255_are_refused(tree: Tree) -> None:
    for name in (ONE, TWO, "2007_000003"):
        tree.xml(name, "cat")
        for path in tree.voc.glob(f"Segmentation*/{name}.png"):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            mask[3:] = 255
            Image.fromarray(mask).save(path)
    with pytest.raises(CannotRunError, match="hold only 0 and 255"):
        tree.import_()


def test_two_photographs_of_one_id_are_an_error(tree: Tree) -> None:
    Image.new("RGB", (WIDTH, HEIGHT)).save(tree.voc / f"JPEGImages/{ONE}.png")
    report = tree.import_()
    assert kinds(report) == {ONE: "label"}
    assert f"{ONE}.jpg" in report.errors[0].message
    assert f"{ONE}.png" in report.errors[0].message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('<?xml version="1.0" encoding="gbk-foo"?><annotation/>', "not an XML annotation"),
        ("<annotations><annotation/></annotations>", "it begins with <annotations>"),
        ('<annotation xmlns="x"><object><name>cat</name></object></annotation>', "it begins with"),
    ],
)
def test_other_xml_is_an_error_of_its_image(tree: Tree, text: str, said: str) -> None:
    tree.xml(TWO, "cat")
    (tree.voc / f"Annotations/{ONE}.xml").write_text(text)
    report = tree.import_()
    assert kinds(report) == {ONE: "label"}
    assert said in report.errors[0].message
    assert "images that xml does not know: 1, such as 2007_000003" in report.notes


def test_lists_may_name_files(tree: Tree) -> None:
    tree.list("train_aug", f"{ONE}.png", f"JPEGImages/{TWO}.jpeg")
    assert set(rows(tree.import_())) == {ONE, TWO, "2007_000003"}


def reorder(path: Any, *order: int) -> None:
    """A mask as an optimiser writes it: fewer colours, at other indices."""
    mask = np.array(Image.open(path))
    places = np.zeros(256, np.uint8)
    places[list(order)] = np.arange(len(order))
    image = Image.fromarray(places[mask])
    image.putpalette(voc_palette()[list(order)].tobytes())
    image.save(path)


@pytest.mark.parametrize("labels_from", ["xml", "masks"])
def test_a_palette_in_another_order_is_an_error(tree: Tree, labels_from: str) -> None:
    for name in (ONE, TWO, "2007_000003"):
        tree.xml(name, "cat")
    reorder(tree.mask(ONE, 8), 0, 8, 255)
    report = tree.import_(labels_from=labels_from)
    assert kinds(report) == {ONE: "label"}
    assert "such as 1 (aeroplane) that of 8 (cat)" in report.errors[0].message


@pytest.mark.parametrize("line", [f"{ONE} {TWO}", f"{ONE} 2", f"{ONE}.png {TWO}.png", f"{ONE} 1 1"])
def test_a_line_of_two_ids_is_refused(tree: Tree, line: str) -> None:
    tree.list("train_aug", line)
    with pytest.raises(CannotRunError, match=r"train_aug\.txt: the line .* write an id a line"):
        tree.import_()


def test_a_photograph_that_a_list_says_is_absent_is_left_out(tree: Tree) -> None:
    tree.list("train_aug", f"{ONE}  1", f"{TWO} -1", "2007_000003  0")
    tree.list("val", "2007_000003")
    report = tree.import_(splits=["train_aug"])
    assert set(rows(report)) == {ONE, "2007_000003"}
    group = report.accounting.left_out["absent, -1 in the list"]
    assert (group.count, group.first) == (1, (TWO,))


@pytest.mark.parametrize("name", ["SegmentationClassAug/{}.png", "{}_gt.png", "x/{}_mask.png"])
def test_masks_unpacked_or_named_in_another_way_are_found(tree: Tree, name: str) -> None:
    folder = tree.voc / "SegmentationClassAug"
    to = folder / name.format(ONE)
    to.parent.mkdir(exist_ok=True)
    (folder / f"{ONE}.png").rename(to)
    report = tree.import_()
    assert rows(report)[ONE]["ground_truth_uri"] == str(to)
    assert not any("not used" in note for note in report.notes)


def test_masks_that_are_not_used_are_named(tree: Tree) -> None:
    folder = tree.voc / "SegmentationClassAug"
    (folder / f"{ONE}.png").rename(folder / f"{ONE}.jpg")
    for inner in "xy":
        (folder / inner).mkdir()
        (folder / f"{inner}/{TWO}.png").write_bytes((folder / f"{TWO}.png").read_bytes())
    (folder / f"{TWO}.png").rename(folder / "2008_000009.png")
    (tree.voc / "SegmentationClassRaw").mkdir()
    report = tree.import_()
    assert [row["ground_truth_uri"] for row in rows(report).values()][:2] == [None, None]
    said = "\n".join(report.notes)
    assert f"no PNG files (JPEG changes their values): 1, such as {folder}/{ONE}.jpg" in said
    assert f"no photograph has their name: 1, such as {folder}/2008_000009.png" in said
    assert f"fits the photograph as well: 2, such as {folder}/x/{TWO}.png" in said
    assert f"{tree.voc}/SegmentationClassRaw is not read" in said


def test_folders_in_another_case_and_labels_beside_the_tree_are_found(tree: Tree) -> None:
    tree.xml(ONE, "cat")
    (tree.voc / "Annotations").rename(tree.voc / "annotations")
    assert tree.import_().labels_from == "xml"
    tree.cls_labels({name: [8] for name in (ONE, TWO, "2007_000003")}).rename(
        tree.voc.parent / "cls_labels.npy"
    )
    assert tree.import_(trust_pickle=True).labels_from == "cls_labels"


def test_why_there_are_no_labels_is_said(tree: Tree) -> None:
    for folder in ("SegmentationClass", "SegmentationClassAug"):
        for path in (tree.voc / folder).iterdir():
            path.unlink()
    report = tree.import_()
    said = f"none: {tree.voc} has no Annotations/*.xml, no cls_labels.npy and no masks"
    assert report.labels_from == said
