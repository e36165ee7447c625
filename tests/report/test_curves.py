"""Which steps of which trainings a curve of the report is made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pmm_ray.report.run_data import load_run
from pmm_ray.runtime.core.events import EventLog

from .run_folder import RunFolder

NAME = "train_classifier"


def attempt(run: RunFolder, of: str | None, steps: Sequence[int], loss: float) -> None:
    """One attempt at a training: of a hash, or of an older version, which does not tell it."""
    log = EventLog(run.uri, "one")  # of two writers, events of the same millisecond have no order
    log.write("training_start", stage=NAME, **({"hash": of} if of else {}))
    for step in steps:
        log.write("train_step", stage=NAME, step=step, loss=loss, learning_rate=0.1)


def points(run: RunFolder) -> list[tuple[int, float]]:
    (curve,) = load_run(run.uri).curves
    assert curve.stage == NAME
    return list(zip(curve.steps, curve.losses, strict=True))


def test_a_training_that_resumed_counts_each_step_once(make_run: Callable[..., RunFolder]) -> None:
    run = make_run()
    known = run.stage(NAME).hash
    attempt(run, known, [2, 4, 6, 8], 5.0)
    attempt(run, known, [6], 4.0)  # at a checkpoint of step 5
    attempt(run, known, [4, 6], 1.0)
    assert points(run) == [(2, 5.0), (4, 1.0), (6, 1.0)]


def test_the_curve_is_of_the_training_that_the_record_names(
    make_run: Callable[..., RunFolder],
) -> None:
    run = make_run()
    attempt(run, "01d01d01", range(4, 2001, 4), 9.0)
    known = run.stage(NAME).hash
    attempt(run, known, range(1, 4), 2.0)
    attempt(run, "0ther000", range(1, 9), 7.0)
    attempt(run, known, [3, 4], 1.0)
    assert points(run) == [(1, 2.0), (2, 2.0), (3, 1.0), (4, 1.0)]
    # --fresh: the same settings again
    attempt(run, known, [1], 3.0)
    assert points(run) == [(1, 3.0)]


def test_a_curve_needs_no_hash_and_a_stage_of_the_record(
    make_run: Callable[..., RunFolder],
) -> None:
    run = make_run()
    attempt(run, None, range(4, 2001, 4), 9.0)
    assert load_run(run.uri).curves == ()
    run.stage(NAME)
    attempt(run, None, [1, 2], 1.0)
    assert points(run) == [(1, 1.0), (2, 1.0)]
