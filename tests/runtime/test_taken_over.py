"""A driver that was taken over, as one that slept, commits nothing more, nor do its workers."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pmm_ray.config import RunConfig
from pmm_ray.runtime.core import lease
from pmm_ray.runtime.core.errors import BudgetExceededError, CannotRunError, ErrorRow, MayPassError
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.selection import Selection
from pmm_ray.runtime.core.session import Session
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.core.tables import write_errors
from pmm_ray.runtime.training import launch
from pmm_ray.runtime.training.checkpoint import CheckpointWriter, checkpoints, save_checkpoint

from ..training import train
from .test_train_worker import job

TAKEN = "was taken over by another run"


def take_over(run_dir: str) -> None:
    content = json.loads((Path(run_dir) / "lease.json").read_text())
    (Path(run_dir) / "lease.json").write_text(json.dumps(content | {"attempt": "other"}))


def session(run_dir: Path, **selected: Any) -> Session:
    selection = Selection(("train_classifier", "make_cams"), **selected)
    return Session(str(run_dir), RunConfig(), selection, Progress(stream=io.StringIO()))


def test_the_heartbeat_tells_that_the_folder_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.2)
    with lease.hold(str(tmp_path), "a") as lost:
        lease.require(str(tmp_path), "a")
        assert not lost.is_set()
        while not lost.is_set():
            take_over(str(tmp_path))
            lost.wait(0.05)
        with pytest.raises(CannotRunError, match=TAKEN):
            lease.require(str(tmp_path), "a")


def test_a_lease_that_is_gone_is_no_other_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a mount went away in the midst of a chunk."""
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.0)
    with pytest.raises(MayPassError, match=r"lease\.json is not there: .* no longer mounted"):
        lease.require(str(tmp_path), "a")


def test_a_session_that_was_taken_over_writes_no_summary_and_no_record(tmp_path: Path) -> None:
    def body(context: RunContext, folder: StageFolder) -> Summary:
        take_over(context.run_dir)
        (tmp_path / "run.json").write_text("the other's")
        (tmp_path / "renewed.json").write_text("the other's")
        return Summary(stage=folder.stage, hash=folder.hash)

    stage = Stage("train_classifier", ("1",), body)
    ends = pytest.raises(CannotRunError, match=TAKEN)
    with ends, session(tmp_path, fresh=True) as own:
        own.hold()
        own.do(stage)
    assert stage.folder(str(tmp_path)).summary() is None
    assert (tmp_path / "run.json").read_text() == "the other's"
    assert (tmp_path / "renewed.json").read_text() == "the other's"


def test_a_session_that_was_taken_over_clears_no_stage(tmp_path: Path) -> None:
    stage = Stage("train_classifier", ("1",), lambda context, folder: pytest.fail("it was done"))
    stage.folder(str(tmp_path)).finish(Summary(stage=stage.name, hash=stage.hash))
    with session(tmp_path, fresh=True) as own:
        own.hold()
        take_over(str(tmp_path))
        with pytest.raises(CannotRunError, match=TAKEN):
            own.do(stage)
    assert stage.folder(str(tmp_path)).summary() is not None


def test_a_training_that_was_taken_over_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = SimpleNamespace(remote=lambda *_: None)
    polls = iter(range(3))
    fit = SimpleNamespace(done=lambda seconds: next(polls) is None, error=None, values={})
    monkeypatch.setattr(launch, "_trainer", lambda *_: None)
    monkeypatch.setattr(launch, "_Fit", lambda trainer: fit)
    monkeypatch.setattr(launch, "_show", lambda *_, **__: None)
    this: Any = SimpleNamespace(stage="stage")
    with lease.hold(str(tmp_path), "a"):
        take_over(str(tmp_path))
        lost = threading.Event()
        lost.set()
        context: Any = SimpleNamespace(
            run_dir=str(tmp_path),
            attempt="a",
            lost=lost,
            config=RunConfig(),
            cluster=SimpleNamespace(local=True),
        )
        reporter: Any = SimpleNamespace(begin=nothing, ask_to_save=nothing)
        with pytest.raises(CannotRunError, match=TAKEN):
            launch._attempt(this, context, reporter, Any, Any, iter([1]))  # type: ignore[arg-type]


def test_workers_whose_driver_was_taken_over_write_no_checkpoint_and_no_network(
    shapes: Manifest, group: None, tmp_path: Path
) -> None:
    this = job(shapes, tmp_path)
    with lease.hold(str(tmp_path), this.attempt):
        take_over(str(tmp_path))
        save_checkpoint(this.checkpoints_uri, 1, {"fingerprint": "the other's"})
        with pytest.raises(CannotRunError, match=TAKEN):
            train(this)
    assert [step for step, _ in checkpoints(this.checkpoints_uri)] == [1]
    assert not Path(this.model_uri).exists()


def test_a_checkpoint_waits_while_the_folder_is_anothers(tmp_path: Path) -> None:
    said: list[str] = []

    def require() -> None:
        raise CannotRunError(TAKEN)

    told = threading.Event()
    own = CheckpointWriter(
        str(tmp_path / "train"),
        tmp_path,
        lambda event, **about: (said.append(about["reason"]), told.set()),
        require,
    )
    own.save(1, {"best": (0, 0.0), "w": torch.ones(1)})
    assert told.wait(20)
    own.close()
    assert said == [TAKEN]
    assert checkpoints(str(tmp_path / "train")) == []


def test_a_network_that_is_there_has_a_budget_for_errors_too(tmp_path: Path) -> None:
    (tmp_path / "model.pt").touch()
    for name in "abc":
        write_errors(str(tmp_path / "errors"), name, [ErrorRow(name, "stage", "decode", "cut")])
    values = {"model_uri": str(tmp_path / "model.pt"), "checkpoints_uri": str(tmp_path / "train")}
    values |= {"errors_uri": str(tmp_path / "errors"), "stage": "stage"}
    context: Any = SimpleNamespace(run_dir=str(tmp_path), attempt="a")
    with lease.hold(str(tmp_path), "a"):
        strict: Any = SimpleNamespace(**values, error_budget=2, images=10)
        with pytest.raises(BudgetExceededError, match="3 images failed"):
            launch.run_training(strict, context)
        launch.run_training(SimpleNamespace(**values, error_budget=3, images=10), context)  # type: ignore[arg-type]
