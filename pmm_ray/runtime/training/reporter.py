"""Where training workers tell the driver what they do: a Ray actor without a CPU.

It is on the driver's node, so that it outlives all others, and restarts if it dies.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

from pmm_ray.runtime.core.repeat import repeated

BEAT_SECONDS = 0.5
# a busy machine may be late; a worker that is silent for longer is not there
_SILENT_SECONDS = 30.0
TRAINING = "trains"
SCORING = "scores held-out images"


class State(NamedTuple):
    """What is known of a training."""

    step: int
    """Steps done."""
    loss: float
    """Loss of the last step."""
    errors: int
    """Images that could not be used so far, over all workers."""
    workers: int
    """Workers that are there."""
    phase: str
    """What the slowest of them does."""
    done: int
    total: int
    """Units of the phase; 0: not counted."""
    trouble: str = ""
    """Why the last checkpoint could not be written; empty: it was."""


class Reporter:
    """Holds the latest position of a training."""

    def __init__(self) -> None:
        self._step = 0
        self._loss = math.nan
        self._errors = 0
        self._beats: dict[int, tuple[float, str, int, int]] = {}
        self._asked = 0
        self._saved = 0
        self._trouble = ""

    def update(self, step: int, loss: float, trouble: str = "") -> None:
        self._step, self._loss, self._trouble = step, loss, trouble

    def begin(self) -> None:
        """The workers are started, perhaps again: no step of theirs is done."""
        self._step, self._trouble = 0, ""

    def failed(self, errors: int) -> None:
        """Images that could not be used so far, over all workers."""
        self._errors = max(self._errors, errors)

    def beat(self, rank: int, phase: str, done: int, total: int) -> int:
        """A worker is there, and does this; returns the number of the last request to save."""
        self._beats[rank] = (time.monotonic(), phase, done, total)
        return self._asked

    def ask_to_save(self, number: int) -> None:
        """The next thing that the workers do is to save a checkpoint.

        Args:
            number: of the request, larger than any before: a process that restarts knows of none.
        """
        self._asked = max(self._asked, number)

    def saved(self, step: int) -> None:
        """A checkpoint of a step is written."""
        self._saved = max(self._saved, step)

    def saved_step(self) -> int:
        """The step of the newest checkpoint that is written."""
        return self._saved

    def leave(self, rank: int) -> None:
        """A worker has ended."""
        self._beats.pop(rank, None)

    def state(self) -> State:
        now = time.monotonic()
        there = [beat for beat in self._beats.values() if now - beat[0] < _SILENT_SECONDS]
        behind = [beat for beat in there if beat[1] != TRAINING]
        # those that count, before those that only wait for one of them on their node
        counting = [beat for beat in behind if beat[3]] or behind
        nothing = (0.0, TRAINING, 0, 0)
        _, phase, done, total = min(counting, key=lambda beat: beat[2], default=nothing)
        known = (self._step, self._loss, self._errors)
        return State(*known, len(there), phase, done, total, self._trouble)


def make_reporter() -> Any:
    """A `Reporter` on the driver's node, which restarts if its process dies."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options = {"num_cpus": 0, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(**options, scheduling_strategy=here)(Reporter).remote()


class Phase:
    """What a worker does at the moment; told every second by a thread of its own.

    Args:
        reporter: handle of the driver's `Reporter`.
    """

    def __init__(self, reporter: Any, rank: int) -> None:
        self._reporter = reporter
        self._rank = rank
        self._now = ("begins", 0, 0)
        self.asked = 0
        """Number of the driver's last request for a checkpoint."""

    def set(self, name: str, done: int = 0, total: int = 0) -> None:
        """Say what is done now, and how much of it."""
        self._now = (name, done, total)

    @contextmanager
    def told(self) -> Iterator[Phase]:
        """Tell it for the length of a `with` block."""
        import ray

        def tell() -> None:
            with suppress(ray.exceptions.RayError):  # it restarts
                beat = self._reporter.beat.remote(self._rank, *self._now)
                self.asked = max(self.asked, ray.get(beat, timeout=10 * BEAT_SECONDS))

        self._reporter.beat.remote(self._rank, *self._now)
        try:
            with repeated("phase", BEAT_SECONDS, tell):
                yield self
        finally:
            self._reporter.leave.remote(self._rank)
