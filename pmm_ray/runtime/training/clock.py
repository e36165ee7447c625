"""How long a training may wait: each kind of waiting has a limit and a line of its own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pmm_ray.runtime.core.errors import MayPassError
from pmm_ray.runtime.core.progress import format_seconds
from pmm_ray.runtime.training.reporter import SCORING, TRAINING

if TYPE_CHECKING:
    from pmm_ray.config import RuntimeConfig
    from pmm_ray.runtime.training.job import TrainingJob
    from pmm_ray.runtime.training.reporter import State

_NODES = "waits for workers"


class Clock:
    """Runs while nothing changes; begins anew with every change of what is waited for.

    Args:
        limits: `nodes_seconds`, `prepare_seconds`, `stall_seconds`.
    """

    def __init__(self, job: TrainingJob, limits: RuntimeConfig) -> None:
        self._job = job
        self._limits = limits
        self._phase = _NODES
        self._position = (0, 0)
        self._since = time.monotonic()

    def look(self, state: State) -> str:
        """Note what the workers do; returns what is waited for, empty while they train."""
        phase, position = state.phase, (state.step, state.done)
        if state.workers < self._job.workers:
            phase, position = _NODES, (state.workers, 0)
        if (phase, position) != (self._phase, self._position):
            self._phase, self._position, self._since = phase, position, time.monotonic()
        if phase == TRAINING:
            return ""
        if phase == _NODES:
            return f"{_NODES} ({state.workers} of {self._job.workers} are there)"
        return f"{phase} ({state.done} of {state.total})" if state.total else phase

    def check(self) -> None:
        """Raise MayPassError where nothing changed for longer than this may take."""
        waited = time.monotonic() - self._since
        job, limits = self._job, self._limits
        if self._phase == _NODES:
            key, limit = "nodes_seconds", limits.nodes_seconds
            there = f"{self._position[0]} of {job.workers} workers ({job.cpus} CPUs each)"
            what = f"only {there} were there"
            advice = "`ray status` shows what is asked for; add nodes or free CPUs"
        elif self._phase in (TRAINING, SCORING):
            key, limit = "stall_seconds", limits.stall_seconds
            what = "no step was finished" if self._phase == TRAINING else "no image was scored"
            advice = "`ray stack` on a node shows where it hangs"
        else:
            key, limit = "prepare_seconds", limits.prepare_seconds
            what = f"nothing moved while a worker {self._phase}"
            advice = "check the storage and Ray's logs"
        if waited > limit:
            raise MayPassError(
                f"{job.stage}: {what} for {format_seconds(limit)}: {advice}, or raise runtime.{key}"
            )
