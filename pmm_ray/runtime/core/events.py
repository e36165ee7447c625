"""Events of a run: one JSON object per line; reports and TensorBoard are made from them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.store_faults import naming_path

FLUSH_SECONDS = 30.0
"""A reader of any storage is at most so far behind."""
# an object of a bucket is written anew with more lines until it is so large
_OBJECT_BYTES = 256 * 1024
_READERS = 16


class EventLog:
    """Appends events to `RUN/events/<writer>.jsonl`.

    On a local disk each event is one appended line. In a bucket, which cannot append, the lines are
    numbered objects; the last one is written anew `FLUSH_SECONDS` after an event that it lacks.

    Args:
        writer: unique name of this process's stream, for example `driver` or `train-r0-rank0`.
    """

    def __init__(self, run_dir: str, writer: str) -> None:
        self._folder = storage.join(run_dir, "events")
        self._writer = writer
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._lines: list[str] = []  # of the last object
        self._unwritten = 0
        self._timer: threading.Timer | None = None
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
                self._lines.append(line)
                self._unwritten += 1
                self._flush_soon()
            else:
                path = storage.join(self._folder, f"{self._writer}.jsonl")
                with naming_path(path), open(path, "ab+") as file:
                    file.write((_after(file) + line + "\n").encode())

    def _flush_soon(self) -> None:
        if self._timer is None:
            self._timer = threading.Timer(FLUSH_SECONDS, self._flush_later)
            self._timer.daemon = True
            self._timer.start()

    def _flush_later(self) -> None:
        try:
            self.flush()
        # the store may answer the next time
        except (OSError, CannotRunError):
            with self._lock:
                self._timer = None
                self._flush_soon()

    def flush(self) -> None:
        """Write what is not yet in a bucket."""
        with self._writing:
            with self._lock:
                if self._timer is not None:
                    self._timer.cancel()
                    self._timer = None
                if not self._unwritten:
                    return
                lines, count = list(self._lines), self._count
            data = ("\n".join(lines) + "\n").encode()
            storage.write_bytes(
                storage.join(self._folder, f"{self._prefix}-{count:06d}.jsonl"), data
            )
            with self._lock:
                self._unwritten = len(self._lines) - len(lines)
                if len(data) > _OBJECT_BYTES:
                    del self._lines[: len(lines)]
                    self._count += 1


def _after(file: IO[bytes]) -> str:
    """What a line begins with: a newline where an attempt left half a line (full disk, power)."""
    if not file.tell():
        return ""
    file.seek(-1, os.SEEK_END)
    return "" if file.read(1) == b"\n" else "\n"


def read_events(run_dir: str, *kinds: str) -> Iterator[dict[str, Any]]:
    """All events of a run in order of time, or those of some kinds.

    A line torn by a crash in mid-write is passed over: it was never complete.
    """
    rows = []
    uris = storage.list_files(storage.join(run_dir, "events"), ".jsonl")
    with ThreadPoolExecutor(_READERS) as readers:
        for data in readers.map(storage.read_bytes, uris):
            # not splitlines(): a text may hold U+2028
            for line in data.decode(errors="replace").split("\n"):
                try:
                    row = json.loads(line)
                except json.JSONDecodeError:
                    continue
                if not kinds or row.get("event") in kinds:
                    rows.append(row)
    yield from sorted(rows, key=lambda row: float(row["time"]))


class Board:
    """A stage's TensorBoard curves in `RUN/tensorboard/STAGE`, of any storage.

    For a bucket they are written to this machine's disk, and copied every `FLUSH_SECONDS`.

    Args:
        stage: whose curves.
        first: the step that this attempt begins at: later points of earlier ones are dropped.
    """

    def __init__(self, run_dir: str, stage: str, first: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._target = storage.join(run_dir, "tensorboard", stage)
        self._own = tempfile.TemporaryDirectory() if storage.is_remote(run_dir) else None
        folder = self._target if self._own is None else self._own.name
        seconds = int(FLUSH_SECONDS)
        self._board = SummaryWriter(folder, purge_step=first, flush_secs=seconds)
        self._copied: dict[str, int] = {}
        self._due = time.monotonic() + FLUSH_SECONDS

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Add a point to each curve."""
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + FLUSH_SECONDS
            self._board.flush()
            with contextlib.suppress(OSError, CannotRunError):  # the next time, or at the end
                self._copy()

    def close(self) -> None:
        """Write what is still held back."""
        self._board.close()
        self._copy()
        if self._own is not None:
            self._own.cleanup()

    def _copy(self) -> None:
        if self._own is None:
            return
        for path in Path(self._own.name).iterdir():
            size = path.stat().st_size
            if self._copied.get(path.name) != size:
                storage.write_bytes(storage.join(self._target, path.name), path.read_bytes())
                self._copied[path.name] = size
