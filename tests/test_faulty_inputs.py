"""Inputs of real people through stages and whole commands: each does what it can and says the rest.

Those that need no Ray are in tests/sources/test_faults.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pmm_ray.commands.eval import score_folder
from pmm_ray.commands.masks import make_masks_of
from pmm_ray.config import DataConfig, ErrorsConfig, RunConfig
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.index import TableIndex, index_file, read_index
from pmm_ray.runtime.core.manifest import Manifest, ManifestRow, write_manifest
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.rows.masks import mask_row
from pmm_ray.sources.cams.said import Said
from pmm_ray.sources.datasets.coco import import_coco
from pmm_ray.stages import compare_masks, evaluate, rasterize_masks

from .sources.coco_tree import annotation, box, entry, photo, write

MakeContext = Callable[..., RunContext]
pytestmark = pytest.mark.usefixtures("ray_session")
HEIGHT, WIDTH = 48, 64
TRUSTED = Said(trust_pickle=True)


def grey(path: Path, value: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((HEIGHT, WIDTH), value, np.uint8)).save(path)


def noise(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save(path)


def with_truth_of(shapes: Manifest, folder: Path, value: int) -> tuple[Manifest, TableIndex]:
    """One held-out image whose truth holds one value, and a masks table that knows it."""
    grey(folder / "truth.png", value)
    row = ManifestRow("a", "a.jpg", (1,), HEIGHT, WIDTH, "val", "truth.png")
    uri = str(folder / "manifest.parquet")
    manifest = write_manifest(uri, [row], shapes.label_space, source="x", exif="apply")
    about = {"image_id": "a", "height": HEIGHT, "width": WIDTH}
    mask = mask_row(about, np.zeros((HEIGHT, WIDTH), np.uint8), shapes.label_space, 0)
    masks = str(folder / "masks.parquet")
    storage.write_bytes(masks, tables.to_bytes(pa.Table.from_pylist([mask], tables.MASKS)))
    return manifest, index_file(masks)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (76, "not one image could be scored, see errors/, such as a: the truth holds [76]"),
        (255, "the truth holds no class"),
    ],
)
def test_an_evaluation_without_a_score_is_done_and_says_why(
    value: int, reason: str, shapes: Manifest, make_context: MakeContext, tmp_path: Path
) -> None:
    manifest, masks = with_truth_of(shapes, tmp_path, value)
    context = make_context(manifest, RunConfig(errors=ErrorsConfig(budget=0)))
    folder = StageFolder.below(context.run_dir, "evaluate-x", "12345678")
    summary = evaluate.run(
        context,
        folder,
        masks=masks,
        title="x",
        split="val",
        masks_stage="make_masks",
    )
    assert summary.metrics == {}
    assert reason in summary.details["not_scored"]
    assert summary.errors == (1 if value == 76 else 0)


def test_a_comparison_of_nothing_is_done(
    shapes: Manifest, make_context: MakeContext, tmp_path: Path
) -> None:
    manifest, masks = with_truth_of(shapes, tmp_path, 0)
    context = make_context(manifest)
    folder = StageFolder.below(context.run_dir, "compare_masks-r1", "12345678")
    none = masks.select([])
    summary = compare_masks.run(context, folder, earlier=none, later=none, stages=("x", "y"))
    assert (summary.images, summary.details["churn"]) == (0, {})
    assert len(read_index(folder.uri)) == 0


@pytest.mark.parametrize("truth", ["held_out", "broken"])
def test_nothing_to_draw_is_drawn(truth: str, make_context: MakeContext, tmp_path: Path) -> None:
    photo(tmp_path / "a.jpg")
    outline: Any = [box(1, 1, 5, 5)] if truth == "held_out" else {"counts": [3]}
    kinds = [{"id": 1, "name": "cat"}]
    path = write(tmp_path / "set.json", [entry(1, "a.jpg")], [annotation(1, 1, outline)], kinds)
    splits = ["val"] if truth == "held_out" else ["train"]
    manifest = import_coco(str(path), str(tmp_path / "out"), truth_splits=splits).manifest
    context = make_context(manifest, RunConfig(errors=ErrorsConfig(budget=0)))
    folder = StageFolder.below(context.run_dir, rasterize_masks.STAGE, "12345678")
    summary = rasterize_masks.run(DataConfig(source="coco"), context, folder)
    assert summary.details["counts"]["masks"] == 0
    assert summary.errors == (1 if truth == "broken" else 0)


def test_scores_that_are_taken_for_cams_end_with_exit_code_1(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    planes = np.full((2, 12, 16), 0.5, np.float32)
    (tmp_path / "cams").mkdir()
    for name in "ab":
        noise(tmp_path / f"photos/{name}.jpg")
        np.save(tmp_path / f"cams/{name}.npy", dict(enumerate(planes)))
    out = tmp_path / "out"
    code = make_masks_of(tmp_path / "photos", tmp_path / "cams", out, said=TRUSTED)
    said = " ".join(capfd.readouterr().err.split())
    assert code == 1
    assert "a: the planes of classes [0, 1] add up to one" in said
    assert "--background-channel" in said


def test_cams_of_clip_es_make_masks_and_every_file_is_accounted_for(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    blob = np.exp(-((x - 20) ** 2 + (y - 20) ** 2) / 200)[None].astype(np.float16)
    (tmp_path / "cams/sub").mkdir(parents=True)
    for name in ("a", "sub/b"):
        noise(tmp_path / f"photos/{name}.jpg")
        np.save(tmp_path / f"cams/{name}.npy", {"keys": np.array([2]), "attn_highres": blob})
    noise(tmp_path / "photos/lone.jpg")
    (tmp_path / "cams/readme.txt").write_text("x")
    (tmp_path / "photos/c.mov").write_text("x")
    out = tmp_path / "out"
    assert make_masks_of(tmp_path / "photos", tmp_path / "cams", out, said=TRUSTED) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert "2 of 5 images" in said
    assert "layout clip-es (CLIP-ES, WeCLIP; .npy, `keys`, `attn_highres`" in said
    for text in ("1 left out: no CAM", "photographs without a CAM (lone.jpg)", "(c.mov)"):
        assert text in said
    assert len(list((out / "masks").glob("*.png"))) == 2


def score_cats(folder: Path, **more: Any) -> int:
    """The exit code of scoring the folder's masks, of one class."""
    (folder / "names").write_text("cat\n")
    places = folder / "masks", folder / "truth"
    return score_folder(*places, out=folder / "out", label_space=str(folder / "names"), **more)


def test_masks_of_0_and_255_are_not_scored(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:9] = 255
    for folder in ("truth", "masks"):
        grey(tmp_path / folder / "a.png", 0)
    Image.fromarray(mask).save(tmp_path / "truth/a.png")
    assert score_cats(tmp_path) == 1
    assert "the ground truth holds only 0 and 255" in " ".join(capfd.readouterr().err.split())


def test_equal_names_in_two_folders_are_scored_by_their_paths(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in ("truth", "masks"):
        for value, place in enumerate(("x", "y")):
            grey(tmp_path / folder / place / "a b.png", value)
    (tmp_path / "list.txt").write_text("x/a b\ny/a b\nnobody\n")
    assert score_cats(tmp_path, images=tmp_path / "list.txt") == 0
    assert "mIoU 100.00 %" in capfd.readouterr().out
    [row] = tables.read_errors(str(tmp_path / "out/errors"))
    assert "'nobody'" in row.message
