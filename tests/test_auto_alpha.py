"""`masks.alpha: auto`, and sweeps, with ground truth and without."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import yaml
from PIL import Image

from pmm_ray.commands.run import run_recipe
from pmm_ray.config import MasksConfig, RunConfig
from pmm_ray.pipeline.run import Run
from pmm_ray.pipeline.steps import choose_alpha
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.selection import Selection
from pmm_ray.runtime.core.session import Session
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.sources.datasets.shapes import make_shapes

from .rehearsal import rehearse

RECIPES = Path(__file__).parents[1] / "recipes"


def rehearsed(
    place: Path, monkeypatch: pytest.MonkeyPatch, alpha: str, chosen: dict[str, float] | None = None
) -> tuple[int, dict[str, str]]:
    """(exit code, stage -> hash) of a run that computes nothing."""
    weights = place / "weights"
    weights.mkdir(parents=True)
    with monkeypatch.context() as patch:
        seen = rehearse(patch, weights, {} if chosen is None else {"chosen": chosen})
        settings = [f"masks.alpha={alpha}", "cycles.rounds=0"]
        code = run_recipe(RECIPES / "shapes.yaml", run_dir=str(place / "run"), settings=settings)
        return code, dict(seen)


def test_the_masks_are_those_of_the_chosen_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _, given = rehearsed(tmp_path / "given", monkeypatch, "5")
    code, by_truth = rehearsed(tmp_path / "truth", monkeypatch, "auto", {"alpha": 5.0})
    assert code == 0, capfd.readouterr().err
    monkeypatch.setattr(DataSet, "with_truth", lambda data, split: [])
    code, without = rehearsed(tmp_path / "none", monkeypatch, "auto", {"alpha": 5.0})
    assert code == 0, capfd.readouterr().err
    assert by_truth["make_masks"] == without["make_masks"] == given["make_masks"]
    assert by_truth["sweep_masks-alpha"] != without["sweep_masks-alpha"]
    resolved = yaml.safe_load((tmp_path / "none" / "run" / "resolved.yaml").read_text())
    assert resolved["masks"]["alpha"] == 5


def test_where_the_classifier_sees_nothing_a_number_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(DataSet, "with_truth", lambda data, split: [])
    code, seen = rehearsed(tmp_path, monkeypatch, "auto", {})
    assert code == 1
    assert "set masks.alpha to a number" in capfd.readouterr().err
    assert "make_masks" not in seen


def test_where_no_truth_can_be_used_the_classifier_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def stages(kind: str, **details: Any) -> Callable[..., Stage]:
        def body(context: RunContext, folder: StageFolder) -> Summary:
            done.append(kind)
            return Summary(stage=folder.stage, hash=folder.hash, details=details)

        return lambda *_, name, **__: Stage(name, (kind,), body)

    by_truth = stages("truth", chosen={}, not_scored="no truth")
    monkeypatch.setattr("pmm_ray.stages.sweep_masks.stage", by_truth)
    by_classifier = stages("classifier", chosen={"alpha": 5.0})
    monkeypatch.setattr("pmm_ray.stages.judge_masks.stage", by_classifier)
    config = RunConfig(masks=MasksConfig(alpha="auto"))
    step = choose_alpha(config)
    for _ in range(2):  # the second time both are finished
        said = io.StringIO()
        session = Session(str(tmp_path), config, Selection((step.name,)), Progress(stream=said))
        run = Run(session, [step], writes_config=False)
        run.data = cast("DataSet", SimpleNamespace(scorable=lambda split: ["a"], manifest=None))
        for name in ("make_cams", "train_classifier"):
            run.folders[name] = StageFolder.below(str(tmp_path), name, "0")
        run.follow()
        assert done == ["truth", "classifier"]
        assert run.config.masks.alpha == 5
        assert "nothing chosen: no truth" in said.getvalue()
        assert "masks.alpha 5, without ground truth" in said.getvalue()


RECIPE = """
name: photos
data: {source: folder, train_split: train, held_out_split: val}
classifier: {backbone: efficientnet_lite0, epochs: 1, batch_size: 6,
  resize_long: [48, 72], crop_size: 48, output_stride: 16, validation_images: 0, workers: 1}
