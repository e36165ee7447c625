"""One writer per run folder: a lease with a heartbeat.

A new run takes over from a dead process on the same machine at once, from a holder elsewhere after
`STALE_SECONDS` without a heartbeat. The clocks of hosts differ, so the store's own clock counts:
when it says that the lease was written, beside a file written now. A file system's lock lets two
processes that start in the same instant take the folder one after the other. Object stores have no
such lock in pyarrow: there two such runs may both think that they hold the folder, until one of
them reads the lease again.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError, MayPassError
from pmm_ray.runtime.core.repeat import repeated

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 60.0
_SECOND_LOOK_SECONDS = 1.5 * HEARTBEAT_SECONDS
_LOOKS, _LOOK_SECONDS = 4, 0.5


def lease_uri(run_dir: str) -> str:
    """The lease's file."""
    return storage.join(run_dir, "lease.json")


def read_lease(run_dir: str) -> dict[str, Any] | None:
    """Who holds the run folder, or None."""
    try:
        lease: dict[str, Any] = json.loads(storage.read_bytes(lease_uri(run_dir)))
    except (FileNotFoundError, ValueError):
        return None  # or torn by a crash on a store without atomic writes: nobody holds it
    return lease


def holds(run_dir: str, attempt: str) -> bool:
    """Whether this attempt still holds the folder.

    A lease that cannot be read is looked at again: a store may show one badly while it is written.
    """
    lease = _looked_for(run_dir)
    return lease is not None and lease["attempt"] == attempt


def _looked_for(run_dir: str) -> dict[str, Any] | None:
    lease = read_lease(run_dir)
    for _ in range(_LOOKS):
        if lease is not None:
            break
        time.sleep(_LOOK_SECONDS)
        lease = read_lease(run_dir)
    return lease


def require(run_dir: str, attempt: str) -> None:
    """Refuse to commit into a folder that this attempt does not hold: who commits asks first.

    Raises:
        MayPassError: there is no lease; its cause is a FileNotFoundError.
        CannotRunError: another run has taken the folder over.
    """
    lease = _looked_for(run_dir)
    if lease is None:
        missing = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), lease_uri(run_dir))
        raise MayPassError(
            f"{lease_uri(run_dir)} is not there: the folder was deleted or is no longer mounted, "
            "or another run took it over and has ended. Look there, and run the same command again"
        ) from missing
    if lease["attempt"] != attempt:
        raise CannotRunError(f"{run_dir} was taken over by another run")


def _age(run_dir: str) -> float:
    """Seconds since the last heartbeat, by the clock of the store that keeps the folder."""
    probe = storage.join(run_dir, f".lease-{uuid.uuid4().hex[:8]}")
    storage.write_bytes(probe, b"now")
    try:
        return storage.changed(probe) - storage.changed(lease_uri(run_dir))
    finally:
        storage.delete_file(probe)


def beats(run_dir: str, lease: Mapping[str, Any], now: float) -> bool:
    """Whether a lease's holder seems alive, for those who may only read.

    Args:
        now: this machine's clock, s since the epoch. Where it calls the heartbeat old, or of the
            future, a second look decides.
    """
    if 0 <= now - float(lease["heartbeat"]) < STALE_SECONDS:
        return True
    time.sleep(_SECOND_LOOK_SECONDS)
    later = read_lease(run_dir)
    return later is not None and later["heartbeat"] != lease["heartbeat"]


def _machine() -> str:
    """What tells this machine, since its start, from others that may have the same host name."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # containers of one machine do not see one another's processes
        return f"{started}-{Path('/proc/self/ns/pid').stat().st_ino}"
    except OSError:  # no Linux
        return socket.gethostname()


def _alive(run_dir: str, lease: dict[str, Any]) -> bool:
    if lease.get("machine") == _machine():
        try:
            process = psutil.Process(int(lease["pid"]))
            # a pid is reused: the same number with another start time is another process
            running = abs(process.create_time() - float(lease["process_started"])) < 1.0
            return running and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False
    try:
        return _age(run_dir) < STALE_SECONDS
    except FileNotFoundError:  # the holder has just ended
        return False


def is_held(run_dir: str) -> bool:
    """Whether a process that is alive holds the folder."""
    lease = read_lease(run_dir)
    return lease is not None and _alive(run_dir, lease)


def _one_at_a_time(run_dir: str) -> contextlib.AbstractContextManager[Any]:
    """Between processes that see the same file system; nothing on an object store."""
    if storage.is_remote(run_dir):
        return contextlib.nullcontext()
    storage.make_folder(run_dir)
    return FileLock(Path(run_dir) / ".lease.lock")


@contextlib.contextmanager
def hold(run_dir: str, attempt: str) -> Iterator[threading.Event]:
    """Hold the run folder for the length of a `with` block.

    Yields:
        What is set when the heartbeat finds that the folder was lost.

    Raises:
        CannotRunError: another run is alive in it; the message names its host and process.
    """
    started = time.strftime("%Y-%m-%d %H:%M:%S")

    def beat() -> None:
        lease = {
            "attempt": attempt,
            "host": socket.gethostname(),
            "machine": _machine(),
            "pid": os.getpid(),
            "process_started": psutil.Process().create_time(),
            "started": started,
            "heartbeat": time.time(),
        }
        storage.write_bytes(lease_uri(run_dir), json.dumps(lease).encode())

    with _one_at_a_time(run_dir):
        holder = read_lease(run_dir)
        if holder is not None and _alive(run_dir, holder):
            raise MayPassError(
                f"{run_dir} is in use by process {holder['pid']} on {holder['host']} "
                f"(since {holder['started']}). Wait for it, stop it, or use another --run-dir."
            )
        beat()

    lost = threading.Event()

    def keep() -> bool:
        # a full disk or a store that fails must not end the heartbeat
        with contextlib.suppress(OSError, CannotRunError):
            if not holds(run_dir, attempt):
                lost.set()  # a process that slept too long was taken over
                return False
            beat()
        return True

    try:
        with repeated("lease", HEARTBEAT_SECONDS, keep):
            yield lost
    finally:
        # a store that fails right now must not hide why the run ends; the lease grows old
        with contextlib.suppress(OSError, CannotRunError):
            if holds(run_dir, attempt):
                storage.delete_file(lease_uri(run_dir))
