"""One writer per run folder: a lease with a heartbeat.

A dead process on the same host is taken over at once; a holder elsewhere after `STALE_SECONDS`
without a heartbeat. On object stores, which cannot create a file exclusively through pyarrow, this
is best effort: two runs started within the same instant may both think they hold it until the
next heartbeat.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import psutil

from pmm_ray.runtime import storage
from pmm_ray.runtime.errors import CannotRunError

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0


def _uri(run_dir: str) -> str:
    return storage.join(run_dir, "lease.json")


def read_lease(run_dir: str) -> dict[str, Any] | None:
    """Who holds the run folder, or None."""
    try:
        lease: dict[str, Any] = json.loads(storage.read_bytes(_uri(run_dir)))
    except FileNotFoundError:
        return None
    except ValueError:
        return None  # torn by a crash on a store without atomic writes: nobody holds it
    return lease


def holds(run_dir: str, attempt: str) -> bool:
    """Whether this attempt still holds the folder; part writers ask before they commit."""
    lease = read_lease(run_dir)
    return lease is not None and lease["attempt"] == attempt


def _alive(lease: dict[str, Any]) -> bool:
    if lease["host"] == socket.gethostname():
        try:
            process = psutil.Process(int(lease["pid"]))
            # a pid is reused: the same number with another start time is another process
            running = abs(process.create_time() - float(lease["process_started"])) < 1.0
            return running and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
    return time.time() - float(lease["heartbeat"]) < STALE_SECONDS


@contextlib.contextmanager
def hold(run_dir: str, attempt: str) -> Iterator[None]:
    """Hold the run folder for the length of a `with` block.

    Raises:
        CannotRunError: another run is alive in it; the message names its host and process.
    """
    holder = read_lease(run_dir)
    if holder is not None and _alive(holder):
        raise CannotRunError(
            f"{run_dir} is in use by process {holder['pid']} on {holder['host']} "
            f"(since {holder['started']}). Wait for it, stop it, or use another --run-dir."
        )
    started = time.strftime("%Y-%m-%d %H:%M:%S")

    def beat() -> None:
        lease = {
            "attempt": attempt,
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "started": started,
            "heartbeat": time.time(),
        }
        storage.write_bytes(_uri(run_dir), json.dumps(lease).encode())

    beat()
    if not holds(run_dir, attempt):
        raise CannotRunError(f"{run_dir} was taken by another run in the same moment")
    stop = threading.Event()

    def keep() -> None:
        while not stop.wait(HEARTBEAT_SECONDS):
            with contextlib.suppress(OSError):  # a full disk must not end the heartbeat
                beat()

    thread = threading.Thread(target=keep, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        if holds(run_dir, attempt):
            storage.delete_file(_uri(run_dir))
