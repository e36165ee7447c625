"""Notice that a node or the job is taken away: a checkpoint is saved before it is."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pmm_ray.runtime.core.progress import Progress

_LOOK_EVERY_SECONDS = 2.0
# what a job that is stopped gets: Kubernetes gives 60 s, Slurm what the script asks for (300 s),
# `ray job stop` what jobs/submit.py asks for
_SAVE_SECONDS = 45.0


class Drains:
    """Nodes that are about to be taken away, each told once.

    Args:
        local: nobody takes a machine away from a Ray of its own.
    """

    def __init__(self, local: bool) -> None:
        self._local = local
        self._known: set[str] = set()
        self._looked = 0.0

    def new(self) -> list[str]:
        """Ray's ids of the nodes that a cloud or `ray drain-node` spoke of since the last look."""
        now = time.monotonic()
        if self._local or now - self._looked < _LOOK_EVERY_SECONDS:
            return []
        self._looked = now
        import ray

        draining = set(ray._private.state.state.get_draining_nodes())
        found, self._known = sorted(draining - self._known), draining
        return found


def save_at_once(reporter: Any, number: int, steps: int, progress: Progress) -> None:
    """Have the workers save a checkpoint, and wait until it is written.

    Args:
        reporter: handle of the training's `Reporter`.
        number: of this request, see `Reporter.ask_to_save`.
        steps: of the whole training.
    """
    import ray

    with contextlib.suppress(ray.exceptions.RayError, KeyboardInterrupt):
        state = ray.get(reporter.state.remote(), timeout=5)
        before = state.step
        if not state.workers or not 0 < before < steps:
            return
        progress.message(
            f"pmm: the training saves a checkpoint, for up to {_SAVE_SECONDS:.0f} s; "
            "interrupt again to end at once"
        )
        reporter.ask_to_save.remote(number)
        deadline = time.monotonic() + _SAVE_SECONDS
        while time.monotonic() < deadline:
            step = ray.get(reporter.saved_step.remote(), timeout=5)
            if step >= before:
                progress.message(f"pmm: the training is saved at step {step}")
                return
            time.sleep(0.1)
