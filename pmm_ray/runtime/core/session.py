"""One attempt at a run: it does each stage that is not done yet, and keeps the record of it."""

from __future__ import annotations

import contextlib
import threading
import time
import uuid
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager

from pmm_ray.config import RunConfig
from pmm_ray.runtime.core import lease, storage, tables
from pmm_ray.runtime.core.errors import BudgetExceededError, CannotRunError, MayPassError
from pmm_ray.runtime.core.events import EventLog
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.record import RunRecord
from pmm_ray.runtime.core.renewals import Renewals
from pmm_ray.runtime.core.repeat import repeated
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.core.selection import Selection
from pmm_ray.runtime.core.stage import Stage, StageFolder, Summary

Connect = Callable[[], AbstractContextManager[ClusterResources]]


class Session:
    """Does stages once each; connects to Ray when the first one asks for the cluster.

    Args:
        config: the recipe; stages that decide something replace it.
        selection: which stages may run.
        connect: to Ray, until the session ends.
        adds: stages of an ablation, see `RunRecord`.
        kept, shared: see `RunRecord`.
    """

    def __init__(
        self,
        run_dir: str,
        config: RunConfig,
        selection: Selection,
        progress: Progress,
        connect: Connect | None = None,
        adds: Collection[str] | None = None,
        kept: Collection[str] = (),
        shared: Collection[str] = (),
    ) -> None:
        self._record = RunRecord(run_dir, config.name, adds, kept, shared)
        self.run_dir = run_dir
        self.config = config
        self.selection = selection
        self.progress = progress
        self.attempt = uuid.uuid4().hex
        self.events = EventLog(run_dir, "driver")
        self.work_done = False
        self.data: Manifest | None = None
        self.lost = threading.Event()
        self.goes_on = False
        """Whether an interrupted attempt with the same selection began stages anew."""
        progress.heartbeat_seconds = config.runtime.heartbeat_seconds
        self._connect = connect
        self._exit = contextlib.ExitStack()
        self._cluster: ClusterResources | None = None
        self._held = False
        self._renewals = Renewals(run_dir, selection)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        # a store that fails right now must not hide why the run ends
        hides = (OSError, CannotRunError) if kind else ()
        try:
            with contextlib.suppress(*hides):
                if self._held and _has_ended(kind) and lease.holds(self.run_dir, self.attempt):
                    self._renewals.end()
        finally:
            self._exit.close()
        with contextlib.suppress(*hides):
            self.events.flush()

    def hold(self) -> None:
        """Become the one writer of the run folder until the session ends.

        Raises:
            CannotRunError: another run is alive in it.
        """
        storage.make_folder(self.run_dir)
        self.lost = self._exit.enter_context(lease.hold(self.run_dir, self.attempt))
        self._held = True
        self.goes_on = self._renewals.load()
        if self.goes_on:
            self.progress.message(
                "pmm: goes on with what an interrupted attempt with the same options began anew"
            )

    @property
    def cluster(self) -> ClusterResources:
        """The Ray cluster, connected to at first use."""
        if self._cluster is None:
            assert self._connect is not None, "this session's stages need no Ray"
            self._cluster = self._exit.enter_context(self._connect())
            self.events.write("cluster", **self._cluster.facts())
            self._exit.enter_context(_nodes_noted(self.events))
        return self._cluster

    @property
    def manifest(self) -> Manifest:
        assert self.data is not None, "import_data comes first"
        return self.data

    def do(self, stage: Stage) -> StageFolder:
        """Do a stage unless it is done; returns its folder.

        Raises:
            CannotRunError: it is not done, and not among the selected ones; or another run has
                taken the folder over.
        """
        self._require_folder()
        selection, folder = self.selection, stage.folder(self.run_dir)
        selected = selection.has(stage.name)
        summary = self._reuse(folder, stage, selected)
        if summary is None and not selected:
            raise CannotRunError(f"{stage.name} is not done in {self.run_dir}: run it first")
        self.work_done |= summary is None
        self._record.begin(folder)
        self.write_record()
        if summary is None:
            storage.make_folder(folder.uri)
            self._look_again()
            started = time.monotonic()
            summary = stage.run(self, folder)
            seconds = round(time.monotonic() - started, 3)
            self._require_folder()
            summary = folder.finish(summary.model_copy(update={"seconds": seconds}))
        self._record.done(summary.seconds)
        return folder

    def _look_again(self) -> None:
        """Read the cluster anew for a stage: nodes may have come or gone since the last one."""
        if self._cluster is None:
            return
        before, self._cluster = self._cluster, self._cluster.now()
        if self._cluster.facts() != before.facts():
            self.events.write("cluster", **self._cluster.facts())

    def _reuse(self, folder: StageFolder, stage: Stage, selected: bool) -> Summary | None:
        """The summary of an earlier attempt, if the stage is done; None: it is to be done.

        `--fresh` deletes the folder, `--retry-errors` the error rows, or a training's folder: once,
        however often the attempt is interrupted.
        """
        begun = folder in self._renewals
        if selected and self.selection.fresh and not begun:
            folder.clear(stage.keeps)
            self._renewals.add(folder)
            return None
        summary = folder.summary()
        failed = summary is None or (summary.errors > 0 and not begun)
        if selected and self.selection.retry_errors and failed:
            # A table loses its error rows only. A training has learnt from the substitutes of its
            # failed images: it is deleted and done again, and so is an import.
            if stage.images is not None:
                folder.reopen()
                storage.delete_folder(folder.errors_uri)
            elif not begun and (summary is not None or tables.read_errors(folder.errors_uri)):
                folder.clear(stage.keeps)
            self._renewals.add(folder)
            return None
        if summary is not None and selected and not stage.current(summary):
            self.progress.message(f"{stage.name}: what it read has changed, it is read again")
            folder.clear(stage.keeps)
            return None
        return summary if summary is not None and stage.took(summary) else None

    def _require_folder(self) -> None:
        if self._held:
            lease.require(self.run_dir, self.attempt)

    def write_record(self, *, finished: bool = False) -> None:
        """Write `run.json`: what ran, where, with what.

        Raises:
            CannotRunError: another run has taken the folder over.
        """
        self._require_folder()
        self._record.write(
            computed=self.work_done,
            finished=finished,
            plan=self.selection.plan if self.selection.whole else None,
            manifest=None if self.data is None else self.data.uri,
            cluster=None if self._cluster is None else self._cluster.facts(),
        )


def _has_ended(kind: type[BaseException] | None) -> bool:
    """Whether an attempt that ended so was not interrupted, by the user or by what may pass."""
    if kind is None:
        return True
    refused = issubclass(kind, CannotRunError | BudgetExceededError)
    return refused and not issubclass(kind, MayPassError)


_NOTE_NODES_SECONDS = 30.0


def _nodes_noted(events: EventLog) -> AbstractContextManager[None]:
    """Write how many CPUs and GPUs are there, every half minute: what is paid for."""
    import ray

    def note() -> bool:
        if not ray.is_initialized():
            return False
        # a cluster that is gone ends the run by other means
        with contextlib.suppress(Exception):
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            cpus, gpus = (sum(node.get(name, 0) for node in alive) for name in ("CPU", "GPU"))
            events.write("nodes", nodes=len(alive), cpus=cpus, gpus=gpus)
        return True

    note()
    return repeated("nodes", _NOTE_NODES_SECONDS, note, patience=5)
