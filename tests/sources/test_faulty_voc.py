"""VOC trees with labels, masks and photographs that say something else than they seem to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

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
