"""Where a run is now: read from its events, on any machine that sees the run folder."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pyarrow as pa

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.lease import beats, read_lease
from pmm_ray.runtime.core.record import read_record
from pmm_ray.runtime.core.stage import StageFolder
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
    """Units per second, lately; 0 where nothing works on it."""
    busy: float | None = None
    """Share of its GPUs' (without any: its workers') time that they worked; None: not known, or
    nothing works on it."""
    filled: float | None = None
    """Mean share of the pixels of a full pass of its network; None: not known."""
    views: float | None = None
    """Of its network's passes, the mean; None: not known."""
    gpus: bool = False
    hash: str = ""
    """Of its folder; empty: an older run does not tell it."""
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
    """An earlier attempt was, and no driver is alive that began another."""
    held_by: str
    """Host of the driver; empty: none is alive."""
    age: float | None
    """Seconds since its last event; None: it has none yet."""
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
    lease = read_lease(run_dir)
    held_by = str(lease["host"]) if lease is not None and beats(run_dir, lease, now) else ""
    # read after the lease: a run that has ended meanwhile says so
    record = read_record(run_dir)
    rows = list(read_events(run_dir))
    last = float(rows[-1]["time"]) if rows else None
    # the driver's clock may be ahead of this one
    now = now if last is None else max(now, last)
    age = None if last is None else now - last
    found = RunNow(
        name=record["name"],
        finished=bool(record.get("finished")) and not held_by,
        held_by=held_by,
        age=age,
        stages=_stages(rows, now, works=bool(held_by) and age is not None and age < _WINDOW),
    )
    for row in rows:
        if row["event"] == "machine_fault":
            found.faults[row["host"], row["text"]] += 1
        elif row["event"] == "node_avoided":
            found.avoided.append(f"{row['of_host']}: {row['why']}")
    _errors(run_dir, record, found)
    _hours(rows, found, now)
    return found


def _stages(rows: Sequence[Mapping[str, Any]], now: float, *, works: bool) -> list[StageNow]:
    """Stages in the order of their last attempts.

    Args:
        works: whether the driver is alive; then it works on the stage that began last.
    """
    current = ""
    stages: dict[str, StageNow] = {}
    begun: dict[str, Mapping[str, Any]] = {}
    chunks: dict[str, list[Mapping[str, Any]]] = {}
    sizes: dict[str, list[tuple[float, int]]] = {}
    for row in rows:
        name, event = str(row.get("stage", "")), row["event"]
        known = str(row.get("hash", ""))
        if event in ("stage_start", "training_start", "cluster"):
            current = name  # none when a driver has just reached its cluster
        if event == "stage_start":
            stages.pop(name, None)
            two = row["producer_gpus"] is not None
            gpus = bool(row["producer_gpus"] if two else row["gpus"])
            counts = row["images"], row["done"]
            stages[name] = StageNow(name, "images", *counts, gpus=gpus, hash=known)
            begun[name], chunks[name] = row, []
            # those of the first of two pools are not in this event
            sizes[name] = [] if two else [(float(row["time"]), row["workers"])]
        elif event == "pools_resized" and name in sizes:
            sizes[name].append((float(row["time"]), row["workers"][0]))
        elif event == "chunk" and name in stages:
            stages[name].done += row["images"]
            chunks[name].append(row)
        elif event == "node_avoided" and name in stages:
            stages[name].done -= row["withdrawn"]
        elif event == "training_start":
            stages.pop(name, None)
            gpus = bool(row.get("gpus", 1))
            stages[name] = StageNow(name, "steps", row["steps"], gpus=gpus, hash=known)
            begun[name] = row
        elif event == "train_step" and name in stages:
            stage, batch = stages[name], begun[name]["batch_size"]
            stage.done, stage.rate = row["step"], row["images_per_second"] / batch
            stage.busy = 1 - row["loader_wait"]
            stage.finished = stage.done >= stage.total
        elif event == "stage_end" and name in stages:
            stages[name].finished = True
    for name, found in chunks.items():
        _mapped(stages[name], begun[name], sizes[name], found, now)
    for stage in stages.values():
        if not stage.finished and not (works and stage.stage == current):
            stage.rate, stage.busy = 0.0, None
    return list(stages.values())


def _mapped(
    stage: StageNow,
    start: Mapping[str, Any],
    sizes: Sequence[tuple[float, int]],
    chunks: Sequence[Mapping[str, Any]],
    now: float,
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
    ends = [at for at, _ in sizes[1:]] + [until]
    offered = sum(
        max(0.0, min(end, until) - max(at, since)) * size
        for (at, size), end in zip(sizes, ends, strict=False)
    )
    if offered:
        stage.busy = min(1.0, sum(row[of_pool] for row in recent) / offered)
    # an older run does not tell them
    seen = {name: sum(row.get(name, 0) for row in chunks) for name in PASSES}
    stage.filled = seen["pixels"] / seen["room"] if seen["room"] else None
    stage.views = seen["views"] / seen["passes"] if seen["passes"] else None


def _errors(run_dir: str, record: Mapping[str, Any], found: RunNow) -> None:
    """Error rows as they stand: some are withdrawn, and some images run again."""
    hashes = {entry["stage"]: entry["hash"] for entry in record.get("stages", [])}
    with ThreadPoolExecutor(tables.READERS) as readers:
        for stage in found.stages:
            folder_hash = stage.hash or hashes.get(stage.stage)
            if folder_hash is None:
                continue
            folder = StageFolder.below(run_dir, stage.stage, folder_hash)
            parts = storage.list_versions(folder.errors_uri, ".parquet")
            for counts in readers.map(_rows_of, parts, parts.values()):
                stage.errors += counts.total()
                for (kind, host), count in counts.items():
                    found.errors[stage.stage, kind, host] += count


@cache
def _rows_of(uri: str, version: tuple[int, int]) -> Counter[tuple[str, str]]:
    """A part's error rows by kind and host; each is read once, however often one looks."""
    try:
        rows = tables.read_table(uri).to_pylist()
    except (pa.ArrowException, OSError) as error:
        if not isinstance(error, FileNotFoundError) and not tables.is_damage(error):
            raise
        return Counter()  # withdrawn just now, or damaged: its images run again
    return Counter((row["kind"], row.get("host", "")) for row in rows)


def _hours(rows: Sequence[Mapping[str, Any]], found: RunNow, now: float) -> None:
    """What was there, and how long: each word counts until the next one."""
    noted = [row for row in rows if row["event"] == "nodes"]
    ends = [float(row["time"]) for row in noted[1:]] + [now]
    for row, end in zip(noted, ends, strict=False):  # no word before Ray is connected
        hours = max(0.0, min(end - float(row["time"]), _NODES_LAST)) / 3600
        found.core_hours += hours * row["cpus"]
        found.gpu_hours += hours * row["gpus"]
        found.nodes = row["nodes"]
