"""CAMs whose numbers, scores or files say another thing than they seem to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmm_ray.labels import COCO14, VOC12, LabelSpace
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.cams.cam_detect import asked, detect, with_class_ids
from pmm_ray.sources.cams.cam_files import find_cams
from pmm_ray.sources.cams.cam_import import import_photographs
from pmm_ray.sources.cams.cam_reader import CamReader
from pmm_ray.sources.cams.said import Said
from pmm_ray.sources.importing.import_report import ImportReport
from pmm_ray.sources.importing.understood import console

from . import writers
from .faulty import noise, rows
from .test_cam_layouts import find

HEIGHT, WIDTH = 48, 64


def save(folder: Path, classes: dict[str, list[int]], factor: float = 1) -> Path:
    for name, numbers in classes.items():
        maps = writers.blobs(numbers, HEIGHT, WIDTH) * np.float32(factor)
        writers.save(folder / "cams", name, dict(zip(numbers, maps, strict=True)))
    return folder / "cams"


def labelled(folder: Path, csv: str, classes: dict[str, list[int]]) -> ImportReport:
    for name in classes:
        noise(folder / "photos" / f"{name}.jpg")
    (folder / "labels.csv").write_text(csv)
    cams = find_cams(str(save(folder, classes)), str(folder / "list.parquet"), trust_pickle=True)
    out, csv_uri = str(folder / "out"), str(folder / "labels.csv")
    photos = str(folder / "photos")
    return import_photographs(photos, cams, out, labels_csv=csv_uri, trust_pickle=True)


# names without numbers


def test_names_that_fit_the_cams_in_two_orders_are_asked_for(tmp_path: Path) -> None:
    every = list(range(20))
    with pytest.raises(CannotRunError, match=r"classes up to 20, and .* names 3: give the names"):
        labelled(
            tmp_path / "voc",
            "image_id,labels\na,dog\nb,person\nc,moose\n",
            {"a": every, "b": every, "c": every},
        )
    report = labelled(
        tmp_path / "sparse",
        "image_id,labels\na,dog\nb,person\nc,cat\n",
        {"a": every, "b": every, "c": every},
    )
    # three names of the alphabet leave 17 classes without one: VOC's alone fit
    assert report.manifest.label_space == VOC12
    most = every[:17]
    with pytest.raises(CannotRunError, match=r"more than one order of classes \(voc12, coco14\)"):
        labelled(
            tmp_path / "both",
            "image_id,labels\na,dog\nb,person\nc,cat\n",
            {"a": most, "b": most, "c": most},
        )


def test_the_order_that_was_assumed_is_said(tmp_path: Path) -> None:
    every = [0, 1, 2]
    csv = "image_id,labels\na,zebra\nb,apple\nc,mouse\n"
    report = labelled(tmp_path, csv, {"a": every, "b": every, "c": every})
    said = " ".join(console(report).split())
    assert "does not number them: 1 = apple, 2 = mouse, 3 = zebra" in said


def test_weaker_pairings_are_said(tmp_path: Path) -> None:
    noise(tmp_path / "photos" / "000000000009.jpg")
    cams = find_cams(str(save(tmp_path, {"9": [1]})), str(tmp_path / "l"), trust_pickle=True)
    report = import_photographs(
        str(tmp_path / "photos"), cams, str(tmp_path / "out"), trust_pickle=True
    )
    assert len(rows(report)) == 1
    assert "photographs of CAMs found" in console(report)


# scores that nobody normalized


@pytest.mark.parametrize("factor", [0.5, 0.3, 0.01, 1e-4])
def test_maps_that_nowhere_come_near_1_were_never_normalized(factor: float, tmp_path: Path) -> None:
    folder = save(tmp_path, {"a": [3, 7], "b": [4], "c": [2]}, factor)
    with pytest.raises(CannotRunError, match="--normalize max"):
        find(folder)
    find(folder, normalize="max")
    reader = CamReader(range(1001), True, 10**6, asked(Said(normalize="none")))
    found = find_cams(str(folder), str(tmp_path / "list.parquet"), trust_pickle=True)
    assert len(detect(found, reader, as_it_is=True).peeks) == 3


def test_maps_on_both_sides_of_1_were_never_normalized(tmp_path: Path) -> None:
    for name, factor in {"a": 0.3, "b": 0.9, "c": 2.5, "d": 5}.items():
        save(tmp_path, {name: [3]}, factor)
    with pytest.raises(CannotRunError, match=r"0\.3 to 5 "):
        find(tmp_path / "cams")


def test_one_map_out_of_range_is_a_fault_of_its_own(tmp_path: Path) -> None:
    save(tmp_path, {"a": [3], "b": [4], "c": [5]})
    save(tmp_path, {"d": [3]}, 5)
    assert sum(bool(peek.out_of_range) for peek in find(tmp_path / "cams")[1].peeks) == 1


# numbers from 1, and planes of the background


NAMELESS = LabelSpace.from_names([f"class {i}" for i in range(1, 255)])


@pytest.mark.parametrize(
    ("space", "classes"),
    [
        (VOC12, [[4, 8], [20], [6, 1], [2, 15]]),
        (NAMELESS, [[4, 8], [20], [6, 1]]),
        (NAMELESS, [[1], [90], [44]]),
        (COCO14, [[1], [88], [44]]),
        (LabelSpace.from_names(["cat", "dog"]), [[1], [2], [1, 2]]),
    ],
)
def test_numbers_that_end_with_the_number_of_classes_count_from_1(
    space: LabelSpace, classes: list[list[int]], tmp_path: Path
) -> None:
    folder = save(tmp_path, {f"i{n}": numbers for n, numbers in enumerate(classes)})
    with pytest.raises(CannotRunError, match="--first-class 1"):
        with_class_ids(find(folder)[1], space, {})
    decided = with_class_ids(find(folder, first_class=1)[1], space, {}) if space != NAMELESS else 0
    assert decided == 0 or decided.reading.first_class == 1


def test_numbers_below_the_number_of_classes_count_from_0(tmp_path: Path) -> None:
    found = find(save(tmp_path, {"a": [4, 8], "b": [19], "c": [6, 1]}))[1]
    assert with_class_ids(found, VOC12, {}) == found


def background(maps: Any, kind: str) -> Any:
    highest = maps.max(0) if len(maps) else np.zeros((HEIGHT, WIDTH), np.float32)
    return np.full_like(highest, 0.3) if kind == "constant" else (1 - highest) ** 4


@pytest.mark.parametrize("kind", ["constant", "falling"])
@pytest.mark.parametrize("layout", ["irn", "npz"])
def test_a_plane_like_a_backgrounds_is_asked_about(kind: str, layout: str, tmp_path: Path) -> None:
    for name, numbers in {"a": [4, 8], "b": [15], "c": [3]}.items():
        maps = writers.blobs(numbers, HEIGHT, WIDTH)
        planes = np.concatenate([background(maps, kind)[None], maps]).astype(np.float32)
        if layout == "irn":
            writers.save(tmp_path / "cams", name, dict(zip([0, *numbers], planes, strict=True)))
        else:
            (tmp_path / "cams").mkdir(exist_ok=True)
            np.savez(tmp_path / "cams" / f"{name}.npz", keys=[0, *numbers], cam=planes)
    # one file without class 0, and one of it alone
    save(tmp_path, {"d": [7]})
    writers.save(tmp_path / "cams", "e", {0: background(np.zeros((0, 1, 1)), "constant")})
    with pytest.raises(CannotRunError, match="--background-channel"):
        find(tmp_path / "cams")
    assert find(tmp_path / "cams", first_class=0)[1].peeks


def test_a_first_class_is_no_background(tmp_path: Path) -> None:
    found = find(save(tmp_path, {"a": [0, 8], "b": [15], "c": [0]}))[1]
    assert not any(peek.like_background for peek in found.peeks)


# files of one class


def classes_of(folder: Path, *names: str) -> dict[str, list[int]]:
    """By image id; files that are there already stay."""
    for name in names:
        noise(folder / f"{name}.png")
    found = find_cams(str(folder), str(folder.parent / "list.parquet"), trust_pickle=False)
    places = found.index.locations().items()
    return {i: sorted(tables.read_rows(uri, [row])[0]["classes"]) for i, (uri, row) in places}


@pytest.mark.parametrize("width", [2, 3])
def test_class_numbers_may_be_padded(width: int, tmp_path: Path) -> None:
    cams = tmp_path / "cams"
    names = [f"2007_000032_{number:0{width}d}" for number in (3, 12)]
    assert classes_of(cams, *names) == {"2007_000032": [3, 12]}
    # a number as wide as it must be, the pictures themselves, and a picture of something else
    others = ("2007_000032_1014", "2007_000032", "2007_000033", "preview_2021")
    assert classes_of(cams, *others) == {"2007_000032": [3, 12, 1014], "preview": [2021]}


def test_a_padded_class_from_100(tmp_path: Path) -> None:
    assert classes_of(tmp_path / "cams", "a_06", "a_14", "b_101") == {"a": [6, 14], "b": [101]}


@pytest.mark.parametrize("names", [("a_06", "b_6"), ("a_006", "b_06"), ("a_006", "b_16")])
def test_numbers_of_which_only_some_are_padded_are_refused(
    names: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(CannotRunError, match=f"of {names[0]} is a class .* of {names[1]} lacks"):
        classes_of(tmp_path / "cams", *names)


def test_the_picture_of_an_image_does_not_tell_how_numbers_are_written(tmp_path: Path) -> None:
    assert classes_of(tmp_path / "cams", "f_01", "f_01_3", "f_01_14") == {"f_01": [3, 14]}
