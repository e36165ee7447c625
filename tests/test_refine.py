"""`pmm refine`: scores and CAMs of other programs, through the whole command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latticecrf import DenseCrf, Preset
from pmm_ray.commands.refine import refine_folder
from pmm_ray.config import load_recipe
from pmm_ray.method.confusion import count_pairs
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import read_all
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.runtime.rows.masks import crf_parameters
from pmm_ray.sources.cams.said import Said

from .sources import writers
from .sources.test_score_files import HEIGHT, PRESENT, WIDTH, logits_of

TRUSTED = Said(trust_pickle=True)


def image_of(name: str) -> Any:
    rng = np.random.default_rng(len(name) + ord(name[0]))
    coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    return np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for name in PRESENT:
        Image.fromarray(image_of(name)).save(tmp_path / "photos" / f"{name}.png")
    return tmp_path


def run(folder: Path, **options: Any) -> int:
    options = {"said": TRUSTED} | options
    return refine_folder(folder / "scores", folder / "photos", folder / "out", **options)


def mask(folder: Path, name: str) -> Any:
    return decode_mask((folder / "out" / "masks" / f"{name}.png").read_bytes())


def truth_of(name: str) -> Any:
    """The strongest class, and a corner that is not labelled."""
    truth = logits_of(name).argmax(0).astype(np.uint8)
    truth[:4, :4] = 255
    return truth


def write_truth(folder: Path, names: str) -> Path:
    (folder / "truth").mkdir()
    for name in names:
        Image.fromarray(truth_of(name)).save(folder / "truth" / f"{name}.png")
    return folder / "truth"


def test_logits_are_refined_and_scored_on_the_way(
    folder: Path, ray_session: ClusterResources, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in PRESENT:
        writers.toco_logits(folder / "scores", name, logits_of(name))
    truth = write_truth(folder, "ab")
    assert run(folder) == 0
    crf = crf_parameters(load_recipe(None, ()).predict.crf)
    for name in PRESENT:
        posterior = DenseCrf(image_of(name), crf).joint(writers.softmax(logits_of(name)))
        assert (mask(folder, name) == posterior.argmax(0)).mean() > 0.995
    [stage] = folder.glob("out/refine_scores-*")
    assert sorted(read_all(str(stage)).column("image_id").to_pylist()) == sorted(PRESENT)
    written = {file: file.stat().st_mtime_ns for file in stage.glob("part-*")}
    assert run(folder) == 0
    assert {file: file.stat().st_mtime_ns for file in stage.glob("part-*")} == written

    capfd.readouterr()
    assert run(folder, ground_truth=truth, compare=True) == 0
    said = capfd.readouterr()
    scores = json.loads((folder / "out" / "scores.json").read_text())
    assert scores["scored"] == 2
    # the scores' own masks are the truth here, except for what the CRF changes
    assert scores["before_mean_iou"] == 1
    hits = pixels = 0
    for name in "ab":
        true, found, counts = count_pairs(truth_of(name), mask(folder, name))
        hits += counts[(true == found)].sum()
        pixels += counts[true != 255].sum()
    assert scores["after_pixel_accuracy"] == pytest.approx(hits / pixels, abs=1e-6)
    assert "mIoU before the CRF: 100.00 %" in said.out
    assert "mIoU after the CRF" in said.out
    assert "pixel labels used (2 of 3 images" in said.err
    assert "layout logits (ToCo" in said.err
    assert "3 of 3 images" in said.err


def test_bad_files_cost_their_own_image_or_its_score(
    folder: Path, ray_session: ClusterResources, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        writers.deeplab(folder / "scores", name, logits_of(name))
    (folder / "scores" / "c.npy").write_bytes(b"\x93NUMPY damaged")
    writers.deeplab(folder / "scores", "no-photograph", logits_of("a"))
    truth = write_truth(folder, "ab")
    (truth / "b.png").write_bytes(b"no mask")
    assert run(folder, ground_truth=truth, said=Said()) == 0
    assert sorted(file.name for file in (folder / "out" / "masks").glob("*.png")) == [
        "a.png",
        "b.png",
    ]
    rows = {
        (row.image_id, row.kind)
        for place in [folder / "out" / "errors", *folder.glob("out/refine_scores-*/errors")]
        for row in tables.read_errors(str(place))
    }
    assert rows == {("c", "decode"), ("no-photograph", "missing"), ("b", "label")}
    said = capfd.readouterr()
    assert "2 of 4 images" in said.err
    last = said.err.strip().splitlines()[-1]
    assert last.endswith("out/errors; 1 images have ground truth that cannot be used")
    assert json.loads((folder / "out" / "scores.json").read_text())["scored"] == 1
    for name in "ab":
        (folder / "scores" / f"{name}.npy").write_bytes(b"damaged")
    assert run(folder, said=Said()) == 1


def test_masks_are_of_these_photographs_and_come_back_when_deleted(
    folder: Path, ray_session: ClusterResources
) -> None:
    for name in PRESENT:
        writers.toco_logits(folder / "scores", name, logits_of(name))
    assert run(folder) == 0
    first = {p.name: p.read_bytes() for p in folder.glob("out/masks/*.png")}
    assert run(folder, preset="no-such") == 1
    shutil.rmtree(folder / "out/masks")
    assert run(folder) == 0
    assert {p.name: p.read_bytes() for p in folder.glob("out/masks/*.png")} == first
    Image.fromarray(255 - image_of("a")).save(folder / "photos" / "a.png")
    assert run(folder) == 0
    assert len([*folder.glob("out/refine_scores-*")]) == 2


def test_truth_that_is_found_by_its_number_is_said(
    folder: Path, ray_session: ClusterResources, capfd: pytest.CaptureFixture[str]
) -> None:
    name = "000000000009"
    Image.fromarray(image_of("a")).save(folder / "photos" / f"{name}.png")
    writers.deeplab(folder / "scores", name, logits_of("a"))
    truth = write_truth(folder, "a")
    (truth / "a.png").rename(truth / "9.png")
    assert run(folder, ground_truth=truth) == 0
    assert "ground truth: pairs found" in capfd.readouterr().err


def test_truth_that_is_not_there_or_there_twice_is_said_and_goes_with_its_masks(
    folder: Path, ray_session: ClusterResources
) -> None:
    for name in PRESENT:
        writers.toco_logits(folder / "scores", name, logits_of(name))
    truth = write_truth(folder, "ab")
    shutil.copy(truth / "a.png", truth / "a.PNG")
    (truth / "c.png").symlink_to(folder / "nowhere.png")
    # no photograph has this name
    (truth / "other.png").symlink_to(folder / "nowhere.png")
    assert run(folder, ground_truth=truth) == 0
    rows = {row.image_id: row.message for row in tables.read_errors(str(folder / "out/errors"))}
    assert rows.keys() == {"a", "c"}
    assert "a second ground truth of that name; the first one counts" in rows["a"]
    assert "truth/c.png: " in rows["c"]
    scores = folder / "out/scores.json"
    assert json.loads(scores.read_text())["scored"] == 2

    assert run(folder, preset="weclip") == 0
    assert not scores.exists()
    assert not tables.read_errors(str(folder / "out/errors"))


def test_truth_without_a_labelled_pixel_gives_no_score(
    folder: Path, ray_session: ClusterResources, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in "ab":
        writers.toco_logits(folder / "scores", name, logits_of(name))
    (folder / "truth").mkdir()
    for name, value in {"a": 255, "b": 37}.items():
        values = np.full((HEIGHT, WIDTH), value, np.uint8)
        values[0] = 255 if name == "a" else 0
        Image.fromarray(values).save(folder / "truth" / f"{name}.png")
    assert run(folder, ground_truth=folder / "truth") == 0
    assert "no image could be scored" in capfd.readouterr().err
    assert not (folder / "out/scores.json").exists()


@pytest.mark.parametrize("preset", ["irn", "clip-es", "more", "toco", "excel"])
def test_the_presets_are_those_of_the_library(
    preset: str, folder: Path, ray_session: ClusterResources
) -> None:
    known = Preset[preset.upper().replace("-", "_")]
    for name, numbers in PRESENT.items():
        if preset == "toco":
            writers.deeplab(folder / "scores", name, logits_of(name))
        elif preset == "excel":
            writers.excel_scores(folder / "scores", name, logits_of(name))
        else:
            maps = writers.blobs(numbers, HEIGHT, WIDTH)
            writers.toco(folder / "scores", name, numbers, maps)
    assert run(folder, preset=preset) == 0
    ignored = 0
    for name, numbers in PRESENT.items():
        planes = writers.softmax(logits_of(name))
        ids = np.arange(256)
        present = np.array(numbers) + 1
        if preset == "excel":
            present.sort()
            planes = np.concatenate([1 - planes[present].max(0, keepdims=True), planes[present]])
        elif preset != "toco":
            planes = writers.blobs(numbers, HEIGHT, WIDTH)
        if preset != "toco":
            ids[1 : len(numbers) + 1] = present
        wanted = ids[known.labels(image_of(name), planes)]
        assert (mask(folder, name) == wanted).mean() > 0.995
        ignored += (wanted == 255).sum()
    assert (ignored > 0) == (preset in ("irn", "clip-es"))


def test_pixels_below_a_confidence_are_ignored(folder: Path, ray_session: ClusterResources) -> None:
    for name in PRESENT:
        writers.own_scores(folder / "scores", name, logits_of(name) / 4)
    assert run(folder, confidence=0.999, said=Said()) == 0
    shares = {name: (mask(folder, name) == 255).mean() for name in PRESENT}
    assert max(shares.values()) > 0.05
    assert run(folder, confidence=0.0, said=Said()) == 0
    assert all((mask(folder, name) != 255).all() for name in PRESENT)


@pytest.mark.parametrize("program", ["ToCo", "SEAM after the CRF"])
def test_scores_serve_presets_that_make_their_own_background(
    program: str, folder: Path, ray_session: ClusterResources, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in PRESENT:
        writers.SCORES[program][1](folder / "scores", name, logits_of(name))
    assert run(folder, preset="irn") == 0
    assert "the preset makes its own background" in capfd.readouterr().err
    for name, numbers in PRESENT.items():
        present = np.array(numbers) + 1
        ids = np.arange(256)
        ids[1 : len(numbers) + 1] = np.sort(present)
        maps = writers.softmax(logits_of(name))[np.sort(present)]
        wanted = ids[Preset.IRN.labels(image_of(name), maps)]
        assert (mask(folder, name) == wanted).mean() > 0.97


def test_pixels_where_two_strengths_disagree_are_ignored(
    folder: Path, ray_session: ClusterResources
) -> None:
    for name, numbers in PRESENT.items():
        writers.seam(folder / "scores", name, numbers, writers.blobs(numbers, HEIGHT, WIDTH))
    ignored = []
    for strengths in ("0.4,0.4", "0.6,0.1", "0.6"):
        assert run(folder, preset="irn", strengths=strengths) == 0
        ignored.append(sum((mask(folder, name) == 255).sum() for name in PRESENT))
    assert ignored[0] == ignored[2] == 0
    assert ignored[1] > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "irm"}, "choose one of seam, irn"),
        ({"compare": True}, "needs --ground-truth"),
        ({"confidence": 2.0}, "within 0..1"),
        ({"strengths": "1,2"}, "--strengths belong to presets"),
        ({"preset": "irn", "strengths": "a"}, "give a number A, or two"),
        ({"preset": "irn", "strengths": "nan"}, "finite number above 0"),
        ({"preset": "irn", "strengths": "0"}, "finite number above 0"),
        ({"preset": "irn", "strengths": "1.5"}, "below 1"),
        ({"preset": "irn", "strengths": "0.1,0.6"}, "the higher threshold comes first"),
        ({"preset": "seam", "strengths": "24,4"}, "the lower exponent comes first"),
        ({"preset": "toco", "settings": ("predict.crf.iterations=3",)}, "contradict"),
        ({"preset": "toco", "settings": ("predict={crf: {iterations: 3}}",)}, "contradict"),
        ({"settings": ("masks.crf.iterations=3",)}, r"pmm refine reads predict.crf, "),
        ({"settings": ("predict.use_crf=false",)}, "pmm refine reads predict.crf, "),
        ({"said": Said(layout="irn", trust_pickle=True)}, "--layout irn: of scores it is one of"),
        ({"said": Said()}, "--trust-pickle"),
        ({"ground_truth": "photos"}, "no image has ground truth"),
    ],
)
def test_what_stops_the_command_before_it_starts(
    options: dict[str, Any], message: str, folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    writers.crf_dictionary(folder / "scores", "a", logits_of("a"))
    if "ground_truth" in options:
        (folder / "truth").mkdir()
        Image.fromarray(truth_of("a")).save(folder / "truth" / "other.png")
        options = {"ground_truth": folder / "truth"}
    assert run(folder, **options) == 1
    assert message in " ".join(capfd.readouterr().err.split())
    assert not list(folder.glob("out/masks/*.png"))


def test_truth_where_the_masks_go_is_refused_and_kept(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    writers.crf_dictionary(folder / "scores", "a", logits_of("a"))
    truth = folder / "out" / "masks" / "truth" / "a.png"
    truth.parent.mkdir(parents=True)
    Image.fromarray(truth_of("a")).save(truth)
    for place in (truth.parent, truth.parent.parent):
        assert run(folder, ground_truth=place) == 1
        assert "where the masks are written" in " ".join(capfd.readouterr().err.split())
    assert truth.exists()


def test_files_that_are_not_ours_are_never_deleted(
    folder: Path, ray_session: ClusterResources, capfd: pytest.CaptureFixture[str]
) -> None:
    writers.crf_dictionary(folder / "scores", "a", logits_of("a"))
    other = folder / "out" / "masks" / "a.png"
    other.parent.mkdir(parents=True)
    other.write_bytes(b"of the user")
    assert run(folder) == 1
    assert "that this command did not make" in " ".join(capfd.readouterr().err.split())
    assert other.read_bytes() == b"of the user"
