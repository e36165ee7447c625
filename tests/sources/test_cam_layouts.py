"""CAMs of every known program: told, read right, and refused where the flags say another."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pmm_ray.labels import COCO14, VOC12, LabelSpace
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.sources.cams.cam_detect import Detected, asked, detect, with_class_ids
from pmm_ray.sources.cams.cam_files import CamFolder, find_cams
from pmm_ray.sources.cams.cam_reader import CamReader
from pmm_ray.sources.cams.said import Said

from . import writers
from .faulty import planes_of

HEIGHT, WIDTH = 24, 28
# the first class is in two of them only
CLASSES = {"2007_000032": [14, 3], "2007_000039": [0], "2008_1_2": [7, 0, 19]}
NAMELESS = LabelSpace.from_names([f"class {i}" for i in range(1, 255)])


def write(folder: Path, program: str, classes: dict[str, list[int]] | None = None) -> Path:
    for name, numbers in (classes or CLASSES).items():
        writers.CAMS[program][1](folder, name, numbers, writers.blobs(numbers, HEIGHT, WIDTH))
    return folder


def find(folder: Path, **flags: Any) -> tuple[CamFolder, Detected]:
    reading = asked(Said(**flags))
    listing = str(folder.parent / "listing.parquet")
    found = find_cams(str(folder), listing, trust_pickle=True, layout=reading.layout)
    return found, detect(found, CamReader(range(1001), True, 10**6, reading))


def read(
    found: CamFolder, detected: Detected, image_id: str, ids: Sequence[int] = range(91)
) -> tuple[list[int], Any]:
    reader = CamReader(ids, True, 10**6, detected.reading)
    return planes_of(reader, found, image_id, HEIGHT, WIDTH)


@pytest.mark.parametrize("program", writers.CAMS)
@pytest.mark.parametrize("declared", [False, True])
def test_every_layout_is_told_and_read_right(program: str, declared: bool, tmp_path: Path) -> None:
    layout = writers.CAMS[program][0]
    flags = {"layout": layout} if declared else {}
    found, detected = find(write(tmp_path / "cams", program), **flags)
    assert {peek.layout for peek in detected.peeks} == {layout}
    assert f"layout {layout} " in detected.line
    for name, numbers in CLASSES.items():
        labels, scores = read(found, detected, name)
        assert sorted(labels) == sorted(number + 1 for number in numbers)
        wanted = writers.blobs(numbers, HEIGHT, WIDTH)
        for label, plane in zip(labels, scores, strict=True):
            truth = wanted[numbers.index(label - 1)]
            # where the map is highest, at whatever size it is stored
            at = np.array(np.unravel_index(plane.argmax(), plane.shape)) / plane.shape
            there = np.array(np.unravel_index(truth.argmax(), truth.shape)) / truth.shape
            assert np.abs(at - there).max() < 0.15
    # the large maps are taken where there are small ones, too
    stored = scores.shape[1:]
    assert stored == ((HEIGHT // 4, WIDTH // 4) if layout == "fma" else (HEIGHT, WIDTH))


@pytest.mark.parametrize("program", writers.CAMS)
def test_every_layout_that_is_declared_wrongly_is_refused(program: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "cams", program)
    own = writers.CAMS[program][0]
    for layout in {name for name, _ in writers.CAMS.values()} - {own}:
        with pytest.raises(CannotRunError, match=r"not what the flags say|no CAMs"):
            find(folder, layout=layout)
    if own in ("seam", "per-class"):
        return  # their maps have no names
    with pytest.raises(CannotRunError, match="not what the flags say"):
        find(folder, key="logits")


@pytest.mark.parametrize("program", ["IRN", "SEAM", "CLIP-ES", "MoRe", "FMA-WSSS", "L2G on COCO"])
def test_a_wrong_first_class_is_refused(program: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "cams", program)
    found, detected = find(folder, first_class=1)
    with pytest.raises(RowError, match="the first class is said to be 1"):
        read(found, detected, "2007_000039")
    found, detected = find(folder, background_channel=True)
    with pytest.raises(RowError, match="no class 0"):
        read(found, detected, "2007_000032")


@pytest.mark.parametrize("program", ["POT", "PuzzleCAM"])
def test_a_background_that_the_file_states_is_not_the_first_class(
    program: str, tmp_path: Path
) -> None:
    with pytest.raises(CannotRunError, match="the first class is said to be 0"):
        find(write(tmp_path / "cams", program), first_class=0)


@pytest.mark.parametrize("program", ["IRN", "SEAM", "CLIP-ES", "MoRe", "FMA-WSSS", "L2G on COCO"])
def test_a_class_0_in_every_file_is_asked_for(program: str, tmp_path: Path) -> None:
    everywhere = {"a": [0, 4], "b": [0, 6, 9]}
    folder = write(tmp_path / "cams", program, everywhere)
    with pytest.raises(CannotRunError, match="--background-channel or --first-class 0"):
        find(folder)
    found, detected = find(folder, first_class=0)
    assert read(found, detected, "a")[0] == [1, 5]
    found, detected = find(folder, background_channel=True)
    labels, scores = read(found, detected, "a")
    assert labels == [4]
    assert len(scores) == 1
    with pytest.raises(CannotRunError, match="contradict"):
        find(folder, background_channel=True, first_class=0)
    # a file of class 0 alone shows that it is a class
    found, detected = find(write(folder, program, {"c": [0]}))
    assert read(found, detected, "a")[0] == [1, 5]


def test_numbers_that_count_from_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "cams", "SEAM", {"a": [1, 20], "b": [7]})
    found, detected = find(folder, first_class=1)
    assert read(found, detected, "a")[0] == [1, 20]
    assert "count from 1" in detected.line


@pytest.mark.parametrize("first_class", [None, 0, 1])
def test_planes_that_add_up_to_one_are_refused(first_class: int | None, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, numbers in {"a": [2, 8], "b": [5]}.items():
        logits = rng.normal(0, 2, (21, HEIGHT, WIDTH)).astype(np.float32)
        logits[[0, *(n + 1 for n in numbers)]] += 6
        writers.crf_dictionary(tmp_path / "cams", name, logits)
    with pytest.raises(CannotRunError, match="--background-channel") as refused:
        find(tmp_path / "cams", first_class=first_class)
    why = "said to be 1" if first_class == 1 else "add up to one"
    assert why in str(refused.value)


def test_scores_may_be_declared_cams(tmp_path: Path) -> None:
    logits = np.zeros((21, HEIGHT, WIDTH), np.float32)
    logits[[0, 3, 9]] += 6
    writers.crf_dictionary(tmp_path / "cams", "a", logits)
    found, detected = find(tmp_path / "cams", background_channel=True)
    assert read(found, detected, "a")[0] == [3, 9]


def test_names_of_a_users_own(tmp_path: Path) -> None:
    maps = writers.blobs([3, 8], HEIGHT, WIDTH)
    writers.save(tmp_path / "cams", "a", {"keys": np.array([3, 8]), "mine": maps, "x": maps[:1]})
    with pytest.raises(CannotRunError, match=r"not one of the 1 CAMs that .*--key"):
        find(tmp_path / "cams")
    labels, scores = read(*find(tmp_path / "cams", key="mine"), "a")
    assert labels == [4, 9]
    np.testing.assert_array_equal(scores, maps)
    with pytest.raises(CannotRunError, match="not what the flags say"):
        find(tmp_path / "cams", key="yours")


def test_two_large_maps_are_asked_for(tmp_path: Path) -> None:
    maps = writers.blobs([3], HEIGHT, WIDTH)
    content = {"keys": np.array([3]), "high_res": maps, "attn_highres": maps * np.float32(0.875)}
    writers.save(tmp_path / "cams", "a", content)
    with pytest.raises(CannotRunError, match="--layout clip-es or irn"):
        find(tmp_path / "cams")
    assert read(*find(tmp_path / "cams", layout="clip-es"), "a")[1].max() == 0.875
    assert read(*find(tmp_path / "cams", key="high_res"), "a")[1].max() == 1


@pytest.mark.parametrize("how", ["max", "minmax"])
def test_raw_maps_are_normalized_on_demand(how: str, tmp_path: Path) -> None:
    maps = writers.blobs([3, 8], HEIGHT, WIDTH) * 9 - 7
    writers.save(tmp_path / "cams", "a", dict(zip([3, 8], maps, strict=True)))
    with pytest.raises(CannotRunError, match=r"a, and so all 1 .*--normalize max or minmax"):
        find(tmp_path / "cams")
    writers.save(tmp_path / "cams", "sound", {3: np.clip(maps[0], 0, 1)})
    with pytest.raises(RowError, match="--normalize max or minmax"):
        read(*find(tmp_path / "cams"), "a")
    scores = read(*find(tmp_path / "cams", normalize=how), "a")[1]
    np.testing.assert_allclose(scores.max((1, 2)), 1)
    np.testing.assert_allclose(scores.min((1, 2)), 0, atol=1e-6)
    # what is below 0 is no part of a class
    assert ((scores == 0).mean() > 0.5) == (how == "max")


@pytest.mark.parametrize("value", [0, -0.25])
def test_maps_that_are_nowhere_above_0_make_no_masks_of_background_alone(
    value: float, tmp_path: Path
) -> None:
    dead = np.full((2, HEIGHT, WIDTH), value, np.float32)
    writers.save(tmp_path / "cams", "dead", dict(zip([3, 8], dead, strict=True)))
    with pytest.raises(CannotRunError, match=r"dead, and so all 1 .* where none is above 0"):
        find(tmp_path / "cams")
    alive = writers.blobs([3, 8], HEIGHT, WIDTH)
    writers.save(tmp_path / "cams", "alive", dict(zip([3, 8], alive, strict=True)))
    found = find(tmp_path / "cams")
    assert read(*found, "alive")[0] == [4, 9]
    with pytest.raises(RowError, match="the mask would be background alone"):
        read(*found, "dead")


def test_maps_that_are_turned_are_refused_however_square_they_are(tmp_path: Path) -> None:
    content = {"keys": np.array([3]), "high_res": writers.blobs([3], WIDTH, HEIGHT)}
    writers.save(tmp_path / "cams", "a", content)
    with pytest.raises(RowError, match="they are turned"):
        read(*find(tmp_path / "cams"), "a")


# COCO's 90 ids


def ids_of(folder: Path, space: LabelSpace, labels: Any = None, **flags: Any) -> dict[str, Any]:
    found, detected = find(folder, **flags)
    detected = with_class_ids(detected, space, labels or {})
    return {i: read(found, detected, i)[0] for i in found.index.image_ids}


def test_the_90_ids_of_coco_become_80(tmp_path: Path) -> None:
    # ids 90, 13 and 1, which files of this kind number from 0
    folder = write(tmp_path / "cams", "SEAM", {"a": [89, 0], "b": [12]})
    assert ids_of(folder, COCO14) == {"a": [80, 1], "b": [12]}
    assert ids_of(folder, NAMELESS, class_ids="coco90") == {"a": [80, 1], "b": [12]}
    assert ids_of(folder, NAMELESS, class_ids="contiguous") == {"a": [90, 1], "b": [13]}
    with pytest.raises(CannotRunError, match="--class-ids coco90"):
        ids_of(folder, NAMELESS)


def test_ids_without_gaps_stay(tmp_path: Path) -> None:
    # 12 is no id of COCO
    folder = write(tmp_path / "cams", "SEAM", {"a": [79, 0], "b": [11]})
    assert ids_of(folder, COCO14) == {"a": [80, 1], "b": [12]}
    with pytest.raises(RowError, match="no ids of COCO"):
        ids_of(folder, COCO14, class_ids="coco90", first_class=0)
    folder = write(tmp_path / "voc", "SEAM", {"a": [19, 0], "b": [6]})
    assert ids_of(folder, VOC12) == {"a": [20, 1], "b": [7]}


def test_the_labels_tell_which_ids_are_meant(tmp_path: Path) -> None:
    # 22 is the elephant among COCO's ids, the 20th class without gaps
    folder = write(tmp_path / "cams", "SEAM", {"a": [21, 0], "b": [4]})
    with pytest.raises(CannotRunError, match="fit both"):
        ids_of(folder, COCO14)
    assert ids_of(folder, COCO14, {"a": [22]}) == {"a": [22, 1], "b": [5]}
    elephant = COCO14.names.index("elephant")
    assert ids_of(folder, COCO14, {"a": [elephant]}) == {"a": [elephant, 1], "b": [5]}


# class lists that state other values


PETS = LabelSpace("custom", ("background", "cat", "dog", "fox"), (0, 2, 3, 5))


def of_pets(folder: Path, labels: Any = None, **flags: Any) -> dict[str, Any]:
    found, detected = find(folder, **flags)
    detected = with_class_ids(detected, PETS, labels or {})
    return {i: read(found, detected, i, PETS.dataset_ids)[0] for i in found.index.image_ids}


def test_numbers_that_are_the_values_of_the_class_list(tmp_path: Path) -> None:
    folder = write(tmp_path / "cams", "SEAM", {"a": [2, 3], "b": [5]})
    with pytest.raises(CannotRunError, match="--first-class 1"):
        of_pets(folder)
    # no class 5 without gaps
    assert of_pets(folder, first_class=1) == {"a": [1, 2], "b": [3]}
    with pytest.raises(RowError, match="--class-ids coco90 if they are COCO's, dataset if"):
        of_pets(folder, first_class=0)
    with pytest.raises(RowError, match=r"\[4\] are no values of the class list: \[0, 2, 3, 5\]"):
        of_pets(folder, first_class=0, class_ids="dataset")
    (folder / "b.npy").unlink()
    with pytest.raises(
        CannotRunError, match=r"values of the class list \(\[2, 3, 5\]\).* fit both"
    ):
        of_pets(folder, first_class=1)
    assert of_pets(folder, {"a": [1, 2]}, first_class=1) == {"a": [1, 2]}
    assert of_pets(folder, {"a": [2, 3]}, first_class=1) == {"a": [2, 3]}
    assert of_pets(folder, first_class=1, class_ids="dataset") == {"a": [1, 2]}
    assert of_pets(folder, first_class=1, class_ids="contiguous") == {"a": [2, 3]}


def test_numbers_that_count_the_classes_of_a_list_with_other_values(tmp_path: Path) -> None:
    folder = write(tmp_path / "cams", "SEAM", {"a": [0, 1], "b": [2]})
    assert of_pets(folder) == {"a": [1, 2], "b": [3]}


# a file per class


def test_masks_are_no_maps(tmp_path: Path) -> None:
    (tmp_path / "cams").mkdir()
    mask = Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8))
    mask.save(tmp_path / "cams" / "2007_000032.png")  # no class 32 of 2007
    with pytest.raises(CannotRunError, match=r"ID_k\.png"):
        find(tmp_path / "cams")
    mask.putpalette(VOC12.palette.tobytes())
    mask.save(tmp_path / "cams" / "a_3.png")
    with pytest.raises(CannotRunError, match="is a mask"):
        find(tmp_path / "cams")


def test_a_bare_array_per_class(tmp_path: Path) -> None:
    folder = tmp_path / "cams"
    for number, plane in zip([3, 8], writers.blobs([3, 8], HEIGHT, WIDTH), strict=True):
        writers.save(folder, f"a_{number}", plane)
    with pytest.raises(CannotRunError, match="per-class"):
        find(folder)
    assert read(*find(folder, layout="per-class"), "a")[0] == [4, 9]


@pytest.mark.parametrize(
    "flags",
    [{"layout": "irm"}, {"normalize": "sum"}, {"class_ids": "coco"}, {"first_class": 2}],
)
def test_an_unknown_word_is_answered_with_the_known_ones(flags: dict[str, Any]) -> None:
    with pytest.raises(CannotRunError, match="of CAMs it is one of"):
        asked(Said(**flags))
