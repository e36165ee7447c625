"""What `pmm ablate` accepts, refuses, and leaves in a run folder."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pmm_ray.cli import app
from pmm_ray.commands.ablate import Ablation, parse_sweeps, print_sweep, run_sweep, sweep_table
from pmm_ray.config import ConfigError, MasksConfig, RunConfig
from pmm_ray.pipeline.run import Step, open_run
from pmm_ray.pipeline.tables import table_steps
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.selection import Selection
from pmm_ray.runtime.core.session import Session
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary

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


@pytest.mark.usefixtures("capfd")
def test_failed_images_are_run_again_where_that_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def open_run(*_: object, retry_errors: bool, **__: object) -> None:
        asked.append(retry_errors)
        raise CannotRunError("enough")

    monkeypatch.setattr("pmm_ray.commands.ablate.open_run", open_run)
    for again in (False, True):
        assert run_sweep(Ablation(RECIPE, retry_errors=again), ["masks.alpha=3"]) == 1
    assert asked == [False, True]


def test_the_table_is_sorted_and_shows_what_was_chosen() -> None:
    rows = [{"alpha": a, "mean_iou": s, "pixel_accuracy": 0.5} for a, s in ((3, 0.2), (5, 0.4))]
    table = sweep_table({"fields": ["alpha"], "combinations": rows, "chosen": {"alpha": 5}})
    assert [list(column.cells) for column in table.columns][:2] == [["5", "3"], ["40.00", "20.00"]]
    assert [row.style for row in table.rows] == ["bold", None]


def test_a_sweep_without_a_score_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    details = {"fields": ["alpha"], "combinations": [], "chosen": {}, "not_scored": "no truth"}
    print_sweep(Summary(stage="sweep_masks", hash="0", details=details))
    assert capsys.readouterr().out == "nothing chosen: no truth\n"


def test_a_sweep_joins_the_record_of_the_run_it_was_made_in(tmp_path: Path) -> None:
    def body(context: RunContext, folder: StageFolder) -> Summary:
        return Summary(stage=folder.stage, hash=folder.hash)

    def session(*stages: str, adds: bool = False) -> Session:
        own = stages[1:] if adds else None
        return Session(
            str(tmp_path),
            RunConfig(),
            Selection(stages),
            Progress(),
            adds=own,
            kept=["sweep_masks"],
            shared=["make_masks"],
        )

    def folders() -> list[str]:
        stages = json.loads((tmp_path / "run.json").read_text())["stages"]
        return [f"{s['stage']} {made[s['hash']]}" for s in stages]

    made: dict[str, str] = {}

    def do(attempt: Session, name: str, identity: str) -> None:
        stage = Stage(name, (identity,), body)
        made[stage.hash] = identity
        attempt.do(stage)

    with session("make_cams", "make_masks") as run:
        do(run, "make_cams", "1")
        do(run, "make_masks", "1")
        run.write_record(finished=True)
    before = json.loads((tmp_path / "run.json").read_text())
    for number in ("1", "2"):
        with session("make_cams", "sweep_masks", adds=True) as sweep:
            do(sweep, "make_cams", "1")
            do(sweep, "sweep_masks", number)
            sweep.write_record(finished=True)
    after = json.loads((tmp_path / "run.json").read_text())
    assert folders() == ["make_cams 1", "make_masks 1", "sweep_masks 1", "sweep_masks 2"]
    assert {k: v for k, v in after.items() if k != "stages"} == {
        k: v for k, v in before.items() if k != "stages"
    }
    with session("make_cams", "make_masks", "table-2", adds=True) as table:
        do(table, "make_cams", "1")
        do(table, "make_masks", "2")  # of other settings: the run's masks stay the run's
        do(table, "table-2", "1")
        table.write_record(finished=True)
    assert folders()[1:] == ["make_masks 1", "sweep_masks 1", "sweep_masks 2", "table-2 1"]
    kept = (tmp_path / "run.json").read_text()
    with (
        session("make_cams", "sweep_masks", adds=True) as sweep,
        pytest.raises(CannotRunError, match=r"make_cams of the run in .* other settings"),
    ):
        do(sweep, "make_cams", "2")  # of another classifier
    assert (tmp_path / "run.json").read_text() == kept


def test_an_ablation_leaves_the_configuration_of_its_run_alone(tmp_path: Path) -> None:
    steps = [Step("table-2", lambda run: None)]

    def resolve(config: RunConfig, adds: list[str] | None = None) -> int:
        progress = Progress(stream=io.StringIO())
        with open_run(str(tmp_path), config, steps, progress, adds=adds) as run:
            run.config = config.model_copy(update={"seed": config.seed + 1})
            assert run.config.seed == config.seed + 1
        return int(yaml.safe_load((tmp_path / "resolved.yaml").read_text())["seed"])

    assert resolve(RunConfig(seed=1), adds=["table-2"]) == 2  # there is no run yet
    assert resolve(RunConfig(seed=3)) == 4
    assert resolve(RunConfig(seed=5), adds=["table-2"]) == 4


def test_a_row_of_a_table_that_the_recipe_does_not_allow_is_a_sentence() -> None:
    config = RunConfig.model_validate(
        {"segmenter": {"batch_size": 3, "underfitting": {"kind": "none"}}}
    )
    steps = {step.name: step for step in table_steps(4, config, None)}
    training = steps["train_segmenter-pow-r0"].section
    assert training is not None
    with pytest.raises(ConfigError, match=r"a row of the table needs underfitting = .*batch_size"):
        training(config)
