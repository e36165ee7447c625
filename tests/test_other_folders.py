"""A command does not take over the folder of another one."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pmm_ray.commands.data import import_dataset, make_dataset
from pmm_ray.commands.eval import score_folder
from pmm_ray.commands.masks import clear_other_masks, make_masks_of, masks_folder
from pmm_ray.commands.predict import predict_folder
from pmm_ray.commands.refine import refine_folder
from pmm_ray.commands.report import write_report
from pmm_ray.commands.run import run_recipe
from pmm_ray.commands.watch import watch
from pmm_ray.config import RunConfig
from pmm_ray.report.run_data import load_run
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.files import TRUTH_MARKER
from pmm_ray.runtime.core.record import RunRecord
from pmm_ray.runtime.core.stage import StageFolder

from .report.run_folder import RunFolder


def coco(root: Path) -> RunConfig:
    return RunConfig.model_validate({"data": {"source": "coco", "root": str(root)}})


COMMANDS: dict[str, Callable[[RunFolder, str], int]] = {
    "predict": lambda run, out: predict_folder(run.uri, run.root / "data", out),
    "masks": lambda run, out: make_masks_of(run.root / "data", run.root, out),
    "refine": lambda run, out: refine_folder(run.root, run.root / "data", out),
    "eval": lambda run, out: score_folder(run.root, run.root / "data", out=out),
    "import": lambda run, out: import_dataset(coco(run.root), out),
    "shapes": lambda run, out: make_dataset(out, images=8, classes=2, size=48, seed=0),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_stays(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "run")
    run.stage("train_segmenter-r0")
    kept = (run.root / "run.json").read_bytes()
    (tmp_path / "link").symlink_to(run.root)
    assert COMMANDS[name](run, str(tmp_path / "link")) == 1
    said = " ".join(capfd.readouterr().err.split())
    assert "is the folder of another command, which made train_segmenter-r0" in said
    assert (run.root / "run.json").read_bytes() == kept


@pytest.mark.parametrize("name", ["predict", "masks", "refine"])
def test_a_data_set_stays(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = RunFolder(tmp_path / "run")
    run.stage("train_segmenter-r0")
    manifest = run.root / "data/manifest.parquet"
    kept = manifest.read_bytes()
    assert COMMANDS[name](run, str(run.root / "data")) == 1
    assert "manifest.parquet is of another command" in " ".join(capfd.readouterr().err.split())
    assert manifest.read_bytes() == kept


def test_ground_truth_that_an_import_drew_stays(tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    stage = StageFolder.below(str(tmp_path), "rasterize_masks", "0123abcd")
    assert clear_other_masks(str(masks), stage, marker=TRUTH_MARKER)
    (masks / "a.png").write_bytes(b"drawn")
    with pytest.raises(CannotRunError, match="holds files that this command did not make"):
        masks_folder(str(tmp_path))
    assert not clear_other_masks(str(masks), stage, marker=TRUTH_MARKER)


@pytest.mark.parametrize("text", ["[]", '{"stages": [], "finished": null}', '{"name": 1}', "{"])
def test_other_programs_have_records_too(
    tmp_path: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text(text)
    assert write_report(str(tmp_path)) == 1
    assert watch(str(tmp_path), once=True) == 1
    assert run_recipe("recipes/shapes.yaml", run_dir=str(tmp_path)) == 1
    assert capfd.readouterr().err.count("run.json is not") == 3
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_the_rounds_of_a_table_are_not_the_runs(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")  # cycles.rounds is 1
    for stage in ("train_segmenter-r0", "train_segmenter-r1"):
        run.stage(stage)
    before = load_run(run.uri).final_segmenter
    assert before is not None
    record = RunRecord(run.uri, "table", adds=["train_segmenter-r2"])
    record.begin(StageFolder.below(run.uri, "train_segmenter-r2", "99999999"))
    record.write(computed=True, finished=True, plan=None, manifest=None, cluster=None)
    assert json.loads((run.root / "run.json").read_text())["stages"][-1]["hash"] == "99999999"
    assert load_run(run.uri).final_segmenter == before
