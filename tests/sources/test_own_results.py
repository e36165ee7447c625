"""Results of our own commands in the folders that they read: no truth and no maps of anybody."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmm_ray.config import section_hash
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.files import MASKS_MARKER
from pmm_ray.sources.cams.cam_files import find_cams
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.sources.datasets.voc_masks import find_voc_masks
from pmm_ray.sources.importing.photographs import LEFT_OUT
from pmm_ray.sources.masks.mask_files import find_masks, write_listing
from pmm_ray.sources.masks.mask_pairs import find_truth

from .faulty import noise, rows

OURS = LEFT_OUT["results"]


def mask(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.ones((48, 64), np.uint8)).save(path)


def made(folder: Path, *names: str) -> None:
    """Masks as `pmm refine` and `pmm masks` write them."""
    for name in names:
        mask(folder / "masks" / f"{name}.png")
    (folder / "masks" / MASKS_MARKER).write_text(section_hash("predict_masks", 1))


def test_masks_below_the_ground_truth_are_none(tmp_path: Path) -> None:
    truth, out = tmp_path / "gt", tmp_path / "gt" / "refined"
    mask(truth / "a.png")
    images = write_listing(str(tmp_path / "images.parquet"), dict.fromkeys("abc", ""))
    first = find_truth(str(truth), images, str(out))
    # of this OUT and of another one
    made(out, "a", "b")
    made(truth / "old", "c")
    again = find_truth(str(truth), images, str(out))
    assert (first.count, again.count) == (1, 1)
    assert again.fingerprint == first.fingerprint
    assert not first.notes
    assert f"left out as {OURS}: 3 masks, such as old/masks/c.png" in again.notes


def test_masks_of_ours_are_read_where_they_are_named(tmp_path: Path) -> None:
    made(tmp_path / "out", "a", "b")
    listing = str(tmp_path / "out" / "mask-files.parquet")
    assert find_masks(str(tmp_path / "out" / "masks"), listing).names == ["a", "b"]
    with pytest.raises(CannotRunError, match=rf"masks/a\.png \({OURS}\)"):
        find_masks(str(tmp_path), listing)


def test_masks_below_a_folder_of_maps_are_no_maps(tmp_path: Path) -> None:
    cams, out = tmp_path / "cams", tmp_path / "cams" / "out"
    noise(cams / "f_5_3.png")
    made(out, "f_5")
    found = find_cams(str(cams), str(out / "cam-files.parquet"), trust_pickle=False)
    assert found.index.image_ids == ["f_5"]
    assert str(out / "masks" / "f_5.png") in found.left_out[OURS]
    (cams / "f_5_3.png").unlink()
    with pytest.raises(CannotRunError, match=rf"and [0-9] {OURS}"):
        find_cams(str(cams), str(out / "cam-files.parquet"), trust_pickle=False)


def test_masks_below_the_truth_of_an_import_are_none(tmp_path: Path) -> None:
    for name in "ab":
        noise(tmp_path / "images" / f"{name}.jpg")
    mask(tmp_path / "masks" / "a.png")
    made(tmp_path / "masks" / "refined", "b")
    (tmp_path / "labels.csv").write_text("image_id,labels\na,cat\nb,cat\n")
    found = rows(import_folder(str(tmp_path), str(tmp_path / "out")))
    assert found["a"]["ground_truth_uri"] == str(tmp_path / "masks" / "a.png")
    assert found["b"]["ground_truth_uri"] is None


def test_masks_below_those_of_voc_are_none(tmp_path: Path) -> None:
    folder = tmp_path / "SegmentationClass"
    mask(folder / "2007_000032.png")
    made(folder / "refined", "2007_000032", "2007_000033")
    ids = ("2007_000032", "2007_000033")
    found, notes = find_voc_masks(str(tmp_path), ids, str(tmp_path / "out"))
    assert found == {"2007_000032": str(folder / "2007_000032.png")}
    assert any(OURS in note for note in notes)


def test_a_file_is_no_folder_of_masks(tmp_path: Path) -> None:
    mask(tmp_path / "a.png")
    with pytest.raises(CannotRunError, match=r"a\.png is no folder: unpack it, or give"):
        find_masks(str(tmp_path / "a.png"), str(tmp_path / "list.parquet"))
