"""`pmm masks`: CAMs that others made, through the whole command."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pmm_ray.commands.masks import make_masks_of
from pmm_ray.method.cams import upsample_cam
from pmm_ray.method.masks import MaskParameters, proportional_masks
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import read_all, read_index
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.sources.cams.said import Said

HEIGHT, WIDTH = 40, 52
IDS = ("a", "b", "c")


def cam_of(name: str) -> Any:
    """Two blobs, float16 [2, 10, 13]."""
    y, x = np.mgrid[:10, :13]
    shift = IDS.index(name)
    left = np.exp(-((x - 2 - shift) ** 2 + (y - 4) ** 2) / 6)
    right = np.exp(-((x - 9) ** 2 + (y - 6) ** 2) / 8)
    return np.stack([left, right]).astype(np.float16)


def image_of(name: str) -> Any:
    rng = np.random.default_rng(IDS.index(name))
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    (tmp_path / "cams").mkdir()
    for name in IDS:
        Image.fromarray(image_of(name)).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path


def expected(name: str, labels: list[int], **changes: float) -> Any:
    cam = upsample_cam(cam_of(name), HEIGHT, WIDTH)
    return proportional_masks(image_of(name), cam, labels, [MaskParameters(**changes)])[0]


def run(folder: Path, said: Said | None = None, **options: Any) -> int:
    return make_masks_of(folder / "photos", folder / "cams", folder / "out", said=said, **options)


def mask(folder: Path, name: str) -> Any:
    return decode_mask((folder / "out" / "masks" / f"{name}.png").read_bytes())


def error_rows(folder: Path) -> dict[str, str]:
    places = [folder / "out" / "errors", *folder.glob("out/make_masks-*/errors")]
    return {row.image_id: row.kind for place in places for row in tables.read_errors(str(place))}


def test_every_kind_of_file_in_one_folder(folder: Path, ray_session: ClusterResources) -> None:
    a, b, c = (cam_of(name) for name in IDS)
    np.savez(folder / "cams" / "a.npz", keys=[4, 1], cam=a, size=[HEIGHT, WIDTH])
    np.save(folder / "cams" / "b.npy", {4: b[0].astype(np.float32), 1: b[1].astype(np.float32)})
    np.save(folder / "cams" / "c.npy", {"keys": np.array([4, 1]), "cam": c})
    assert run(folder) == 1  # nobody vouched for the pickles
    assert not (folder / "out" / "masks").exists()
    assert run(folder, Said(trust_pickle=True)) == 0
    for name in IDS:
        np.testing.assert_array_equal(mask(folder, name), expected(name, [5, 2]))
        assert Image.open(folder / "out" / "masks" / f"{name}.png").mode == "P"
    [stage] = folder.glob("out/make_masks-*")
    rows = read_all(str(stage)).to_pylist()
    assert sorted(row["image_id"] for row in rows) == list(IDS)
    assert all(
        np.array_equal(decode_mask(r["mask_png"]), mask(folder, r["image_id"])) for r in rows
    )


def test_bad_input_costs_its_own_image_only(folder: Path, ray_session: ClusterResources) -> None:
    np.savez(folder / "cams" / "a.npz", keys=[0, 1], cam=cam_of("a"))
    np.savez(folder / "cams" / "b.npz", keys=[0, 1], cam=cam_of("b") * np.nan)
    (folder / "cams" / "c.npz").write_bytes(b"no archive")
    np.savez(folder / "cams" / "d.npz", keys=[0, 1], cam=cam_of("a"))
    assert run(folder) == 0
    np.testing.assert_array_equal(mask(folder, "a"), expected("a", [1, 2]))
    assert error_rows(folder) == {"b": "nonfinite", "c": "decode", "d": "missing"}
    assert [file.name for file in (folder / "out" / "masks").glob("*.png")] == ["a.png"]
    assert run(folder, settings=("errors.budget=0",)) == 3


def test_what_the_files_do_not_tell_is_asked_for(
    folder: Path, ray_session: ClusterResources, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in IDS:
        maps = cam_of(name).astype(np.float32)
        np.save(folder / "cams" / f"{name}.npy", {0: maps[0], 5: maps[1]})
    assert run(folder, Said(trust_pickle=True)) == 1
    assert "--background-channel or --first-class 0" in capfd.readouterr().err
    assert not (folder / "out" / "masks").exists()
    assert run(folder, Said(trust_pickle=True, background_channel=True)) == 0
    assert {*np.unique(mask(folder, "a"))} == {0, 5}
    assert run(folder, Said(trust_pickle=True, first_class=0)) == 0
    assert "classes count from 0" in " ".join(capfd.readouterr().err.split())
    np.testing.assert_array_equal(mask(folder, "a"), expected("a", [1, 6]))
    assert run(folder, Said(trust_pickle=True, first_class=0, layout="irn")) == 1


def test_a_table_settings_and_a_second_run(folder: Path, ray_session: ClusterResources) -> None:
    rows = [
        {
            "image_id": name,
            "height": HEIGHT,
            "width": WIDTH,
            "labels": [1, 2],
            "cam": cam_of(name).tobytes(),
            "cam_height": 10,
            "cam_width": 13,
        }
        for name in IDS
    ]
    tables.write_rows(str(folder / "cams" / "part-0.parquet"), rows, tables.CAMS)
    (folder / "labels.csv").write_text("image_id,labels\na,cat;dog\nb,dog\nc,cat;dog\n")
    assert run(folder, labels_csv=folder / "labels.csv") == 0
    np.testing.assert_array_equal(mask(folder, "a"), expected("a", [1, 2]))
    assert set(np.unique(mask(folder, "b"))) == {0, 2}
    [stage] = folder.glob("out/make_masks-*")
    written = {file: file.stat().st_mtime_ns for file in stage.glob("part-*")}
    assert run(folder, labels_csv=folder / "labels.csv") == 0
    assert {file: file.stat().st_mtime_ns for file in stage.glob("part-*")} == written

    assert run(folder, settings=("masks.alpha=5",)) == 0
    np.testing.assert_array_equal(mask(folder, "b"), expected("b", [1, 2], alpha=5))
    # back again: the files in masks/ are never those of other settings
    assert run(folder, labels_csv=folder / "labels.csv") == 0
    assert set(np.unique(mask(folder, "b"))) == {0, 2}
    assert len(read_index(str(stage))) == 3


def test_masks_are_of_these_photographs_and_come_back_when_deleted(
    folder: Path, ray_session: ClusterResources
) -> None:
    for name in IDS:
        np.savez(folder / "cams" / f"{name}.npz", keys=[0, 1], cam=cam_of(name))
    assert run(folder) == 0
    [stage] = folder.glob("out/make_masks-*")
    written = {file: file.stat().st_mtime_ns for file in stage.glob("part-*")}
    for path in (folder / "out/masks", folder / "out/masks/b.png"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        assert run(folder) == 0
        for name in IDS:
            np.testing.assert_array_equal(mask(folder, name), expected(name, [1, 2]))
    assert {file: file.stat().st_mtime_ns for file in stage.glob("part-*")} == written

    # another film: frames of the same names and sizes
    Image.fromarray(image_of("b")).save(folder / "photos" / "a.png")
    assert run(folder) == 0
    theirs = proportional_masks(
        image_of("b"), upsample_cam(cam_of("a"), HEIGHT, WIDTH), [1, 2], [MaskParameters()]
    )
    np.testing.assert_array_equal(mask(folder, "a"), theirs[0])


def test_settings_that_cannot_be_cost_no_mask(
    folder: Path, ray_session: ClusterResources, capfd: pytest.CaptureFixture[str]
) -> None:
    np.savez(folder / "cams" / "a.npz", keys=[0, 1], cam=cam_of("a"))
    assert run(folder) == 0
    before = (folder / "out/masks/a.png").stat().st_mtime_ns
    assert run(folder, settings=["masks.alpha=auto"]) == 1
    assert "masks.alpha: auto is resolved by `pmm run` only" in capfd.readouterr().err
    assert (folder / "out/masks/a.png").stat().st_mtime_ns == before


@pytest.mark.slow
def test_the_oracle(tmp_path: Path, shared: Path, ray_session: ClusterResources) -> None:
    oracle = shared / "data" / "oracle"
    photographs = shared / "data" / "voc12-mini" / "VOCdevkit" / "VOC2012" / "JPEGImages"
    assert make_masks_of(photographs, oracle / "cams", tmp_path) == 0
    differing = pixels = 0
    for file in sorted((oracle / "ppmg").glob("*.png")):
        theirs = decode_mask(file.read_bytes())
        ours = decode_mask((tmp_path / "masks" / file.name).read_bytes())
        differing += int((ours != theirs).sum())
        pixels += theirs.size
    assert pixels > 20_000_000
    assert differing <= 1e-4 * pixels
