"""Tables 4, 5 and 6: what they refuse, what they plan, and a run of each on small shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from pmm_ray.commands.ablate import Ablation, run_table
from pmm_ray.config import RunConfig, UnderfittingConfig
from pmm_ray.pipeline.tables.segmenter_tables import WALKED, variant_of
from pmm_ray.pipeline.tables.table import table_stage
from pmm_ray.pipeline.tables.table4 import ROWS
from pmm_ray.report.run_data import RunData, load_run
from pmm_ray.runtime.core.resources import ClusterResources

from ..rehearsal import rehearse

RECIPE = str(Path(__file__).resolve().parents[2] / "recipes" / "shapes.yaml")
OWN = ["train_segmenter-r0", "train_segmenter-r1"]
SMALL = (
    *("data.images=16", "data.size=48", "data.classes=2"),
    *("classifier.epochs=1", "classifier.batch_size=4", "classifier.crop_size=48"),
    *("classifier.resize_long=[48, 64]", "classifier.workers=1", "cams.scales=[1.0]"),
    *("segmenter.iterations=2", "segmenter.batch_size=2", "segmenter.channels=8"),
    *("segmenter.crop_size=64", "segmenter.resize_base=[96, 64]", "segmenter.workers=1"),
    *("segmenter.validation_images=0", "predict.ratios=[1.0]", "predict.flip=false"),
    *("affinity.epochs=1", "affinity.batch_size=4", "affinity.crop_size=48"),
    *("predict.resize_base=[96, 64]", "predict.crf.iterations=1", "evaluate.ladder=[]"),
)


def test_every_operation_of_the_section_is_a_row() -> None:
    assert {kind for kind, _, _ in ROWS} == set(
        get_args(UnderfittingConfig.model_fields["kind"].annotation)
    )
    config = RunConfig.model_validate({"segmenter": {"underfitting": {"beta": 0.3}}})
    variant = variant_of(config, "pow")
    assert variant.name == "pow"
    assert variant.segmenter["underfitting"]["kind"] == "pow"
    assert variant.segmenter["underfitting"]["beta"] == 0.3


@pytest.mark.parametrize("number", [4, 5, 6])
def test_a_sample_of_images_is_refused(
    number: int, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    request = Ablation(RECIPE, str(tmp_path / "run"), images=10)
    assert run_table(number, request) == 1
    assert "--images does not apply" in " ".join(capfd.readouterr().err.split())


def test_table_6_of_walked_cams_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    request = Ablation(RECIPE, str(tmp_path / "run"), ("affinity.enabled=true",))
    assert run_table(6, request) == 1
    assert "--set affinity.enabled=false" in " ".join(capfd.readouterr().err.split())


def test_without_truth_a_table_is_refused_before_anything_is_trained(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = ("data.images=4", "data.size=48", "data.held_out_split=nowhere")
    request = Ablation(RECIPE, str(tmp_path / "run"), settings)

    assert run_table(5, request) == 1
    said = " ".join(capfd.readouterr().err.split())
    assert "table 5 compares on images of split 'nowhere' with ground-truth masks" in said
    assert not list((tmp_path / "run").glob("train_classifier-*"))


def test_masks_of_a_walk_have_no_exponent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    seen = rehearse(monkeypatch, weights)
    hashes = set()
    for alpha in (3, 20):
        settings = (f"masks.alpha={alpha}",)
        assert run_table(6, Ablation(RECIPE, str(tmp_path / f"run-{alpha}"), settings)) == 0
        hashes.add(dict(seen)[WALKED])
        seen.clear()
    assert len(hashes) == 1


@pytest.mark.parametrize("kind", ["none", "clamp"])
def test_a_gain_of_under_fitting_is_shown_where_there_is_under_fitting(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights"
    weights.mkdir()
    seen = rehearse(monkeypatch, weights)
    settings = (f"segmenter.underfitting.kind={kind}", "evaluate.ladder=[]")
    assert run_table(6, Ablation(RECIPE, str(tmp_path / "run"), settings)) == 0
    trained = [name for name, _ in seen if name.startswith("train_segmenter")]
    steps = [row[0] for row in rows_of(load_run(str(tmp_path / "run")), 6)]
    papers = [row[2] for row in rows_of(load_run(str(tmp_path / "run")), 6)]
    pretended = kind != "none"
    assert ("+ PUS" in steps) is pretended
    assert steps[-1] == "+ cyclic, round 1"
    assert papers[-1] == 0.6850
    assert trained == [*(["train_segmenter-none-r0"] * pretended), *OWN]


def rows_of(run: RunData, number: int) -> list[list[Any]]:
    [summary] = [s.summary for s in run.stages if s.stage == table_stage(number) and s.summary]
    rows: list[list[Any]] = summary.details["table"]["rows"]
    return rows


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_the_tables_of_a_small_run(ray_session: ClusterResources, tmp_path: Path) -> None:
    request = Ablation(RECIPE, str(tmp_path / "run"), SMALL)
    for number in (4, 5, 6):
        assert run_table(number, request) == 0
    run = load_run(str(tmp_path / "run"))
    underfitting = rows_of(run, 4)
    assert [tuple(row[:2]) for row in underfitting] == [row[:2] for row in ROWS]
    assert all(0 <= row[4] <= 1 for row in underfitting)
    cycles = rows_of(run, 5)
    assert [row[0] for row in cycles] == ["0", "1", "2"]
    assert cycles[0][2] is None
    assert all(0 <= row[2] <= 1 for row in cycles[1:])
    gains = rows_of(run, 6)
    steps = ["CAM", "CAM, RW", "CAM, PPMG", "+ segmenter", "+ PUS", "+ cyclic, round 1"]
    assert [row[0] for row in gains] == steps
    # the same segmenters: table 6 trains nothing that 4 and 5 have trained
    assert gains[3][1] == underfitting[1][4]
    assert gains[4][1] == cycles[0][1]
    names = [entry["stage"] for entry in run.record["stages"]]
    assert sum(name.startswith("train_segmenter") for name in names) == len(ROWS) + 3
    # and the rounds that only table 5 has are not the run's
    assert run.final_round == 1
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert all(f"<h2>Table {number} <small>" in html for number in (4, 5, 6))
