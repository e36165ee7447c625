"""One rule for names: what people write for a file finds it, and nothing else does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pmm_ray.sources.cams.cam_files import find_cams
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.sources.masks.mask_files import find_masks
from pmm_ray.sources.reading.names import NameIndex, pair

from .faulty import noise


@pytest.mark.parametrize(
    ("written", "name", "how"),
    [
        ("a.jpeg", "a.jpg", "with another ending"),
        ("x/a.PNG", "x/a.jpg", "with another ending"),
        ("a.png", "a.b.jpg", ""),
        ("v1.2", "v1.jpg", ""),
        ("7", "007.jpg", "without leading zeros"),
        ("7.jpg", "007.jpg", "without leading zeros"),
        ("x/0012", "x/12.png", "without leading zeros"),
        ("000", "0.png", "without leading zeros"),
        ("a7", "a007.jpg", ""),
        ("https://x.org/set/a.jpg?raw=1", "a.jpg", "by the file's name alone"),
        ("b%20c.jpg?dl=0", "b c.jpg", "written on another system"),
        ("/data/local-files/?d=set/a.jpg", "set/a.jpg", "written on another system"),
        ("what?.jpg", "what?.jpg", ""),
    ],
)
def test_names_as_other_programs_write_them(written: str, name: str, how: str) -> None:
    found = NameIndex([name, "other.jpg"]).find(written)
    if not how and written != name:
        assert found is None
    else:
        assert found is not None
        assert (found.name, found.how) == (name, how)


def test_a_number_or_ending_that_fits_two_files_is_a_choice_of_nobody() -> None:
    for written, names in (("7", ("007.jpg", "07.jpg")), ("a.gif", ("a.jpg", "a.png"))):
        with pytest.raises(ValueError, match="may be any of 2 files"):
            NameIndex(names).find(written)
    # the very name counts before a number without its zeros
    found = NameIndex(["7.jpg", "007.jpg"]).find("7")
    assert found is not None
    assert found.name == "7.jpg"


def test_a_name_alone_that_another_file_has_too_pairs_nothing() -> None:
    assert pair(["x/a", "b"], ["a", "y/b"]).of == {"x/a": "a", "b": "y/b"}
    # `a` is the name of two on each side, and one pair of them is found by its path
    pairs = pair(["train/a", "val/a"], ["a", "train/a"])
    assert pairs.of == {"train/a": "train/a"}
    assert pairs.several == {"val/a": ("a", "train/a")}
    # nor does one of another split
    pairs = pair(["set/train/a", "b"], ["val2017/a", "val/b"])
    assert (pairs.of, pairs.several) == ({"b": "val/b"}, {})


def test_files_called_after_the_whole_name_of_a_photograph_are_its_own() -> None:
    pairs = pair(["a", "b"], ["a.jpg", "b.JPEG"])
    assert pairs.of == {"a": "a.jpg", "b": "b.JPEG"}
    assert pairs.how == {"with another ending": 2}
    assert pair(["v1"], ["v1.2"]).of == {}


@pytest.mark.parametrize("folder", [".hidden", "@eaDir", "__MACOSX", "$RECYCLE.BIN"])
def test_what_systems_put_beside_is_left_out_everywhere(folder: str, tmp_path: Path) -> None:
    for place in ("", f"{folder}/", f"sub/{folder}/"):
        noise(tmp_path / f"images/{place}a.jpg")
        for kind in ("masks", "cams"):
            (tmp_path / kind / place).mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((48, 64), np.uint8)).save(tmp_path / f"masks/{place}a.png")
        np.savez(tmp_path / f"cams/{place}a.npz", keys=[0], cam=np.zeros((1, 4, 4)))
    report = import_folder(str(tmp_path / "images"), str(tmp_path / "out"))
    assert (report.rows, report.accounting.left_out["hidden"].count) == (1, 2)
    assert find_masks(str(tmp_path / "masks"), str(tmp_path / "m.parquet")).names == ["a"]
    cams = find_cams(str(tmp_path / "cams"), str(tmp_path / "c.parquet"), trust_pickle=False)
    assert cams.index.image_ids == ["a"]
    assert len(cams.left_out) == 2
