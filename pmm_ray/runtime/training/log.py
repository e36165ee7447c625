"""Loss, learning rate and throughput of a training: events and TensorBoard."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence

from pmm_ray.runtime.core.events import Board, EventLog
from pmm_ray.runtime.training.job import TrainingJob

_LOGGED_POINTS = 500
_RECENT = 20


def log_every(steps: int) -> int:
    """Steps of one point of the record."""
    return max(1, steps // _LOGGED_POINTS)


class TrainLog:
    """The record that the first worker keeps.

    Args:
        first: step that this attempt begins at; TensorBoard drops later points of earlier ones.
        recent: `recent` of the attempt before, at that step.
    """

    def __init__(self, job: TrainingJob, first: int, recent: Sequence[float] = ()) -> None:
        self._job = job
        self._every = log_every(job.steps)
        self._losses: list[float] = []
        self._since = time.monotonic()
        self.recent = list(recent)
        """The last losses, at most twenty."""
        self._watched: list[Mapping[str, float]] = []
        self._waited = 0.0
        self._events = EventLog(job.run_dir, f"{job.stage}-rank0")
        self._board = Board(job.run_dir, job.stage, first)

    def step(
        self, step: int, loss: float, rate: float, waited: float, watched: Mapping[str, float]
    ) -> None:
        """Record step number `step` (1-based); the mean of every so many steps is written.

        `waited`: seconds that the first worker has waited for images since its first step.
        `watched`: see `LossModule.watched`.
        """
        self._losses.append(loss)
        self._watched.append(watched)
        self.recent = [*self.recent[1 - _RECENT :], loss]
        if step % self._every and step != self._job.steps:
            return
        now = time.monotonic()
        seconds = max(now - self._since, 1e-9)
        values = {
            "loss": sum(self._losses) / len(self._losses),
            "learning_rate": rate,
            "images_per_second": len(self._losses) * self._job.config.batch_size / seconds,
            "loader_wait": max(waited - self._waited, 0.0) / seconds,
            **{
                name: sum(values[name] for values in self._watched) / len(self._watched)
                for name in watched
            },
        }
        self._events.write("train_step", stage=self._job.stage, step=step, **values)
        self._board.add(values, step)
        self._losses, self._watched, self._since, self._waited = [], [], now, waited

    def validation(self, step: int, epoch: int, values: dict[str, float], seconds: float) -> None:
        """Record what was measured on held-out images after a step, with the epochs done by then.

        The seconds that it took do not count into the training's throughput.
        """
        about = {"stage": self._job.stage, "step": step, "epoch": epoch, "seconds": seconds}
        self._events.write("validation", **about, **values)
        self._board.add({f"validation/{name}": value for name, value in values.items()}, step)
        self._since += seconds

    def event(self, event: str, **fields: object) -> None:
        """Record what happened to the training."""
        self._events.write(event, stage=self._job.stage, **fields)

    def recent_loss(self, default: float) -> float:
        """Mean of the last twenty finite losses: the number a summary shows."""
        finite = [loss for loss in self.recent if math.isfinite(loss)]
        return sum(finite) / len(finite) if finite else default

    def close(self) -> None:
        """Write what is still held back."""
        self._events.flush()
        self._board.close()
