"""CAMs that others made: every kind of file, and every way in which one can be wrong."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.sources.cams.cam_files import find_cams
from pmm_ray.sources.cams.cam_reader import CamReader

HEIGHT, WIDTH = 24, 32
MANIFEST = {"image_id": "a", "height": HEIGHT, "width": WIDTH, "labels": []}
READER = CamReader(dataset_ids=range(21), trust_pickle=True, max_pixels=10_000)


def maps(count: int = 2, height: int = 6, width: int = 8) -> Any:
    return np.random.default_rng(0).random((count, height, width), np.float32)


def read(path: Path, labels: list[int] | None = None, reader: CamReader = READER) -> Any:
    row = {"manifest": MANIFEST | {"labels": labels or []}, "cams": {"cam_uri": str(path)}}
    return reader(row)


def table_row(**changes: Any) -> dict[str, Any]:
    row = {
        "image_id": "a",
        "height": HEIGHT,
        "width": WIDTH,
        "labels": [3, 7],
        "cam": maps().astype("<f2").tobytes(),
        "cam_height": 6,
        "cam_width": 8,
    }
    return row | changes


def test_npz(tmp_path: Path) -> None:
    cam = maps().astype(np.float16)
    np.savez(tmp_path / "a.npz", keys=np.int16([7, 2]), cam=cam, size=[HEIGHT, WIDTH])
    labels, scores = read(tmp_path / "a.npz")
    assert labels == [8, 3]
    np.testing.assert_array_equal(scores, cam)
    np.savez_compressed(tmp_path / "b.npz", keys=[7, 2], cam=cam)
    np.testing.assert_array_equal(read(tmp_path / "b.npz")[1], cam)


@pytest.mark.parametrize("key", [int, np.int64])
def test_the_dictionaries_of_seam_and_pmm(tmp_path: Path, key: Any) -> None:
    cam = maps(height=HEIGHT, width=WIDTH)
    np.save(tmp_path / "a.npy", {key(14): cam[0], key(0): cam[1]})
    labels, scores = read(tmp_path / "a.npy")
    assert labels == [15, 1]
    np.testing.assert_array_equal(scores, cam)


@pytest.mark.parametrize("tensors", [False, True])
def test_the_dictionaries_of_irn(tmp_path: Path, tensors: bool) -> None:
    small, large = maps(), maps(height=HEIGHT, width=WIDTH)
    content: dict[str, Any] = {"keys": np.array([4, 9]), "cam": small, "high_res": large}
    if tensors:  # what IRN's own script stores
        content |= {"keys": torch.tensor([4, 9]), "cam": torch.from_numpy(small)}
    np.save(tmp_path / "a.npy", content)
    labels, scores = read(tmp_path / "a.npy")
    assert labels == [5, 10]
    np.testing.assert_array_equal(scores, large)
    del content["high_res"]
    np.save(tmp_path / "a.npy", content)
    np.testing.assert_array_equal(read(tmp_path / "a.npy")[1], small)


def test_a_row_of_our_table() -> None:
    labels, scores = READER({"manifest": MANIFEST, "cams": table_row()})
    assert labels == [3, 7]
    np.testing.assert_array_equal(scores, maps().astype(np.float16))


def test_no_class_at_all_is_allowed(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", {})
    labels, scores = read(tmp_path / "a.npy")
    assert labels == []
    assert scores.shape[0] == 0


def test_labels_leave_classes_out(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", keys=[2, 6, 400], cam=maps(3))
    labels, scores = read(tmp_path / "a.npz", labels=[7])
    assert labels == [7]
    np.testing.assert_array_equal(scores, maps(3)[1:2])
    with pytest.raises(RowError, match=r"say class \[5\], but the CAM has \[3, 7, 401\]"):
        read(tmp_path / "a.npz", labels=[5, 7])
    with pytest.raises(RowError, match="class 401, the last known one is 20"):
        read(tmp_path / "a.npz")


BAD_ARCHIVES: dict[str, tuple[dict[str, Any], str, str]] = {
    "no keys": ({"cam": maps()}, "decode", "keys and cam are expected"),
    "one key too few": ({"keys": [1], "cam": maps()}, "decode", "one map per class"),
    "keys that are no numbers": ({"keys": ["a", "b"], "cam": maps()}, "decode", "integers"),
    "a negative key": ({"keys": [-1, 2], "cam": maps()}, "label", "below the first"),
    "a key twice": ({"keys": [2, 2], "cam": maps()}, "label", "twice"),
    "whole numbers": ({"keys": [1], "cam": np.ones((1, 2, 2), int)}, "decode", "floating"),
    "two axes": ({"keys": [1], "cam": maps()[0]}, "decode", "floating"),
    "no pixels": ({"keys": [1], "cam": np.zeros((1, 0, 4))}, "decode", "empty"),
    "NaN": ({"keys": [1], "cam": np.full((1, 2, 2), np.nan)}, "nonfinite", "NaN"),
    "raw scores": ({"keys": [1], "cam": 9 * maps(1)}, "decode", "normalize"),
    "another size": ({"keys": [1], "cam": maps(1), "size": [9, 9]}, "decode", "9 x 9 px"),
    "no size": ({"keys": [1], "cam": maps(1), "size": [9]}, "decode", "height, width"),
    "objects": ({"keys": [1], "cam": np.array([{}])}, "decode", "not a readable .npz"),
}


@pytest.mark.parametrize("case", BAD_ARCHIVES)
def test_a_bad_archive_is_an_error_row(tmp_path: Path, case: str) -> None:
    content, kind, message = BAD_ARCHIVES[case]
    np.savez(tmp_path / "a.npz", **content)
    with pytest.raises(RowError, match=message) as caught:
        read(tmp_path / "a.npz")
    assert caught.value.kind == kind
    assert caught.value.uri == str(tmp_path / "a.npz")


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
@pytest.mark.parametrize("content", [b"", b"nothing of the kind", b"\x93NUMPY\x01\x00"])
def test_a_damaged_file_is_an_error_row(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RowError) as caught:
        read(tmp_path / name)
    assert caught.value.kind == "decode"


def test_a_file_that_went_away_is_an_error_row(tmp_path: Path) -> None:
    for name in ("a.npz", "a.npy"):
        with pytest.raises(RowError) as caught:
            read(tmp_path / name)
        assert caught.value.kind == "missing"


def test_an_archive_that_declares_too_much_is_refused_unread(tmp_path: Path) -> None:
    header = io.BytesIO()
    shape = {"descr": "<f4", "fortran_order": False, "shape": (1, 10**6, 10**6)}
    np.lib.format.write_array_header_1_0(header, shape)
    np.savez(tmp_path / "a.npz", keys=[1])
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("cam.npy", header.getvalue())
    with pytest.raises(RowError, match="too many") as caught:
        read(tmp_path / "a.npz")
    assert caught.value.kind == "too_large"


@pytest.mark.parametrize(
    "content",
    [
        {"cam": maps()},
        {"keys": np.array([1, 2])},
        {"dog": maps()[0]},
        {3: maps()[0], 4: maps(1, 3, 3)[0]},
        {3: "map"},
        [1, 2],
    ],
)
def test_a_bad_dictionary_is_an_error_row(tmp_path: Path, content: Any) -> None:
    np.save(tmp_path / "a.npy", np.array(content, object))
    with pytest.raises(RowError) as caught:
        read(tmp_path / "a.npy")
    assert caught.value.kind == "decode"


class Harm:
    """Asks the one who unpickles it to make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (open, (str(self.path), "w"))


