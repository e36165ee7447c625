"""Workers and nodes that a training lost, and whose fault that was."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from pmm_ray.runtime.core.errors import CannotRunError, MayPassError, last_line, named
from pmm_ray.runtime.core.machine import Place, machine_fault, network_fault, out_of_memory
from pmm_ray.runtime.core.resources import Pool
from pmm_ray.runtime.core.selection import section_name

if TYPE_CHECKING:
    from pmm_ray.runtime.core.stage import RunContext
    from pmm_ray.runtime.training.job import TrainingJob

# a device may fail once by chance
_FAULTS = 2


class WorkerFailedError(Exception):
    """What failed in a worker, and where; made in it, judged by the driver.

    Attributes:
        text: of the error, one line.
        kind: `device`, `network` (any partner may be at fault), `memory` or `other`.
        place: of the worker.
    """

    def __init__(self, text: str, kind: str, place: Place) -> None:
        super().__init__(f"{place}: {text}")
        self.text = text
        self.kind = kind
        self.place = place

    def __reduce__(self) -> tuple[type[WorkerFailedError], tuple[str, str, Place]]:
        return type(self), (self.text, self.kind, self.place)

    @classmethod
    def of(cls, error: Exception) -> WorkerFailedError:
        # in this order: a lost link looks like a fault of the machine, too
        tells = {"memory": out_of_memory, "network": network_fault, "device": machine_fault}
        kind = next((kind for kind, tell in tells.items() if tell(error)), "other")
        return cls(named(error), kind, Place.here())


class Losses:
    """The judge of one training's losses."""

    def __init__(self, job: TrainingJob, context: RunContext) -> None:
        self._job = job
        self._context = context
        self._count = 0
        self._faults: Counter[str] = Counter()

    def begin(self, job: TrainingJob) -> None:
        """Note the job of the next attempt.

        Raises:
            CannotRunError: the nodes can never hold its workers.
        """
        self._job, cluster = job, self._context.cluster
        cluster.require(
            f"{job.stage} with {job.workers} workers",
            cpus=job.cpus,
            gpus=int(cluster.gpus >= 1),
            workers=job.workers,
        )

    def add(self, error: BaseException) -> None:
        """Note a training that ended; returns where it may begin again.

        Raises:
            CannotRunError: it failed too often, or in a way that it would fail in again.
        """
        job, said = self._job, _failures(error)
        for failure in said:
            if failure.kind == "memory":
                raise CannotRunError(
                    f"{job.stage}: {failure.place} has not enough memory on its GPU for "
                    f"{job.config.batch_size // job.workers // job.passes} images in a "
                    f"pass: raise {section_name(job.stage)}.accumulate, or lower its crop size "
                    f"({failure.text})"
                )
        self._count += 1
        for failure in said:
            if failure.kind == "device":
                self._device(failure)
        reason = _reason(error, said)
        if self._count > job.config.max_failures:
            raise MayPassError(f"{job.stage}: the training failed: {reason}") from error
        self._context.events.write("training_lost_workers", stage=job.stage, reason=reason)
        self._context.progress.message(
            f"{job.stage}: {reason}. It begins again at the last checkpoint "
            f"({self._count} of {job.config.max_failures} times)"
        )

    def _device(self, failure: WorkerFailedError) -> None:
        """Note a failed device; a node's second one lets us avoid it, if others can do the work."""
        job, cluster, node = self._job, self._context.cluster, failure.place.node
        self._faults[node] += 1
        self._context.events.write(
            "machine_fault", stage=job.stage, text=failure.text, **failure.place.__dict__
        )
        if self._faults[node] < _FAULTS or node in cluster.avoided:
            return
        worker = Pool(1, cpus=job.cpus, gpus=int(cluster.gpus >= 1))
        room = cluster.elsewhere(worker, node)
        if room < (1 if job.config.elastic else job.workers):
            raise MayPassError(
                f"{job.stage}: the machine {failure.place} is at fault: {failure.text}. The other "
                f"nodes have room for {room} of {job.workers} workers. Fix it or add a node, then "
                "run the same command again; the last checkpoint stays"
            )
        cluster.avoid(node, f"{failure.place}: {failure.text}")
        self._context.progress.message(f"{job.stage}: {failure.place} is avoided: {failure.text}")


def _failures(error: BaseException) -> list[WorkerFailedError]:
    """What the workers themselves said, each once."""
    found = []
    for failure in getattr(error, "worker_failures", {}).values():
        # Ray wraps what a worker raised
        inner: Any = getattr(failure, "_base_exc", failure)
        inner = getattr(inner, "cause", None) or inner
        if isinstance(inner, WorkerFailedError):
            found.append(inner)
    return found


def _reason(error: BaseException, said: list[WorkerFailedError]) -> str:
    """One line: a device's fault before a partner's, who only saw the other leave."""
    order = ("device", "memory", "other", "network")
    if said:
        return str(min(said, key=lambda failure: order.index(failure.kind)))
    return last_line(error)
