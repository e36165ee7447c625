"""Scores of every known program: told, read right, and refused where the flags say another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from pmm_ray.labels import COCO14, VOC12, LabelSpace
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.sources.cams.cam_files import CamFolder, find_cams
from pmm_ray.sources.cams.said import Said
from pmm_ray.sources.cams.score_detect import DetectedScores, asked_scores, detect_scores
from pmm_ray.sources.cams.score_files import ForegroundReader, ScoreReader

from . import writers
from .faulty import planes_of

HEIGHT, WIDTH = 24, 28
PRESENT = {"a": [14, 3], "b": [0], "c": [7]}


def logits_of(name: str, classes: int = 21) -> writers.Maps:
    """Noise, the background everywhere, and a bump for each class that is there."""
    numbers = PRESENT[name]
    rng = np.random.default_rng(len(numbers) + numbers[0])
    out = rng.normal(-4, 0.3, (classes, HEIGHT, WIDTH)).astype(np.float32)
    out[0] = 2
    for number, plane in zip(numbers, writers.blobs(numbers, HEIGHT, WIDTH), strict=True):
        out[number + 1] = 6 * plane
    return out


def write(folder: Path, program: str) -> Path:
    for name in PRESENT:
        writers.SCORES[program][1](folder, name, logits_of(name))
    return folder


def find(
    folder: Path, space: LabelSpace | None = None, **flags: Any
) -> tuple[CamFolder, DetectedScores]:
    listing = str(folder.parent / "listing.parquet")
    found = find_cams(str(folder), listing, trust_pickle=True, what="score file")
    reading = asked_scores(Said(**flags))
    return found, detect_scores(found, reading, space, trust_pickle=True, max_pixels=10**6)


def read(found: CamFolder, known: DetectedScores, image_id: str) -> tuple[list[int], Any]:
    reader = ScoreReader(known.space, True, 10**6, known.reading)
    return planes_of(reader, found, image_id, 2 * HEIGHT, 2 * WIDTH)


@pytest.mark.parametrize("program", writers.SCORES)
@pytest.mark.parametrize("declared", [False, True])
def test_every_layout_is_told_and_read_right(program: str, declared: bool, tmp_path: Path) -> None:
    layout = writers.SCORES[program][0]
    flags = {"layout": layout} if declared else {}
    found, known = find(write(tmp_path / "scores", program), **flags)
    assert f"layout {layout} " in known.line
    named = layout in ("crf", "prob", "excel")
    assert (known.space == VOC12) is not named
    for name in PRESENT:
        labels, scores = read(found, known, name)
        assert scores.shape == (len(labels), 2 * HEIGHT, 2 * WIDTH)
        assert scores.min() >= 0
        # where two of ExCEL's maps meet, its planes add up to more
        assert scores.sum(0).max() <= (1.5 if layout == "excel" else 1.01)
        won = np.array(labels)[scores.argmax(0)]
        truth = logits_of(name).argmax(0)
        assert (won[::2, ::2] == truth).mean() > 0.9
        assert set(np.unique(won)) == set(np.unique(truth))


@pytest.mark.parametrize("program", writers.SCORES)
def test_every_layout_that_is_declared_wrongly_is_refused(program: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "scores", program)
    own = writers.SCORES[program][0]
    for layout in {name for name, _ in writers.SCORES.values()} - {own}:
        with pytest.raises(CannotRunError, match="not one file can be used"):
            find(folder, layout=layout)
    if own not in ("crf", "array"):
        with pytest.raises(CannotRunError, match="not one file can be used"):
            find(folder, key="absent")


@pytest.mark.parametrize("program", ["ToCo", "WeCLIP", "deeplab-pytorch", "ours", "WeakTr"])
def test_values_that_are_declared_wrongly_are_refused(program: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "scores", program)
    logits = program in ("ToCo", "WeCLIP", "deeplab-pytorch")
    right, wrong = ("logits", "probabilities")[:: 1 if logits else -1]
    with pytest.raises(CannotRunError, match=f"said to be {wrong}, but are {right}"):
        find(folder, values=wrong)
    found, known = find(folder, values=right)
    np.testing.assert_array_equal(read(found, known, "a")[1], read(*find(folder), "a")[1])


def test_values_that_may_be_both_are_asked_for(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    writers.deeplab(tmp_path / "scores", "a", rng.random((21, 9, 9), np.float32))
    with pytest.raises(CannotRunError, match="--values logits or"):
        find(tmp_path / "scores")
    assert read(*find(tmp_path / "scores", values="logits"), "a")[1].sum(0).max() < 1.001


@pytest.mark.parametrize("program", ["IRN", "CLIP-ES", "MoRe", "FMA-WSSS", "POT"])
def test_cams_are_refused_with_where_they_belong(program: str, tmp_path: Path) -> None:
    writers.CAMS[program][1](tmp_path / "cams", "a", [3, 8], writers.blobs([3, 8], HEIGHT, WIDTH))
    with pytest.raises(CannotRunError, match=r"pmm masks --cams.*--preset irn"):
        find(tmp_path / "cams")


def test_excels_first_plane_is_the_background(tmp_path: Path) -> None:
    folder = write(tmp_path / "scores", "ExCEL")
    for flags, labels in (
        ({}, [0, 4, 15]),
        ({"key": "valid_lam"}, [0, 4, 15]),
        ({"first_class": 0}, [0, 4, 15]),
        ({"first_class": 1}, [0, 3, 14]),
    ):
        assert read(*find(folder, **flags), "a")[0] == labels
    shares = writers.softmax(logits_of("a"))[[4, 15]]
    writers.save(tmp_path / "no" / "scores", "a", {"valid_lam": shares, "keys_gt": np.arange(2)})
    with pytest.raises(CannotRunError, match="2 planes for 2 classes and the background"):
        find(tmp_path / "no" / "scores")


def test_classes_that_win_no_pixel_are_none_for_a_preset_with_its_own_background(
    tmp_path: Path,
) -> None:
    scores = np.empty((3, 6, 6), np.float32)
    scores[:] = np.array([0.9, 0.06, 0.04])[:, None, None]
    scores[:, 2, 3] = 0.2, 0.3, 0.5
    path = tmp_path / "scores" / "a.npz"
    path.parent.mkdir()
    np.savez(path, scores=scores)
    found, known = find(path.parent)
    reader = ForegroundReader(ScoreReader(known.space, True, 10**6, known.reading))
    labels, maps = planes_of(reader, found, "a", 6, 6)
    assert labels == [2]
    np.testing.assert_allclose(maps, scores[2:], atol=1e-6)


def test_numbered_cams_are_refused(tmp_path: Path) -> None:
    for name, numbers in PRESENT.items():
        writers.seam(tmp_path / "cams", name, numbers, writers.blobs(numbers, HEIGHT, WIDTH))
    with pytest.raises(CannotRunError, match="do not add up to one"):
        find(tmp_path / "cams")
    (tmp_path / "cams" / "b.npy").unlink()
    with pytest.raises(CannotRunError, match=r"no file .* has a class 0, the background"):
        find(tmp_path / "cams")


def test_a_background_is_taken_on_the_users_word(tmp_path: Path) -> None:
    shares = writers.softmax(logits_of("a"))[[0, 4, 15]] * 0.7
    writers.save(tmp_path / "scores", "a", dict(zip([0, 4, 15], shares, strict=True)))
    with pytest.raises(CannotRunError, match="--background-channel"):
        find(tmp_path / "scores")
    assert read(*find(tmp_path / "scores", background_channel=True), "a")[0] == [0, 4, 15]


def test_class_numbers_without_a_background_are_asked_for(tmp_path: Path) -> None:
    shares = writers.softmax(logits_of("a"))[[4, 15]]
    writers.save(tmp_path / "scores", "a", {"prob": shares, "keys": np.array([4, 15])})
    with pytest.raises(CannotRunError, match="--first-class 1"):
        find(tmp_path / "scores")
    assert read(*find(tmp_path / "scores", first_class=1), "a")[0] == [4, 15]
    assert read(*find(tmp_path / "scores", first_class=0), "a")[0] == [5, 16]
    with pytest.raises(CannotRunError, match="first class is 1"):
        find(write(tmp_path / "all", "SEAM after the CRF"), first_class=0)


def test_the_number_of_planes_says_the_classes(tmp_path: Path) -> None:
    for count, space in {81: COCO14, 91: COCO14}.items():
        logits = logits_of("a", count)
        writers.toco_logits(tmp_path / f"{count}", "a", logits)
        found, known = find(tmp_path / f"{count}")
        assert known.space == space
        labels, scores = read(found, known, "a")
        assert labels == list(range(81))
        assert set(np.unique(scores.argmax(0))) == ({0, 4, 15} if count == 81 else {0, 4, 14})
    writers.deeplab(tmp_path / "20", "a", logits_of("a", 20))
    with pytest.raises(CannotRunError, match="without the background"):
        find(tmp_path / "20")
    own = LabelSpace.from_names([f"part {i}" for i in range(1, 20)])
    assert read(*find(tmp_path / "20", own), "a")[0] == list(range(20))
    with pytest.raises(RowError, match="--label-space"):
        read(*find(tmp_path / "20", VOC12), "a")


def test_a_bare_array_needs_no_trust(tmp_path: Path) -> None:
    write(tmp_path / "scores", "deeplab-pytorch")
    listing = str(tmp_path / "listing.parquet")
    assert len(find_cams(str(tmp_path / "scores"), listing, trust_pickle=False).index) == 3
    write(tmp_path / "pickled", "ToCo")
    with pytest.raises(CannotRunError, match="--trust-pickle"):
        find_cams(str(tmp_path / "pickled"), listing, trust_pickle=False)


NOISE = np.random.default_rng(0).normal(size=(21, 9, 9)).astype(np.float32) * 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (np.zeros((21, 0, 4), np.float32), "classes, h, w"),
        (np.zeros((4, 4), np.float32), "classes, h, w"),
        (np.full((21, 4, 4), np.nan, np.float32), "NaN"),
        (np.zeros((21, 4, 4), int), "floating is expected"),
        ({"prob": np.zeros((2, 4, 4), np.float32), "keys": np.arange(3)}, "2 planes for 3"),
        ({"scores": 1}, "expected is"),
        (np.full((21, 4, 4), 100 / 21, np.float32), "add up to 100: divide them by it"),
        (np.full((21, 4, 4), 255 / 21, np.float32), "add up to 255: divide them by it"),
        (np.round(writers.softmax(NOISE) * 255), "add up to 255: divide them by it"),
        (np.round(writers.softmax(NOISE) * 100), "add up to 100: divide them by it"),
        (writers.softmax(NOISE) * 4, "add up to 4: divide them by it"),
        (writers.softmax(NOISE) / 2, "add up to 0.5: divide them by it"),
        (np.round(writers.softmax(NOISE) * 1000), "add up to 1000: divide them by it"),
        (writers.softmax(NOISE) * 65535, "add up to 65535: divide them by it"),
        (-np.log(writers.softmax(NOISE)), "these are energies, -log of probabilities"),
        (-np.log(writers.softmax(NOISE).clip(1e-5)), "these are energies"),
        (NOISE / np.linalg.norm(NOISE, axis=0), "no class more than 8 %.* --values logits"),
        (np.resize(NOISE, (90, 9, 9)), "90 planes, as many as there are classes without"),
        (np.resize(NOISE, (24, 24, 21)), r"\[24, 24, 21\], .* write \[classes, h, w\]"),
    ],
)
def test_what_cannot_be_scores_is_refused(content: Any, message: str, tmp_path: Path) -> None:
    writers.save(tmp_path / "scores", "a", content)
    with pytest.raises(CannotRunError, match=message):
        find(tmp_path / "scores")


def test_shares_over_the_last_axis_are_refused(tmp_path: Path) -> None:
    shares = writers.softmax(NOISE[:5])
    writers.save(tmp_path / "scores", "a", np.moveaxis(shares, 0, 2))
    with pytest.raises(CannotRunError, match=r"\[9, 9, 5\], .* write \[classes, h, w\]"):
        find(tmp_path / "scores")


def test_probabilities_after_a_bicubic_resize_are_probabilities(tmp_path: Path) -> None:
    shares = writers.softmax(logits_of("a"))[:, ::4, ::4]
    size = (WIDTH, HEIGHT)
    planes = [cv2.resize(plane, size, interpolation=cv2.INTER_CUBIC) for plane in shares]
    resized = np.array(planes)
    assert resized.min() < -0.02
    assert resized.max() > 1.02
    writers.deeplab(tmp_path / "scores", "a", resized)
    found, known = find(tmp_path / "scores")
    assert ", probabilities, in 1" in known.line
    _, scores = read(found, known, "a")
    assert scores.min() >= 0
    np.testing.assert_allclose(scores.sum(0), 1, atol=1e-3)
    assert (scores.argmax(0)[::2, ::2] == resized.argmax(0)).mean() > 0.95


def test_the_users_word_that_values_are_logits_holds(tmp_path: Path) -> None:
    writers.deeplab(tmp_path / "scores", "a", writers.softmax(logits_of("a")) * 4)
    _, scores = read(*find(tmp_path / "scores", values="logits"), "a")
    assert scores.max() == pytest.approx(np.e**4 / (np.e**4 + 20), abs=0.03)


def test_sums_of_shares_are_no_logits(tmp_path: Path) -> None:
    for name in PRESENT:
        numbers = [0, *sorted(number + 1 for number in PRESENT[name])]
        sums = writers.softmax(logits_of(name))[numbers] * 1.8
        writers.save(tmp_path / "scores", name, {"prob": sums, "keys": np.array(numbers)})
    found, known = find(tmp_path / "scores")
    assert "probabilities" in known.line
    assert read(found, known, "a")[1].max() == 1
    assert read(*find(tmp_path / "scores", values="logits"), "a")[1].max() < 1


def test_the_class_numbers_beside_a_key_of_the_user_count(tmp_path: Path) -> None:
    planes = logits_of("a")[[0, 15, 4]]
    content = {"mine": planes, "keys": np.array([0, 15, 4])}
    writers.save(tmp_path / "scores", "a", content)
    assert read(*find(tmp_path / "scores", key="mine"), "a")[0] == [0, 15, 4]


def test_class_numbers_may_be_cocos_90_ids(tmp_path: Path) -> None:
    shares = writers.softmax(logits_of("a"))[[0, 4, 15]]
    writers.save(tmp_path / "scores", "a", {"prob": shares, "keys": np.array([0, 13, 90])})
    with pytest.raises(CannotRunError, match="--class-ids coco90"):
        find(tmp_path / "scores")
    for flags in ({"class_ids": "coco90"}, {"space": COCO14}):
        assert read(*find(tmp_path / "scores", **flags), "a")[0] == [0, 12, 80]


def test_a_class_0_that_few_files_have_is_asked_for(tmp_path: Path) -> None:
    for number, name in enumerate("abcd"):
        shares = writers.softmax(logits_of("a"))[[4, 15]]
        keys = np.array([number, number + 5])
        writers.save(tmp_path / "scores", name, {"prob": shares, "keys": keys})
    with pytest.raises(CannotRunError, match=r"3 of 4 files .* have no class 0"):
        find(tmp_path / "scores")


def test_scores_of_another_aspect_are_an_error_row(tmp_path: Path) -> None:
    writers.deeplab(tmp_path / "scores", "a", logits_of("a").transpose(0, 2, 1)[:, :, :16])
    with pytest.raises(RowError, match="stretched"):
        read(*find(tmp_path / "scores"), "a")
