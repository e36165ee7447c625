"""One attempt at a run: which stages are selected, which are done, and the bookkeeping of both."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

from pmm_ray.config import RunConfig
from pmm_ray.runtime.cluster import connect as cluster
from pmm_ray.runtime.core import lease, storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.events import EventLog
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.stage import RunContext, StageFolder, Summary


class EndOfSelection(Exception):  # noqa: N818 - not an error
    """The last selected stage is done."""


@dataclass(frozen=True)
class Selection:
    """Which stages of the plan may run: from `first` to `last`, or those called `only`."""

    plan: tuple[str, ...]
    first: str | None = None
    last: str | None = None
    only: str | None = None
    fresh: bool = False
    retry_errors: bool = False

    def __post_init__(self) -> None:
        for name in (self.first, self.last, self.only):
            if name is not None and not self._matches(name):
                raise CannotRunError(
                    f"no stage is called {name!r}; this recipe has {', '.join(self.plan)}"
                )
        if not self.positions:
            raise CannotRunError(
                f"--from {self.first} comes after --until {self.last}: no stage lies between them"
            )

    def _matches(self, name: str) -> list[int]:
        return [i for i, stage in enumerate(self.plan) if name in (stage, base_name(stage))]

    @cached_property
    def positions(self) -> frozenset[int]:
        """Positions in the plan that may run. What is measured of masks goes with them."""
        if self.only:
            chosen = set(self._matches(self.only))
        else:
            start = self._matches(self.first)[0] if self.first else 0
            stop = self._matches(self.last)[-1] if self.last else len(self.plan) - 1
            chosen = set(range(start, stop + 1))
        for position, stage in enumerate(self.plan):
            if base_name(stage) in ("evaluate", "compare_masks") and position - 1 in chosen:
                chosen.add(position)
        return frozenset(chosen)


def base_name(stage: str) -> str:
    """`predict_masks-r1-val` -> `predict_masks`."""
    return stage.split("-", 1)[0]


@dataclass
class Session:
    """Runs stages once each, in order; connects to Ray when the first one has work to do."""

    run_dir: str
    config: RunConfig
    selection: Selection
    progress: Progress
    address: str = "auto"
    adds: frozenset[str] = frozenset()
    """Stages of an ablation: they join the record of the run that it is made in."""
    attempt: str = field(default_factory=lambda: uuid.uuid4().hex)
    manifest_uri: str | None = None

    def __post_init__(self) -> None:
        self.events = EventLog(self.run_dir, "driver")
        self.progress.heartbeat_seconds = self.config.runtime.heartbeat_seconds
        self._exit = contextlib.ExitStack()
        self._cluster: cluster.ClusterResources | None = None
        self._manifest: Manifest | None = None
        self._started = time.time()
        self._stages: list[dict[str, str]] = []
        self._seconds = 0.0  # of all stages, whichever attempt finished them
        self.work_done = False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *error: object) -> None:
        self._exit.close()
        self.events.flush()

    def hold(self) -> None:
        """Become the one writer of the run folder until the session ends.

        Raises:
            CannotRunError: another run is alive in it.
        """
        storage.make_folder(self.run_dir)
        self._exit.enter_context(lease.hold(self.run_dir, self.attempt))

    @property
    def cluster(self) -> cluster.ClusterResources:
        """The Ray cluster, connected to at first use."""
        if self._cluster is None:
            where = cluster.connect(self.address, self.config.runtime, self.run_dir)
            self._cluster = self._exit.enter_context(where)
            self.events.write("cluster", **self._cluster.__dict__)
            self._look_at_nodes()
        return self._cluster

    def _look_at_nodes(self) -> None:
        """Refuse a cluster of several nodes of which one cannot do its part."""
        assert self._cluster is not None
        several = not self._cluster.local and self._cluster.nodes > 1
        if not several or not self.config.runtime.preflight:
            return
        from pmm_ray.runtime.cluster.preflight import inspect_cluster, training_scratch

        data, config = self.config.data, self.config
        files = [data.root, config.classifier.weights, config.segmenter.weights]
        files += [config.multicrop.weights] if config.multicrop.enabled else []
        named = {uri for uri in files if uri not in ("", "imagenet", "seam", "none")}
        trains = any(
            base_name(self.selection.plan[position]) in ("train_multicrop", "train_segmenter")
            for position in self.selection.positions
        )
        needed = training_scratch(self.manifest_uri, data.train_split) if trains else 0
        inspect_cluster(
            self.run_dir,
            self.config.runtime,
            inputs=sorted(storage.absolute(uri) for uri in named),
            scratch_bytes=needed,
        ).require_healthy()

    @property
    def manifest(self) -> Manifest:
        if self._manifest is None:
            assert self.manifest_uri is not None, "import_data comes first"
            self._manifest = open_manifest(self.manifest_uri)
        return self._manifest

    def context(self) -> RunContext:
        return RunContext(
            run_dir=self.run_dir,
            config=self.config,
            manifest=self.manifest,
            cluster=self.cluster,
            events=self.events,
            progress=self.progress,
            attempt=self.attempt,
        )

    def stage(
        self,
        name: str,
        stage_hash: str,
        body: Callable[[StageFolder], Summary],
        *,
        input_rows: int | None = None,
    ) -> StageFolder:
        """Run a stage unless it is done; returns its folder.

        Args:
            name: one of the plan's.
            stage_hash: of everything that can change its result.
            body: does the work in the folder and returns its summary, which is written last.
            input_rows: a summary made from another number of rows is not done (after
                `--retry-errors` upstream).

        Raises:
            EndOfSelection: the stage comes after the last selected one.
            CannotRunError: it comes before the first selected one and is not done.
        """
        position = self.selection.plan.index(name)
        folder = StageFolder.below(self.run_dir, name, stage_hash)
        if position > max(self.selection.positions):
            raise EndOfSelection
        summary = folder.summary()
        selected = position in self.selection.positions
        if selected and self.selection.fresh:
            storage.delete_folder(folder.uri)
            summary = None
        if selected and self.selection.retry_errors and summary is not None and summary.errors:
            # a table keeps its rows; a training or an import has to be done again
            again = folder.uri if input_rows is None else folder.errors_uri
            storage.delete_folder(again)
            summary = None
        if (
            summary is not None
            and input_rows is not None
            and summary.details.get("input_rows") != input_rows
        ):
            summary = None
        if summary is None and not selected:
            raise CannotRunError(f"{name} is not done in {self.run_dir}: run it first")
        self.work_done |= summary is None
        entry = {"stage": name, "hash": stage_hash, "folder": folder.uri.rsplit("/", 1)[-1]}
        if entry not in self._stages:
            self._stages.append(entry)
        self.write_record()
        if summary is None:
            storage.make_folder(folder.uri)
            started = time.monotonic()
            summary = body(folder)
            seconds = round(time.monotonic() - started, 3)
            summary = folder.finish(summary.model_copy(update={"seconds": seconds}))
        self._seconds += summary.seconds
        return folder

    def write_record(self, *, finished: bool = False) -> None:
        """Write `run.json`: what ran, where, with what."""
        uri = storage.join(self.run_dir, "run.json")
        if not self.work_done and storage.exists(uri) and not (finished and self._differs(uri)):
            return  # nothing was computed: the record of the run that did stays
        if self.adds and (earlier := self._extended_record(uri)) is not None:
            storage.write_bytes(uri, json.dumps(earlier, indent=1).encode())
            return
        now = time.time()
        record: dict[str, Any] = {
            "name": self.config.name,
            "started": _iso(self._started),
            "finished": _iso(now) if finished else None,
            "seconds": round(self._seconds, 1),
            "command": " ".join(sys.argv),
            "machine": machine(),
            "versions": versions(),
            "manifest": self.manifest_uri,
            "stages": self._stages,
        }
        if self._cluster is not None:
            record["cluster"] = dict(self._cluster.__dict__)
        storage.write_bytes(uri, json.dumps(record, indent=1).encode())

    def _differs(self, uri: str) -> bool:
        """Whether a whole run found other stages than those recorded, without computing one.

        `cycles.stop_when` alone can do that: it decides by what is done already.
        """
        whole = len(self.selection.positions) == len(self.selection.plan) and not self.adds
        record = json.loads(storage.read_bytes(uri))
        recorded = [s for s in record["stages"] if s["stage"] in self.selection.plan]
        return whole and recorded != self._stages

    def _extended_record(self, uri: str) -> dict[str, Any] | None:
        """The record in the run folder with this session's new stages.

        None where there is none, or where a stage that it names has changed: then the session's
        own record replaces it.
        """
        try:
            record: dict[str, Any] = json.loads(storage.read_bytes(uri))
        except FileNotFoundError:
            return None
        names = {stage["stage"] for stage in record["stages"]}
        new = [stage for stage in self._stages if stage not in record["stages"]]
        changed = {stage["stage"] for stage in new} & names
        if any(name not in self.adds for name in changed):
            return None
        # sweeps are kept side by side; a row of a table has one value
        replaced = {name for name in changed if base_name(name) != "sweep"}
        record["stages"] = [s for s in record["stages"] if s["stage"] not in replaced] + new
        return record


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def machine() -> dict[str, Any]:
    """What the driver runs on."""
    import psutil

    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "cpus": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "disk_free_bytes": shutil.disk_usage(".").free,
    }


def versions(packages: Sequence[str] = ("pmm-ray", "ray", "torch", "numpy")) -> dict[str, str]:
    """Installed versions of the packages that decide results."""
    return {name: version(name) for name in packages}