cams: {scales: [1.0], flip: false}
masks: {alpha: auto}
evaluate: {ladder: []}
runtime: {cpus: 2, object_store_bytes: 150000000}
"""


def pmm(*words: str) -> str:
    command = [sys.executable, "-m", "pmm_ray.cli", *words, "--address", "local"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=300, env={**os.environ, "COLUMNS": "300"}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def summary(run_dir: Path, stage: str) -> dict[str, Any]:
    (file,) = run_dir.glob(f"{stage}-????????/summary.json")
    found: dict[str, Any] = json.loads(file.read_text())
    return found


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_photographs_without_truth_have_a_value_and_a_contact_sheet(tmp_path: Path) -> None:
    photos, run_dir, recipe = tmp_path / "photos", tmp_path / "run", tmp_path / "recipe.yaml"
    make_shapes(str(photos), images=16, size=64, classes=2, seed=1)
    shutil.rmtree(photos / "masks")
    recipe.write_text(RECIPE)
    place = (str(recipe), "--set", f"data.root={photos}", "--run-dir", str(run_dir))
    said = pmm("run", *place, "--until", "make_masks")
    chosen = summary(run_dir, "sweep_masks-alpha")
    assert not chosen["pixel_labels_used"]
    alpha = chosen["details"]["chosen"]["alpha"]
    best = max(chosen["details"]["combinations"], key=lambda row: row["lift"])
    assert alpha == best["alpha"]
    assert f"masks.alpha {alpha:g}, without ground truth" in said
    resolved = yaml.safe_load((run_dir / "resolved.yaml").read_text())
    assert resolved["masks"]["alpha"] == alpha
    assert summary(run_dir, "make_masks")["images"] == 16
    assert "without ground truth" in (run_dir / "report.html").read_text()

    said = pmm("ablate", *place, "--sweep", "masks.alpha=1,4", "--sweep", "masks.smoothing=0,0.3")
    assert "lift %" in said
    assert "mIoU" not in said
    judged = summary(run_dir, "judge_masks")
    assert len(judged["details"]["combinations"]) == 4
    assert not list(run_dir.glob("sweep_masks-????????"))
    page = (run_dir / "report.html").read_text()
    assert page.count("Contact sheet") == 2
    assert page.count("<figcaption>alpha 4, smoothing 0.3</figcaption>") == 10


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_truth_that_cannot_be_used_costs_the_scores_and_not_the_run(tmp_path: Path) -> None:
    photos, run_dir, recipe = tmp_path / "photos", tmp_path / "run", tmp_path / "recipe.yaml"
    make_shapes(str(photos), images=40, size=64, classes=2, seed=1)
    for path in (photos / "masks").glob("*.png"):
        mask = np.array(Image.open(path))
        mask[:2] = 220  # VOC's border in a grey mask
        Image.fromarray(mask).save(path)
    recipe.write_text(RECIPE)
    place = (str(recipe), "--set", f"data.root={photos}", "--run-dir", str(run_dir))
    ladder = ("--set", "evaluate.ladder=[cam_argmax]", "--set", "errors.budget=0")
    said = " ".join(pmm("run", *place, *ladder, "--until", "make_masks").split())
    assert "masks hold [220], which are no classes" in said
    assert "nothing chosen: not one image could be scored, see errors/, such as" in said
    assert ", without ground truth: by what the classifier sees" in said
    assert "evaluate-ppmg: no score: not one image could be scored" in said
    scored = summary(run_dir, "evaluate-ppmg")
    assert (scored["images"], scored["metrics"]) == (0, {})
    assert scored["errors"] > 0
    assert summary(run_dir, "make_masks")["images"] == 40
    page = (run_dir / "report.html").read_text()
    assert page.count("Parameter sweep") == 1
