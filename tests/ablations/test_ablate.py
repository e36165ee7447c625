"""What `pmm ablate` accepts, refuses, and leaves in a run folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pmm_ray.ablations import TABLES, Ablation, run_table
from pmm_ray.ablations.sweep import parse_sweeps, sweep_table
from pmm_ray.cli import app
from pmm_ray.config import ConfigError, MasksConfig, RunConfig
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.session import Selection, Session
from pmm_ray.runtime.core.stage import StageFolder, Summary

RECIPE = str(Path(__file__).resolve().parents[2] / "recipes" / "shapes.yaml")


def test_sweeps_are_read_in_order() -> None:
    sweeps = ("masks.alpha=3, 5,8", "masks.smoothing=0,0.3")
    assert parse_sweeps(sweeps, MasksConfig()) == {"alpha": [3, 5, 8], "smoothing": [0, 0.3]}


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ("masks.alpha", "write it as KEY=VALUE"),
        ("masks.alpha=", "write it as KEY=VALUE"),
        ("alpha=3", r"can sweep masks\.alpha, masks\.smoothing, masks\.threshold"),
        ("masks.semantics=paper", "can sweep masks.alpha"),
        ("masks.crf.bilateral_sigma=40,80", "another lattice"),
        ("masks.alpha=3,x", "'x' does not fit"),
        ("masks.alpha=3,-1", "'-1' does not fit"),
        ("masks.threshold=1.5", "does not fit"),
        ("masks.alpha=3,3.0", "occurs twice"),
        ("masks.alpha=" + ",".join(str(i + 1) for i in range(1001)), "more than 1000"),
    ],
)
def test_sweeps_that_cannot_be_run_are_explained(sweep: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_sweeps((sweep,), MasksConfig())


def test_a_key_is_swept_once() -> None:
    with pytest.raises(ConfigError, match="given twice"):
        parse_sweeps(("masks.alpha=3", "masks.alpha=5"), MasksConfig())


def test_the_command_wants_a_table_or_a_sweep() -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["ablate", RECIPE]).exit_code == 2
    both = ["ablate", RECIPE, "--table", "2", "--sweep", "masks.alpha=3"]
    assert runner.invoke(app, both).exit_code == 2
    assert runner.invoke(app, ["ablate", RECIPE, "--table", "7"]).exit_code == 2


def test_a_table_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(TABLES, 3, raising=False)
    with pytest.raises(CannotRunError, match="table 3 is not available"):
        run_table(3, Ablation(RECIPE))


def test_the_table_is_sorted_and_shows_what_was_chosen() -> None:
    rows = [{"alpha": a, "mean_iou": s, "pixel_accuracy": 0.5} for a, s in ((3, 0.2), (5, 0.4))]
    table = sweep_table({"fields": ["alpha"], "combinations": rows, "chosen": {"alpha": 5}})
    assert [list(column.cells) for column in table.columns][:2] == [["5", "3"], ["40.00", "20.00"]]
    assert [row.style for row in table.rows] == ["bold", None]


def test_a_sweep_joins_the_record_of_the_run_it_was_made_in(tmp_path: Path) -> None:
    def body(folder: StageFolder) -> Summary:
        return Summary(stage=folder.stage, hash=folder.hash)

    def session(*stages: str, adds: bool = False) -> Session:
        own = frozenset(stages[1:] if adds else ())
        return Session(str(tmp_path), RunConfig(), Selection(stages), Progress(), adds=own)

    with session("make_cams", "make_masks") as run:
        run.stage("make_cams", "1", body)
        run.stage("make_masks", "1", body)
        run.write_record(finished=True)
    before = json.loads((tmp_path / "run.json").read_text())
    for number in ("1", "2"):
        with session("make_cams", "sweep", adds=True) as sweep:
            sweep.stage("make_cams", "1", body)
            sweep.stage("sweep", number, body)
            sweep.write_record(finished=True)
    after = json.loads((tmp_path / "run.json").read_text())
    assert [s["folder"] for s in after["stages"]] == [
        "make_cams-1",
        "make_masks-1",
        "sweep-1",
        "sweep-2",
    ]
    assert {k: v for k, v in after.items() if k != "stages"} == {
        k: v for k, v in before.items() if k != "stages"
    }
    with session("make_cams", "sweep", adds=True) as sweep:
        sweep.stage("make_cams", "2", body)  # another classifier: the masks are of no run any more
        sweep.stage("sweep", "3", body)
        sweep.write_record(finished=True)
    changed = json.loads((tmp_path / "run.json").read_text())
    assert [s["folder"] for s in changed["stages"]] == ["make_cams-2", "sweep-3"]
