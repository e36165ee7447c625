"""SBD's `.mat` masks beside a VOC tree, and the field's lists where the tree has none."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pmm_ray.labels import VOC12
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.rows.images import decode_mask, encode_mask
from pmm_ray.sources.datasets.sbd import read_sbd_mask
from pmm_ray.sources.datasets.voc12 import import_voc12
from pmm_ray.sources.labels.lists import read_label_list
from pmm_ray.sources.reading.pickled import load_pickled_dict

from .faulty import rows

HEIGHT, WIDTH = 12, 16


def mask_of(*classes: int) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    for row, label in enumerate(classes):
        mask[row] = label
    return mask


def write_mat(path: Path, mask: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {
        "Segmentation": mask,
        "Boundaries": np.zeros((20, 1), object),
        "CategoriesPresent": np.unique(mask[mask > 0]),
    }
    savemat(path, {"GTcls": fields})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """VOC with images a (train), b (val); SBD with a, b, c, d. c and d are not VOC's own."""
    voc = tmp_path / "VOCdevkit/VOC2012"
    lists = voc / "ImageSets/Segmentation"
    sbd = tmp_path / "benchmark_RELEASE/dataset"
    for folder in (voc / "JPEGImages", voc / "SegmentationClass", lists, sbd):
        folder.mkdir(parents=True)
    for i, name in enumerate("abcd", 1):
        Image.new("RGB", (WIDTH, HEIGHT)).save(voc / f"JPEGImages/{name}.jpg")
        write_mat(sbd / f"cls/{name}.mat", mask_of(i, 20))
    for name, label in (("a", 5), ("b", 6)):
        mask = mask_of(label)
        mask[-1] = 255
        (voc / f"SegmentationClass/{name}.png").write_bytes(encode_mask(mask, VOC12))
    (lists / "train.txt").write_text("a\n")
    (lists / "val.txt").write_text("b\n")
    (sbd / "train.txt").write_text("a\nd\n")
    (sbd / "val.txt").write_text("b\nc\n")
    return tmp_path


def test_train_aug_is_made_of_voc_and_sbd(root: Path) -> None:
    report = import_voc12(str(root), str(root / "out"), labels_from="masks")
    found = rows(report)
    assert {i: (row["split"], row["labels"]) for i, row in found.items()} == {
        "a": ("train_aug", [5]),  # VOC's own mask wins
        "b": ("val", [6]),
        "c": ("train_aug", [3, 20]),
        "d": ("train_aug", [4, 20]),
    }
    assert found["c"]["ground_truth_uri"] == "masks/c.png"
    assert "masks of train_aug: 2 of SBD, 1 of SegmentationClass" in report.notes
    drawn = (root / "out/masks/c.png").read_bytes()
    np.testing.assert_array_equal(decode_mask(drawn), mask_of(3, 20))
    # VOC's own has the void border, and a palette like SBD's
    own = root / "VOCdevkit/VOC2012/SegmentationClass/a.png"
    assert 255 in decode_mask(own.read_bytes())
    with Image.open(own) as first, Image.open(root / "out/masks/c.png") as second:
        assert first.getpalette() == second.getpalette()
        assert first.getpalette()[3:6] == [128, 0, 0]


def test_a_folder_of_augmented_masks_wins_over_sbd(root: Path) -> None:
    folder = root / "VOCdevkit/VOC2012/SegmentationClassAug"
    folder.mkdir()
    (folder / "c.png").write_bytes(encode_mask(mask_of(9), VOC12))
    report = import_voc12(str(root), str(root / "out"), labels_from="masks")
    assert rows(report)["c"]["labels"] == [9]
    assert not (root / "out/masks/c.png").exists()


def test_a_damaged_mat_file_is_one_error_row(root: Path) -> None:
    (root / "benchmark_RELEASE/dataset/cls/c.mat").write_bytes(b"MATLAB 5.0 and no more")
    write_mat(root / "benchmark_RELEASE/dataset/cls/d.mat", mask_of(21))
    report = import_voc12(str(root), str(root / "out"), labels_from="masks")
    assert sorted((e.image_id, e.kind) for e in report.errors) == [("c", "label"), ("d", "label")]
    with pytest.raises(ValueError, match=r"0\.\.20"):
        read_sbd_mask(str(root / "benchmark_RELEASE/dataset/cls/d.mat"))


