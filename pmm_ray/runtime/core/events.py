"""Events of a run: one JSON object per line; reports and TensorBoard are made from them."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pmm_ray.runtime.core import storage


class EventLog:
    """Appends events to `RUN/events/<writer>.jsonl`.

    On a local disk each event is one appended line. In a bucket, which cannot append, lines are
    collected and written as numbered objects whenever `flush` is called.

    Args:
        run_dir: uri of the run folder.
        writer: unique name of this process's stream, for example `driver` or `train-r0-rank0`.
    """

    def __init__(self, run_dir: str, writer: str) -> None:
        self._folder = storage.join(run_dir, "events")
        self._writer = writer
        self._lock = threading.Lock()
        self._pending: list[str] = []
        self._remote = storage.is_remote(run_dir)
        self._prefix = f"{writer}-{int(time.time() * 1000):x}"
        self._count = 0
        if not self._remote:
            storage.make_folder(self._folder)

    def write(self, event: str, **fields: Any) -> None:
        """Record one event; time, host and process are added."""
        line = json.dumps(
            {
                "time": round(time.time(), 3),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "event": event,
                **fields,
            },
            ensure_ascii=False,
            default=str,
        )
        with self._lock:
            if self._remote:
                self._pending.append(line)
            else:
                path = storage.join(self._folder, f"{self._writer}.jsonl")
                with storage.naming(path), open(path, "a") as file:
                    file.write(line + "\n")

    def flush(self) -> None:
        with self._lock:
            if not self._pending:
                return
            data = ("\n".join(self._pending) + "\n").encode()
            name = f"{self._prefix}-{self._count:06d}.jsonl"
            storage.write_bytes(storage.join(self._folder, name), data)
            self._count += 1
            self._pending.clear()


def read_events(run_dir: str, event: str | None = None) -> Iterator[dict[str, Any]]:
    """All events of a run in order of time, optionally of one kind.

    A line torn by a crash in mid-write is passed over: it was never complete.
    """
    rows = []
    for uri in storage.list_files(storage.join(run_dir, "events"), ".jsonl"):
        for line in storage.read_bytes(uri).decode(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if event is None or row.get("event") == event:
                rows.append(row)
    yield from sorted(rows, key=lambda row: float(row["time"]))


def tensorboard_folder(run_dir: str, stage: str) -> Path | None:
    """Where a stage's TensorBoard files go; None where the run folder is not a local path."""
    if storage.is_remote(run_dir):
        return None
    return Path(run_dir) / "tensorboard" / stage
