from __future__ import annotations

import errno
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmm_ray.labels import VOC12
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.store_faults import passing
from pmm_ray.runtime.rows.images import encode_mask
from pmm_ray.sources.datasets.voc12 import import_voc12
from pmm_ray.sources.importing.import_report import ImportReport
from pmm_ray.sources.reading.pickled import load_pickled_dict

from .faulty import rows

HEIGHT, WIDTH = 12, 16


class Tree:
    """A small VOCdevkit/VOC2012 made by the test."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.voc = root / "VOCdevkit/VOC2012"
        self.out = root / "out"
        for name in ("JPEGImages", "ImageSets/Segmentation"):
            (self.voc / name).mkdir(parents=True)

    def photo(self, image_id: str) -> Path:
        path = self.voc / f"JPEGImages/{image_id}.jpg"
        Image.new("RGB", (WIDTH, HEIGHT), "grey").save(path)
        return path

    def mask(self, image_id: str, *classes: int, folder: str = "SegmentationClassAug") -> Path:
        mask = np.zeros((HEIGHT, WIDTH), np.uint8)
        for row, label in enumerate(classes):
            mask[row] = label
        mask[-1] = 255
        path = self.voc / folder / f"{image_id}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encode_mask(mask, VOC12))
        return path

    def xml(self, image_id: str, *names: str) -> None:
        objects = "".join(
            f"<object><name>{n}</name><part><name>head</name></part></object>" for n in names
        )
        path = self.voc / f"Annotations/{image_id}.xml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"<annotation><filename>x</filename>{objects}</annotation>")

    def cls_labels(self, labels: dict[str, list[int]]) -> Path:
        vectors = {
            image_id: np.isin(np.arange(1, 21), ids).astype(np.float32)
            for image_id, ids in labels.items()
        }
        np.save(self.voc / "cls_labels.npy", vectors)
        return self.voc / "cls_labels.npy"

    def list(self, name: str, *lines: str) -> None:
        (self.voc / f"ImageSets/Segmentation/{name}.txt").write_text("\r\n".join(lines) + "\r\n")

    def import_(self, **options: object) -> ImportReport:
        options.setdefault("splits", ["train_aug", "val"])
        return import_voc12(str(self.root), str(self.out), **options)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path)
    for image_id in ("2007_000001", "2007_000002", "2007_000003"):
        tree.photo(image_id)
    tree.list("train_aug", "2007_000001", "2007_000002", "")
    tree.list("val", "2007_000003")
    tree.mask("2007_000001", 15, 1)
    tree.mask("2007_000002", 20)
    tree.mask("2007_000003", 8, folder="SegmentationClass")
    return tree


def kinds(report: ImportReport) -> dict[str, str]:
    return {error.image_id: error.kind for error in report.errors}


def test_masks_are_used_in_place_and_give_labels(tree: Tree) -> None:
    report = tree.import_(labels_from="masks")
    found = rows(report)
    assert found["2007_000001"]["labels"] == [1, 15]
    assert found["2007_000002"]["labels"] == [20]
    assert found["2007_000003"]["labels"] == [8]
    first = found["2007_000001"]
    assert first["uri"] == str(tree.voc / "JPEGImages/2007_000001.jpg")
    assert first["ground_truth_uri"] == str(tree.voc / "SegmentationClassAug/2007_000001.png")
    assert (first["height"], first["width"], first["split"]) == (HEIGHT, WIDTH, "train_aug")
    manifest = report.manifest
    assert manifest.label_space == VOC12
    assert not manifest.apply_exif
    assert manifest.splits == {"train_aug": 2, "val": 1}
    assert tables.table_metadata(manifest.uri)["pmm.labels_from"] == "masks"


def test_official_masks_win_in_every_split_and_are_counted(tree: Tree) -> None:
    """mmsegmentation's converter puts SBD's masks, without a border, over more than half of val."""
    official = tree.mask("2007_000001", 3, folder="SegmentationClass")
    tree.mask("2007_000003", 9)
    report = tree.import_(labels_from="masks")
    found = rows(report)
    assert found["2007_000001"]["ground_truth_uri"] == str(official)
    assert [found[i]["labels"] for i in sorted(found)] == [[3], [20], [8]]
    assert found["2007_000003"]["ground_truth_uri"] == str(
        tree.voc / "SegmentationClass/2007_000003.png"
    )
    assert {
        "masks of train_aug: 1 of SegmentationClass, 1 of SegmentationClassAug",
        "masks of val: 1 of SegmentationClass",
    } <= set(report.notes)


@pytest.mark.parametrize("inner", ["", "VOCdevkit", "VOCdevkit/VOC2012"])
def test_any_of_the_three_roots(tree: Tree, inner: str) -> None:
    report = import_voc12(str(tree.root / inner), str(tree.out), labels_from="masks")
    assert report.rows == 3


def test_labels_from_xml_count_every_object(tree: Tree) -> None:
    tree.xml("2007_000001", "person", "aeroplane", "person")
    tree.xml("2007_000002", "person")
    report = tree.import_()
    found = rows(report)
    assert found["2007_000001"]["labels"] == [1, 15]
    assert found["2007_000002"]["labels"] == [15]
    assert found["2007_000003"]["labels"] == []
    assert report.counts["labels differ from masks"] == 1
    assert report.counts["unlabelled"] == 1


def test_labels_from_a_trusted_pickle_and_their_differences(tree: Tree) -> None:
    tree.cls_labels({"2007_000001": [1, 15], "2007_000002": [5, 20], "2007_000003": [8]})
    tree.xml("2007_000001", "cat")
    tree.xml("2007_000003", "cat")
    report = tree.import_(trust_pickle=True)
    assert [row["labels"] for row in rows(report).values()] == [[1, 15], [5, 20], [8]]
    assert report.counts["labels differ from masks"] == 1
    assert report.counts["labels differ from xml"] == 1


@pytest.mark.parametrize("wanted", ["auto", "cls_labels"])
def test_an_untrusted_pickle_is_refused_and_the_message_says_so(tree: Tree, wanted: str) -> None:
    tree.cls_labels({"2007_000001": [1]})
    with pytest.raises(CannotRunError, match=r"--trust-pickle.*labels_from: masks"):
        tree.import_(labels_from=wanted)
    assert tree.import_(labels_from="masks").rows == 3


def test_auto_passes_an_untrusted_pickle_over_for_xml(tree: Tree) -> None:
    tree.cls_labels({"2007_000001": [2]})
    tree.xml("2007_000001", "person")
    assert rows(tree.import_())["2007_000001"]["labels"] == [15]


def test_no_labels_at_all(tree: Tree) -> None:
    tree.list("test", "2007_000003")
    for path in tree.voc.glob("Segmentation*/*.png"):
        path.unlink()
    report = tree.import_(splits=["test"])
    assert rows(report)["2007_000003"]["labels"] == []
    assert rows(report)["2007_000003"]["ground_truth_uri"] is None
    assert not report.manifest.ground_truth
    with pytest.raises(CannotRunError, match="no labels from 'xml'"):
        tree.import_(splits=["test"], labels_from="xml")


def test_lists_with_paths_and_both_spellings(tree: Tree) -> None:
    (tree.voc / "ImageSets/Segmentation/train_aug.txt").unlink()
    tree.list("trainaug", "/JPEGImages/2007_000001.jpg /SegmentationClassAug/2007_000001.png")
    assert tree.import_().manifest.splits == {"train_aug": 1, "val": 1}
    with pytest.raises(CannotRunError, match=r"no list trainval.txt .*'trainaug', 'val'"):
        tree.import_(splits=["trainval"])


def test_every_fault_is_an_error_row_and_nothing_is_lost(tree: Tree) -> None:
    bad = ["gone", "broken", "empty", "othersize", "colours", "badmask", "wrong", "../../x"]
    for name in bad[1:-1]:
        tree.photo(name)
    (tree.voc / "JPEGImages/broken.jpg").write_bytes(b"no image")
    (tree.voc / "JPEGImages/empty.jpg").write_bytes(b"")
    Image.new("RGB", (5, 4)).save(tree.voc / "JPEGImages/othersize.jpg")
    tree.mask("othersize", 1)
    Image.new("RGB", (WIDTH, HEIGHT)).save(tree.voc / "SegmentationClassAug/colours.png")
    (tree.voc / "SegmentationClassAug/badmask.png").write_bytes(b"")
    mask = Image.new("L", (WIDTH, HEIGHT), 21)
    mask.save(tree.voc / "SegmentationClassAug/wrong.png")
    tree.list("train_aug", "2007_000001", *bad, "2007_000001", "2007_000002")
    report = tree.import_(labels_from="masks")
    assert kinds(report) == {
        "gone": "missing",
        "broken": "decode",
        "empty": "decode",
        "othersize": "label",
        "colours": "label",
        "badmask": "decode",
        "wrong": "label",
        "../../x": "label",
        "2007_000001": "label",
    }
    assert report.rows == 3
    assert report.total == 2 + len(bad) + 1 + 1
    assert tables.read_errors(str(tree.out / "errors")) == sorted(
        report.errors, key=lambda error: error.image_id
    )
    assert {error.stage for error in report.errors} == {"import"}


def test_unknown_class_and_damaged_xml(tree: Tree) -> None:
    tree.xml("2007_000001", "airplane")
    tree.xml("2007_000002", "person")
    (tree.voc / "Annotations/2007_000003.xml").write_text("<annotation>")
    report = tree.import_()
    assert kinds(report) == {"2007_000001": "label", "2007_000003": "label"}
    assert "aeroplane" in report.errors[0].message


def import_failing(tree: Tree, error: OSError) -> ImportReport:
    """An import that cannot read one annotation."""
    tree.xml("2007_000001", "person")
    tree.xml("2007_000002", "person")
    path = str(tree.voc / "Annotations/2007_000002.xml")

    def read_bytes(uri: str, limit: int | None = None) -> bytes:
        if uri == path:
            raise error
        return original(uri, limit)

    original = storage.read_bytes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "read_bytes", read_bytes)
        return tree.import_()


def test_unreadable_annotation_costs_its_image_only(tree: Tree) -> None:
    report = import_failing(tree, PermissionError(errno.EACCES, "Permission denied", "2.xml"))
    assert kinds(report) == {"2007_000002": "missing"}
    assert "Permission denied" in report.errors[0].message


def test_a_disk_that_fails_is_no_fault_of_an_image(tree: Tree) -> None:
    with pytest.raises(OSError, match="Input/output error") as caught:
        import_failing(tree, OSError(errno.EIO, "Input/output error", "2.xml"))
    assert passing(caught.value)


def test_too_large(tree: Tree) -> None:
    tree.list("val", "2007_000003", "large")
    Image.new("RGB", (WIDTH, HEIGHT + 1)).save(tree.voc / "JPEGImages/large.jpg")
    report = tree.import_(labels_from="masks", max_pixels=WIDTH * HEIGHT)
    assert kinds(report) == {"large": "too_large"}


def test_nothing_usable(tree: Tree) -> None:
    tree.list("val", "gone")
    with pytest.raises(CannotRunError, match=r"no image could be imported\n  gone: missing"):
        tree.import_(splits=["val"])
    assert len(tables.read_errors(str(tree.out / "errors"))) == 1


def test_no_tree(tmp_path: Path) -> None:
    with pytest.raises(CannotRunError, match="no VOC 2012 below"):
        import_voc12(str(tmp_path), str(tmp_path / "out"))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("echo reached > /dev/null",))


def test_a_trusted_pickle_still_cannot_run_code(tmp_path: Path) -> None:
    path = tmp_path / "cls_labels.npy"
    np.save(path, {"a": Evil()})
    with pytest.raises(CannotRunError, match="not admitted"):
        load_pickled_dict(str(path), trust_pickle=True)


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_pickle_of_numpy_1(tmp_path: Path, protocol: int) -> None:
    content = np.array({"a": np.arange(3, dtype=np.float32), "b": np.float32(2)}, dtype=object)
    # up to protocol 3 modules are named as plain text, so the old name can be put in
    payload = pickle.dumps(content, protocol=protocol).replace(b"cnumpy._core.", b"cnumpy.core.")
    assert b"cnumpy.core.multiarray" in payload
    stream = io.BytesIO()
    header = {"descr": "|O", "fortran_order": False, "shape": ()}
    np.lib.format.write_array_header_1_0(stream, header)
    path = tmp_path / "old.npy"
    path.write_bytes(stream.getvalue() + payload)
    loaded = load_pickled_dict(str(path), trust_pickle=True)
    assert loaded["a"].tolist() == [0, 1, 2]
    assert loaded["b"] == 2


def test_other_contents_are_explained(tmp_path: Path) -> None:
    path = tmp_path / "a.npy"
    for content, message in [
        (np.arange(3), "holds an array"),
        (np.array(["text"], dtype=object), "holds an array"),
        (np.array("text", dtype=object), "holds a str"),
    ]:
        np.save(path, content, allow_pickle=True)
        with pytest.raises(CannotRunError, match=message):
            load_pickled_dict(str(path), trust_pickle=True)
    path.write_bytes(b"no array")
    with pytest.raises(CannotRunError, match="not a pickled dictionary"):
        load_pickled_dict(str(path), trust_pickle=True)


def test_a_vector_of_another_length_is_an_error_row(tree: Tree) -> None:
    np.save(tree.voc / "cls_labels.npy", {"2007_000001": np.ones(90), "2007_000002": np.ones(20)})
    report = tree.import_(trust_pickle=True)
    assert kinds(report) == {"2007_000001": "label"}
    assert rows(report)["2007_000002"]["labels"] == list(range(1, 21))


def test_the_fields_own_cls_labels(shared: Path) -> None:
    path = str(shared / "data/lists/voc12/cls_labels.npy")
    vectors = load_pickled_dict(path, trust_pickle=True)
    assert len(vectors) == 12_031
    assert {vector.shape for vector in vectors.values()} == {(20,)}
    lists = Path(path).parent
    listed = {*lists.joinpath("train_aug.txt").read_text().split()}
    listed |= {*lists.joinpath("val.txt").read_text().split()}
    assert listed == set(vectors)


def test_the_real_photographs(shared: Path, tmp_path: Path) -> None:
    root = str(shared / "data/voc12-mini/VOCdevkit")
    report = import_voc12(root, str(tmp_path), trust_pickle=True)
    assert (report.rows, report.errors) == (500, ())
    assert report.manifest.splits == {"train_aug": 350, "val": 150}
    assert report.manifest.ground_truth == {"train_aug": 350, "val": 150}
    assert 0 < report.counts["labels differ from masks"] < 100
