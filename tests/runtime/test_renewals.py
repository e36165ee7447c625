"""`--fresh` and `--retry-errors` begin a stage anew once, however often a run is interrupted."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmm_ray.config import RunConfig
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import (
    BudgetExceededError,
    CannotRunError,
    ErrorRow,
    MayPassError,
)
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.selection import Selection
from pmm_ray.runtime.core.session import Session
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary

PLAN = ("train_classifier", "make_cams")
Attempt = Callable[..., list[str]]


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    """One attempt at both stages, each with an error row; returns those that it did."""

    def attempt(end: BaseException | None = None, **selected: Any) -> list[str]:
        ran: list[str] = []

        def body(context: RunContext, folder: StageFolder) -> Summary:
            ran.append(folder.stage)
            return Summary(stage=folder.stage, hash=folder.hash, images=3, errors=1)

        selection, progress = Selection(PLAN, **selected), Progress(stream=io.StringIO())
        ends = contextlib.nullcontext() if end is None else pytest.raises(type(end))
        with ends, Session(str(tmp_path), RunConfig(), selection, progress) as session:
            session.hold()
            session.do(Stage(PLAN[0], ("1",), body))
            if end is not None:
                raise end
            if selection.has(PLAN[1]):
                session.do(Stage(PLAN[1], ("1",), body))
        return ran

    return attempt


@pytest.mark.parametrize(
    ("end", "anew"),
    [
        (KeyboardInterrupt(), False),
        (MayPassError("a node was lost"), False),
        (OSError("the store fails"), False),
        (CannotRunError("the masks are damaged"), True),
        (BudgetExceededError("make_masks", 2, 1, []), True),
    ],
)
@pytest.mark.parametrize("how", ["retry_errors", "fresh"])
def test_the_same_command_goes_on_where_it_was_interrupted(
    attempt: Attempt, end: BaseException, anew: bool, how: str
) -> None:
    assert attempt() == [*PLAN]
    assert attempt(end, **{how: True}) == [PLAN[0]]
    assert attempt(**{how: True}) == [*PLAN[0 if anew else 1 :]]
    # it has come to its end
    assert attempt(**{how: True}) == [*PLAN]
    assert attempt() == []


def test_a_damaged_list_of_what_was_begun_anew_is_none(attempt: Attempt, tmp_path: Path) -> None:
    attempt(KeyboardInterrupt(), fresh=True)
    (tmp_path / "renewed.json").write_text("")
    assert attempt(fresh=True) == [*PLAN]


def test_another_selection_does_not_go_on_with_what_was_begun_anew(attempt: Attempt) -> None:
    attempt(KeyboardInterrupt(), fresh=True)
    assert attempt(fresh=True, last=PLAN[0]) == [PLAN[0]]


def test_an_attempt_that_may_not_begin_leaves_the_others_list(
    attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt(KeyboardInterrupt(), fresh=True)
    with monkeypatch.context() as patch:
        patch.setattr("pmm_ray.runtime.core.lease.hold", _refuses)
        with pytest.raises(CannotRunError, match="alive"):
            attempt(fresh=True)
    assert attempt(fresh=True) == [PLAN[1]]


def _refuses(run_dir: str, attempt: str) -> None:
    raise CannotRunError("another run is alive in it")


@pytest.mark.parametrize("errors", [True, False])
def test_an_unfinished_training_that_learnt_from_substitutes_is_begun_anew_once(
    tmp_path: Path, errors: bool
) -> None:
    stage = Stage("train_classifier", ("1",), lambda context, folder: pytest.fail("it ran"))
    folder = stage.folder(str(tmp_path))
    checkpoint = Path(folder.path("train", "step-000000005.pt"))

    def interrupted(**selected: Any) -> None:
        selection, progress = Selection(PLAN, **selected), Progress(stream=io.StringIO())
        ends = pytest.raises(KeyboardInterrupt)
        with ends, Session(str(tmp_path), RunConfig(), selection, progress) as session:
            session.hold()
            assert session._reuse(folder, stage, True) is None
            raise KeyboardInterrupt

    def leaves() -> None:
        storage.write_bytes(str(checkpoint), b"state")
        if errors:
            tables.write_errors(folder.errors_uri, "a", [ErrorRow("a", "s", "decode", "cut")])

    leaves()
    interrupted(retry_errors=True)
    assert checkpoint.exists() != errors
    assert not tables.read_errors(folder.errors_uri)
    # what this attempt learns is without the images that failed before
    leaves()
    interrupted(retry_errors=True)
    assert checkpoint.exists()
    assert bool(tables.read_errors(folder.errors_uri)) == errors


@pytest.mark.parametrize("text", ["", '{"stage": "make_ca', "[]"])
def test_a_damaged_summary_is_named_and_made_anew_by_fresh(
    attempt: Attempt, tmp_path: Path, text: str
) -> None:
    attempt()
    [summary] = tmp_path.glob("make_cams-*/summary.json")
    summary.write_text(text)
    with pytest.raises(CannotRunError, match=rf"{summary} is damaged \(.*\)\. Delete it and run"):
        attempt()
    assert attempt(fresh=True) == [*PLAN]