def test_even_a_trusted_pickle_runs_no_code(tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    np.save(tmp_path / "a.npy", np.array({3: Harm(trap)}, object))
    with pytest.raises(RowError, match="not admitted"):
        read(tmp_path / "a.npy")
    inner = io.BytesIO()
    torch.save(Harm(trap), inner, _use_new_zipfile_serialization=False)

    class Tensor:
        def __reduce__(self) -> tuple[Any, ...]:
            return (torch.storage._load_from_bytes, (inner.getvalue(),))

    np.save(tmp_path / "a.npy", np.array({3: Tensor()}, object))
    with pytest.raises(RowError):
        read(tmp_path / "a.npy")
    assert not trap.exists()
    pickle.loads(pickle.dumps(Harm(trap))).close()
    assert trap.exists()  # the trap works


@pytest.mark.parametrize(
    "changes",
    [{"cam": b"\x00" * 7}, {"cam": None}, {"height": HEIGHT + 1}, {"labels": [0, 1]}],
)
def test_a_bad_row_of_our_table_is_an_error_row(changes: dict[str, Any]) -> None:
    with pytest.raises(RowError):
        READER({"manifest": MANIFEST, "cams": table_row(**changes)})


def test_files_are_listed_by_safe_ids(tmp_path: Path) -> None:
    folder, listing = tmp_path / "cams", tmp_path / "list.parquet"
    folder.mkdir()
    for name in ("b", "a", "my cat"):
        np.savez(folder / f"{name}.npz", keys=[1], cam=maps(1))
    np.save(folder / "a.npy", {})
    (folder / "notes.txt").write_text("kept")
    found = find_cams(str(folder), str(listing), trust_pickle=True)
    assert not found.is_table
    assert [i.split("-")[0] for i in found.index.image_ids] == ["a", "b", "my"]
    assert found.repeated == (str(folder / "a.npz"),)
    again = find_cams(str(folder), str(listing), trust_pickle=True)
    assert again.fingerprint == found.fingerprint
    np.savez(folder / "b.npz", keys=[1], cam=maps(1, 9, 9))
    changed = find_cams(str(folder), str(listing), trust_pickle=True)
    assert changed.fingerprint != found.fingerprint


def test_what_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    listing = str(tmp_path / "list.parquet")
    with pytest.raises(CannotRunError, match="no CAMs"):
        find_cams(str(tmp_path), listing, trust_pickle=False)
    with pytest.raises(CannotRunError, match="camz does not exist"):
        find_cams(str(tmp_path / "camz"), listing, trust_pickle=False)
    (tmp_path / "cams.zip").write_bytes(b"")
    with pytest.raises(CannotRunError, match=r"cams\.zip is no folder: unpack it"):
        find_cams(str(tmp_path / "cams.zip"), listing, trust_pickle=False)
    np.save(tmp_path / "a.npy", {})
    with pytest.raises(CannotRunError, match="--trust-pickle"):
        find_cams(str(tmp_path), listing, trust_pickle=False)
    part = tmp_path / "part-0.parquet"
    tables.write_rows(str(part), [{"image_id": "a", "height": 1}], tables.MASKS)
    with pytest.raises(CannotRunError, match="lacks cam"):
        find_cams(str(tmp_path), listing, trust_pickle=False)
    part.write_bytes(b"")
    with pytest.raises(CannotRunError, match="not a readable part"):
        find_cams(str(tmp_path), listing, trust_pickle=False)


@pytest.mark.parametrize(
    ("height", "width", "fits"),
    [
        *((24, 32, True), (6, 8, True), (3, 4, True), (5, 5, True), (1, 1, True), (7, 8, True)),
        *((32, 24, False), (8, 6, False), (24, 40, False), (12, 32, False)),
    ],
)
def test_maps_of_another_shape_are_not_stretched(
    height: int, width: int, fits: bool, tmp_path: Path
) -> None:
    np.savez(tmp_path / "a.npz", keys=[7, 2], cam=maps(2, height, width))
    if fits:
        assert read(tmp_path / "a.npz")[0] == [8, 3]
    else:
        with pytest.raises(RowError, match=f"the maps have {height} x {width} px, the photograph"):
            read(tmp_path / "a.npz")


@pytest.mark.parametrize("side", [32, 8])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_maps_that_are_turned_by_exif_data_say_so(
    side: int, orientation: int, tmp_path: Path
) -> None:
    tags, photograph = Image.Exif(), tmp_path / "a.jpg"
    tags[0x0112] = orientation
    Image.new("RGB", (WIDTH, HEIGHT)).save(photograph, exif=tags)
    np.savez(tmp_path / "a.npz", keys=[7, 2], cam=maps(2, side, side * 3 // 4))
    row = {
        "manifest": MANIFEST | {"uri": str(photograph)},
        "cams": {"cam_uri": f"{tmp_path}/a.npz"},
    }
    with pytest.raises(RowError, match=f"the maps have {side} x") as caught:
        READER(row)
    said = "EXIF data turns the photograph (orientation 6), which counts as it is stored"
    assert (said in caught.value.message) == (orientation == 6)
    # those of another photograph are not turned
    np.savez(tmp_path / "a.npz", keys=[7, 2], cam=maps(2, 8, 40))
    with pytest.raises(RowError, match="are they of this photograph"):
        READER(row)


def test_a_batch_of_one_is_its_one_cam(tmp_path: Path) -> None:
    cam = maps()
    np.save(tmp_path / "a.npy", {"keys": np.array([7, 2]), "high_res": cam[None]})  # type: ignore[arg-type]
    np.testing.assert_array_equal(read(tmp_path / "a.npy")[1], cam)


def test_what_is_there_in_place_of_cams_is_named(tmp_path: Path) -> None:
    torch.save({"keys": torch.tensor([1])}, tmp_path / "a.pt")
    with pytest.raises(CannotRunError, match=r"are expected; there is a\.pt"):
        find_cams(str(tmp_path), str(tmp_path / "l.parquet"), trust_pickle=True)
    (tmp_path / "a.npy").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(RowError, match="git lfs pull"):
        read(tmp_path / "a.npy")
