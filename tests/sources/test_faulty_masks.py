"""CAMs and masks of other programs, misread or paired wrongly once.

Each test is a case of faults found with inputs of public bug reports, or its kin.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.sources.cams.cam_files import find_cams
from pmm_ray.sources.cams.cam_reader import CamReader
from pmm_ray.sources.masks.mask_files import find_masks
from pmm_ray.sources.masks.mask_pairs import find_truth, match_masks
from pmm_ray.sources.reading.names import safe_image_id

from .faulty import planes_of, refuse_locked

# 15, 20: dictionaries of other programs


@pytest.mark.parametrize("name", ["attn_highres", "high_res", "cam"])
def test_maps_under_the_names_of_the_field(name: str, tmp_path: Path) -> None:
    cam = np.linspace(0, 1, 24, dtype=np.float16).reshape(2, 3, 4)
    np.save(tmp_path / "a.npy", {"keys": np.array([0, 4]), name: cam})
    labels, scores = read_cam(tmp_path)
    assert labels == [1, 5]
    np.testing.assert_array_equal(scores, cam)


def read_cam(folder: Path, height: int = 3, width: int = 4) -> tuple[list[int], Any]:
    found = find_cams(str(folder), str(folder / "listing.parquet"), trust_pickle=True)
    return planes_of(CamReader(range(21), True, 10_000), found, "a", height, width)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("classes", [1, 2, 5])
def test_scores_with_a_background_are_no_cams(classes: int, dtype: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    planes = rng.random((classes + 1, 3, 4))
    planes = (planes / planes.sum(0)).astype(dtype)
    np.save(tmp_path / "a.npy", dict(enumerate(planes)))
    with pytest.raises(RowError, match="add up to one") as caught:
        read_cam(tmp_path)
    assert caught.value.kind == "label"


# 18, 19: pairs of masks and truth


def masks_in(folder: Path, *names: str) -> Any:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(folder / f"{name}.png")
    return find_masks(str(folder), str(folder.parent / f"{folder.name}.parquet"))


def matched(tmp_path: Path, masks: Any, truth: Any, wanted: list[str] | None = None) -> Any:
    listings = (str(tmp_path / "m.parquet"), str(tmp_path / "t.parquet"))
    return match_masks(masks, truth, listings, wanted)


def uris(index: Any) -> dict[str, str]:
    places = index.locations()
    return {i: tables.read_rows(uri, [row])[0]["uri"] for i, (uri, row) in places.items()}


def test_masks_are_paired_by_path_and_by_name_only_where_unique(tmp_path: Path) -> None:
    masks = masks_in(tmp_path / "m", "x/a", "y/a", "b", "z/c", "d")
    truth = masks_in(tmp_path / "t", "x/a", "y/a", "deep/b", "c", "p/d", "q/d")
    found = matched(tmp_path, masks, truth)
    m, t = uris(found.masks), uris(found.truth)
    pairs = {
        uri.removeprefix(f"{tmp_path}/m/"): t[image_id].removeprefix(f"{tmp_path}/t/")
        for image_id, uri in m.items()
    }
    assert pairs == {
        "x/a.png": "x/a.png",
        "y/a.png": "y/a.png",
        "b.png": "deep/b.png",
        "z/c.png": "c.png",
    }
    assert list(found.unsure) == ["d", *map(safe_image_id, ("p/d", "q/d"))]
    assert found.found == len(found.image_ids) + len(found.lacking) + len(found.unsure)
    assert found.unsure["d"].startswith("d may go with p/d, q/d")
    assert not found.lacking
    assert found.notes == ("pairs found by the file's name alone: 2",)


@pytest.mark.parametrize(
    "line",
    [
        "my photo 1",
        "my photo 1.jpg",
        "/JPEGImages/my.jpg /SegmentationClass/my.png",
        "my 1 0",
        "MY",
    ],
)
def test_lines_of_a_list(line: str, tmp_path: Path) -> None:
    wanted = "my photo 1" if "photo" in line else "my"
    masks = masks_in(tmp_path / "m", "my photo 1", "my", "other")
    truth = masks_in(tmp_path / "t", "my photo 1", "my", "other")
    found = matched(tmp_path, masks, truth, [line, "nobody"])
    assert [Path(uri).stem for uri in uris(found.masks).values()] == [wanted]
    assert list(found.lacking.values()) == ["the list names 'nobody': neither side has it"]


def test_truth_that_cannot_be_reached_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = masks_in(tmp_path / "images", "a", "b", "000000000009").index
    truth = tmp_path / "t"
    masks_in(truth, "sub/a", "locked/b")
    # found by its number, as a mask that can be opened is
    for name in ("9.png", "of no image.png"):
        (truth / name).symlink_to("/nowhere")
    refuse_locked(monkeypatch)
    found = find_truth(str(truth), images, str(tmp_path))
    assert found.count == 1
    assert found.wrong == {"000000000009": f"{truth}/9.png: a link to nothing"}
    assert f"{truth}/locked: the folder cannot be listed: Permission denied" in found.notes