def test_a_disk_that_is_full_is_no_mask_s_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(uri: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", uri)

    monkeypatch.setattr(storage, "write_bytes", full)
    with pytest.raises(OSError, match=r"No space left on device.*c\.png"):
        import_voc12(str(root), str(root / "out"), labels_from="masks")


def test_lists_stand_in_for_those_the_tree_lacks(root: Path) -> None:
    lists = root / "lists"
    lists.mkdir()
    (lists / "train_aug.txt").write_text("c\n")
    (lists / "test.txt").write_text("d\n")
    (lists / "train_aug_cls.txt").write_text("c 2 18\nx 1\n")
    report = import_voc12(
        str(root), str(root / "out"), splits=["train_aug", "test"], lists=str(lists)
    )
    assert {i: row["split"] for i, row in rows(report).items()} == {"c": "train_aug", "d": "test"}
    assert report.counts["labels differ from the list"] == 1
    assert report.counts["only in the list"] == 1
    text = (root / "out/differences.csv").read_text().splitlines()
    assert text[1] == "c,labels differ,tvmonitor,train"
    used = import_voc12(
        str(root), str(root / "out"), splits=["train_aug"], lists=str(lists), labels_from="lists"
    )
    assert rows(used)["c"]["labels"] == [3, 19]


def test_a_list_has_labels_for_an_image_without_any(root: Path) -> None:
    lists = root / "lists"
    lists.mkdir()
    (lists / "test.txt").write_text("d\n")
    (lists / "test_cls.txt").write_text("d 1\n")
    (root / "benchmark_RELEASE/dataset/cls/d.mat").unlink()
    report = import_voc12(
        str(root), str(root / "out"), splits=["test"], labels_from="masks", lists=str(lists)
    )
    assert report.counts["unlabelled"] == report.counts["labels differ from the list"] == 1
    text = (root / "out/differences.csv").read_text().splitlines()
    assert text[1] == "d,labels differ,,bicycle"


def test_no_list_and_no_sbd_says_what_to_do(root: Path) -> None:
    (root / "benchmark_RELEASE/dataset/cls").rename(root / "gone")
    with pytest.raises(CannotRunError, match="--lists"):
        import_voc12(str(root), str(root / "out"), splits=["train_aug"])
    report = import_voc12(str(root), str(root / "out"))
    assert set(report.manifest.splits) == {"val"}
    assert any("train_aug is left out" in note and "--lists" in note for note in report.notes)


def test_official_lists(shared: Path, tmp_path: Path) -> None:
    data = shared / "data"
    lists = data / "lists/voc12"
    sizes = {
        name: len((lists / f"{name}.txt").read_text().split())
        for name in ("train", "val", "train_aug", "test")
    }
    assert sizes == {"train": 1464, "val": 1449, "train_aug": 10582, "test": 1456}
    report = import_voc12(
        str(data / "voc12-mini/VOCdevkit"), str(tmp_path), labels_from="masks", lists=str(lists)
    )
    assert report.manifest.splits == {"train_aug": 350, "val": 150}
    assert not report.errors
    # the lists of image-level labels were read off the same masks
    assert report.counts["labels differ from the list"] == 0
    assert report.counts["not in the list"] == 0
    assert report.counts["only in the list"] == 10582 + 1449 - 500


def test_where_the_fields_label_sources_differ(shared: Path) -> None:
    lists = shared / "data/lists/voc12"
    boxes = load_pickled_dict(str(lists / "cls_labels.npy"), trust_pickle=True)
    more: dict[str, list[str]] = {}
    for name in ("train_aug", "val"):
        seen = read_label_list(str(lists / f"{name}_cls.txt"), VOC12)
        boxed = {i: {int(c) + 1 for c in np.flatnonzero(boxes[i])} for i in seen}
        differing = [
            image_id for image_id, labels in seen.items() if set(labels) != boxed[image_id]
        ]
        # objects with a box and without a pixel; in `val` the other way round, once
        larger = boxed if name == "train_aug" else {i: set(seen[i]) for i in differing}
        smaller = {i: set(seen[i]) for i in differing} if name == "train_aug" else boxed
        assert all(smaller[i] < larger[i] for i in differing)
        more[name] = differing
    assert (len(more["train_aug"]), more["val"]) == (817, ["2008_005245"])
    official = set((lists / "train.txt").read_text().split())
    assert len(official & set(more["train_aug"])) == 1
