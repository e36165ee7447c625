"""Every command on folders of anything: what is met is made, failed or left out, by its own sum.

The commands run in this process, on one Ray. That parts add up is asserted by `Accounting`; here
what was found is counted from outside.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import event, given
from hypothesis import strategies as st

from pmm_ray.commands.data import import_dataset
from pmm_ray.commands.eval import score_folder
from pmm_ray.commands.export import export_run
from pmm_ray.commands.masks import make_masks_of
from pmm_ray.commands.predict import predict_folder
from pmm_ray.commands.refine import refine_folder
from pmm_ray.commands.run import run_recipe
from pmm_ray.config import RunConfig
from pmm_ray.labels import VOC12
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.nets.segmenter import build_segmenter
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.accounting import ALL_MADE
from pmm_ray.runtime.core.manifest import open_manifest
from pmm_ray.sources.cams.said import Said

from ..export.runs import make_run
from .junk import CAM, MASK, PHOTO, SCORES, Item, make, sound
from .mutations import commands

pytestmark = pytest.mark.usefixtures("ray_session")
_FIRST = re.compile(r"^(\d+) of (\d+) (?:images|masks|photographs)\n(.*)\n-> ", re.M | re.S)
MANY = ["errors.budget=100"]
Heard = Callable[[], str]


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Heard:
    """What was printed since the last call."""

    def read() -> str:
        out, err = capfd.readouterr()
        return f"{out}\n{err}"

    return read


def closing(code: int, said: str) -> tuple[int, int] | None:
    """(made, found) of the closing lines; None where the command could not run, and said why."""
    found = _FIRST.search(said)
    assert "Traceback" not in said
    event("could not run" if found is None else "ran")
    if found is None:
        assert code in (1, 3)
        reason = re.search(r"^pmm: .{10,}", said, re.M)
        assert reason
        event(re.sub(r"/tmp/\S+", "", reason[0])[:160])
        return None
    made, met = int(found[1]), int(found[2])
    assert code == (0 if made else 1)
    assert (found[3] == ALL_MADE) == (made == met)
    return made, met


def rows(place: str) -> int:
    return open_manifest(f"{place}/manifest.parquet").num_rows


@commands
@given(sound(".jpg", PHOTO, "images"))
def test_an_import_and_a_run(said: Heard, items: list[Item]) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = f"{place}/root"
        there = make(root, items)
        config = RunConfig.model_validate({"data": {"source": "folder", "root": root}})
        total = closing(import_dataset(config, f"{place}/out"), said())
        assert total is None or total == (rows(f"{place}/out"), there)
        Path(place, "r.yaml").write_text("data: {source: folder}\n")
        run = run_recipe(
            f"{place}/r.yaml",
            run_dir=f"{place}/run",
            settings=[f"data.root={root}", *MANY],
            last="import_data",
        )
        assert closing(run, said()) == total


@pytest.mark.slow
@commands
@given(sound(".jpg", PHOTO, "images"), sound(".npz", CAM))
def test_masks_of_cams(said: Heard, photographs: list[Item], cams: list[Item]) -> None:
    with tempfile.TemporaryDirectory() as place:
        there = make(f"{place}/photos", photographs) + make(f"{place}/cams", cams)
        out = f"{place}/out"
        code = make_masks_of(
            f"{place}/photos", f"{place}/cams", out, said=Said(trust_pickle=True), settings=MANY
        )
        total = closing(code, said())
        if total is None:
            return
        assert total == (written(out), there - pairs_of(out, "cam-files.parquet"))


def written(out: str) -> int:
    return len(list(Path(out, "masks").glob("[!.]*.png")))


def pairs_of(out: str, listing: str) -> int:
    """Photographs that have a file of planes: the two are one thing that was found."""
    ids = set(tables.read_table(f"{out}/{listing}").column("image_id").to_pylist())
    photos = [row for row in tables.read_errors(f"{out}/errors") if "/photos/" in row.uri]
    broken = sum("a second photograph" in row.message for row in photos)
    broken += sum(row.image_id not in ids for row in photos)
    return rows(out) + len(photos) - broken


@pytest.mark.slow
@commands
@given(
    sound(".jpg", PHOTO, "images"),
    sound(".npz", SCORES),
    st.none() | sound(".png", MASK),
    st.sampled_from([None, "irn", "toco-cam"]),
)
def test_refinements(
    said: Heard,
    photographs: list[Item],
    scores: list[Item],
    truth: list[Item] | None,
    preset: str | None,
) -> None:
    with tempfile.TemporaryDirectory() as place:
        there = make(f"{place}/photos", photographs) + make(f"{place}/scores", scores)
        if truth is not None:
            make(f"{place}/truth", truth)
        out = f"{place}/out"
        code = refine_folder(
            f"{place}/scores",
            f"{place}/photos",
            out,
            preset=preset,
            ground_truth=None if truth is None else f"{place}/truth",
            compare=truth is not None,
            said=Said(trust_pickle=True),
            settings=MANY,
        )
        total = closing(code, said())
        if total is not None:
            assert total == (written(out), there - pairs_of(out, "score-files.parquet"))


@pytest.mark.slow
@commands
@given(sound(".png", MASK), sound(".png", MASK))
def test_scores(said: Heard, masks: list[Item], truth: list[Item]) -> None:
    with tempfile.TemporaryDirectory() as place:
        there = make(f"{place}/masks", masks) + make(f"{place}/truth", truth)
        out = f"{place}/out"
        code = score_folder(
            f"{place}/masks", f"{place}/truth", out=out, label_space="voc12", settings=MANY
        )
        total = closing(code, said())
        if total is None:
            return
        pairs = tables.read_table(f"{out}/pairs.parquet").num_rows
        assert total[1] == there - pairs
        failed = [tables.read_errors(str(path)) for path in Path(out).glob("**/errors")]
        assert total[0] == pairs - sum(
            row.stage == "score_masks" and row.image_id in pair_ids(out)
            for errors in failed
            for row in errors
        )


def pair_ids(out: str) -> set[str]:
    return set(tables.read_table(f"{out}/pairs.parquet").column("image_id").to_pylist())


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = RunConfig.model_validate(
        {"segmenter": {"channels": 8, "weights": "none", "output_stride": 32}}
    ).segmenter
    torch.manual_seed(0)
    model = build_segmenter(config, VOC12.num_classes, VOC12.ignore)
    meta = {"config": config.model_dump(mode="json"), "ignore_index": VOC12.ignore}
    meta |= {"num_classes": VOC12.num_classes, "label_space": VOC12.to_json()}
    uri = str(tmp_path_factory.mktemp("segmenter") / "model.pt")
    save_model(uri, "segmenter", model, meta | {"round": 0, "training": {}})
    return uri


@pytest.mark.slow
@commands
@given(sound(".jpg", PHOTO, "images"))
def test_predictions(said: Heard, segmenter: str, items: list[Item]) -> None:
    with tempfile.TemporaryDirectory() as place:
        there = make(f"{place}/photos", items)
        out = f"{place}/out"
        small = ["predict.ratios=[1.0]", "predict.resize_base=[32,32]", "predict.actors=1", *MANY]
        code = predict_folder(segmenter, f"{place}/photos", out, settings=small)
        total = closing(code, said())
        assert total is None or total == (written(out), there)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exported")
    make_run(root, "make_masks")
    return root


@commands
@given(
    st.sampled_from(["voc", "coco", "mmseg", "yolo", "hf"]),
    st.lists(st.sampled_from(["good", "gone", "junk", "no truth"]), min_size=6, max_size=6),
)
def test_exports(said: Heard, exported: Path, name: str, fates: list[str]) -> None:
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(exported, f"{place}/run")
        manifest = open_manifest(f"{place}/run/data/manifest.parquet")
        images = tables.read_table(manifest.uri).to_pylist()
        for row, fate in zip(images, fates, strict=False):
            uri = Path(manifest.locate(row["uri"]))
            if fate in ("gone", "junk"):
                uri.unlink()
            if fate == "junk":
                uri.write_bytes(b"junk")
            if fate == "no truth" and row["ground_truth_uri"]:
                Path(manifest.locate(row["ground_truth_uri"])).unlink()
        total = closing(export_run(f"{place}/run", f"{place}/out", name), said())
        assert total is None or total[1] == manifest.num_rows
