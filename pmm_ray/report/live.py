"""Where a run is now: read from its events, on any machine that sees the run folder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pmm_ray.report.run_data import read_record
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.lease import beats, read_lease
from pmm_ray.runtime.mapping.tasks import PASSES

_WINDOW = 300.0  # s, of which a rate is the mean
# after the last event about nodes: the driver writes one every half minute
_NODES_LAST = 60.0


@dataclass
class StageNow:
    """A stage that began."""

    stage: str
    unit: str
    total: int
    done: int = 0
    errors: int = 0
    rate: float = 0.0
    """Units per second, lately."""
    busy: float | None = None
    """Share of its GPUs' (without any: its workers') time that they worked; None: not known."""
    filled: float | None = None
    """Mean share of the pixels of a full pass of its network; None: not known."""
    views: float | None = None
    """Of its network's passes, the mean; None: not known."""
    gpus: bool = False
    finished: bool = False

    @property
    def seconds_left(self) -> float | None:
        left = self.total - self.done
        return left / self.rate if self.rate > 0 and left > 0 and not self.finished else None


@dataclass
class RunNow:
    """A run, as its folder tells it."""

    name: str
    finished: bool
    held_by: str
    """Host of the driver; empty: none is alive."""
    age: float
    """Seconds since its last event."""
    stages: list[StageNow]
    errors: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Error rows by stage, kind and host."""
    faults: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Failures of machines by host and text."""
    avoided: list[str] = field(default_factory=list)
    nodes: int = 0
    core_hours: float = 0.0
    gpu_hours: float = 0.0


def look(run_dir: str, now: float | None = None) -> RunNow:
    """Read a run folder.

    Args:
        run_dir: folder or uri.
        now: seconds since the epoch; None: the clock's.

    Raises:
        CannotRunError: it is no run folder.
    """
    now = time.time() if now is None else now
    record = read_record(run_dir)
    rows = list(read_events(run_dir))
    lease = read_lease(run_dir)
    found = RunNow(
        name=record["name"],
        finished=bool(record.get("finished")),
        held_by=str(lease["host"]) if lease is not None and beats(run_dir, lease, now) else "",
        # the driver's clock may be ahead of this one
        age=max(0.0, now - float(rows[-1]["time"])) if rows else 0.0,
        stages=_stages(rows, now),
    )
    for row in rows:
        if row["event"] == "chunk":
            for name, count in row.get("kinds", {}).items():
                kind, _, host = name.partition("@")
                found.errors[row["stage"], kind, host] += count
        elif row["event"] == "machine_fault":
            found.faults[row["host"], row["text"]] += 1
        elif row["event"] == "node_avoided":
            found.avoided.append(f"{row['of_host']}: {row['why']}")
    _training_errors(run_dir, record, found)
    _hours(rows, found, now)
    return found


def _stages(rows: Sequence[Mapping[str, Any]], now: float) -> list[StageNow]:
    """Stages in the order of their last attempts."""
    stages: dict[str, StageNow] = {}
    begun: dict[str, Mapping[str, Any]] = {}
    chunks: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        name, event = str(row.get("stage", "")), row["event"]
        if event == "stage_start":
            stages.pop(name, None)
            gpus = bool(row["producer_gpus"] if row["producer_gpus"] is not None else row["gpus"])
            stages[name] = StageNow(name, "images", row["images"], row["done"], gpus=gpus)
            begun[name], chunks[name] = row, []
        elif event == "chunk" and name in stages:
            stages[name].done += row["images"]
            stages[name].errors += row["errors"]
            chunks[name].append(row)
        elif event == "node_avoided" and name in stages:
            stages[name].done -= row["withdrawn"]
            stages[name].errors -= row["withdrawn"]
        elif event == "training_start":
            stages.pop(name, None)
            stages[name] = StageNow(name, "steps", row["steps"], gpus=bool(row.get("gpus", 1)))
            begun[name] = row
        elif event == "train_step" and name in stages:
            stage, batch = stages[name], begun[name]["batch_size"]
            stage.done, stage.rate = row["step"], row["images_per_second"] / batch
            stage.busy = 1 - row["loader_wait"]
            stage.finished = stage.done >= stage.total
        elif event == "stage_end" and name in stages:
            stages[name].finished = True
    for name, found in chunks.items():
        _mapped(stages[name], begun[name], found, now)
    return list(stages.values())


def _mapped(
    stage: StageNow, start: Mapping[str, Any], chunks: Sequence[Mapping[str, Any]], now: float
) -> None:
    """Rate, busy share and batches of a stage that maps images."""
    if not chunks:
        return
    until = float(chunks[-1]["time"]) if stage.finished else now
    since = max(float(start["time"]), until - _WINDOW)
    recent = [row for row in chunks if row["time"] >= since]
    passed = max(until - since, 1e-9)
    stage.rate = sum(row["images"] for row in recent) / passed
    of_pool = "pool_seconds" if start["producer_gpus"] is None else "producer_pool_seconds"
    stage.busy = min(1.0, sum(row[of_pool] for row in recent) / (passed * start["workers"]))
    # an older run does not tell them
    seen = {name: sum(row.get(name, 0) for row in chunks) for name in PASSES}
    stage.filled = seen["pixels"] / seen["room"] if seen["room"] else None
    stage.views = seen["views"] / seen["passes"] if seen["passes"] else None


def _training_errors(run_dir: str, record: Mapping[str, Any], found: RunNow) -> None:
    """Error rows of trainings, which are in no event."""
    trained = {stage.stage: stage for stage in found.stages if stage.unit == "steps"}
    for entry in record.get("stages", []):
        if stage := trained.get(entry["stage"]):
            errors = tables.read_errors(storage.join(run_dir, entry["folder"], "errors"))
            stage.errors = len(errors)
            found.errors.update((stage.stage, row.kind, row.host) for row in errors)


def _hours(rows: Sequence[Mapping[str, Any]], found: RunNow, now: float) -> None:
    """What was there, and how long: each word counts until the next one."""
    noted = [row for row in rows if row["event"] == "nodes"]
    ends = [float(row["time"]) for row in noted[1:]] + [now]
    for row, end in zip(noted, ends, strict=True):
        hours = max(0.0, min(end - float(row["time"]), _NODES_LAST)) / 3600
        found.core_hours += hours * row["cpus"]
        found.gpu_hours += hours * row["gpus"]
        found.nodes = row["nodes"]
