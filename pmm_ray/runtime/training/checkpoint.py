"""Intermediate checkpoints: single files, visible whole or not at all, the last two kept.

With `choose: best` the network with the best score so far is beside them. They are written beside
the training, which only copies its state; a store that fails for a while costs it nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError

_KEPT = 2
# after a failure of the store, which itself tries for about a minute
_AGAIN_SECONDS = 5.0
# copies on a node's disk that nothing was written to for so long
_OLD_SECONDS = 7 * 24 * 3600.0
_NAME = re.compile(r"step-(\d{9})\.pt")


def save_checkpoint(folder: str, step: int, content: dict[str, Any]) -> None:
    """Write the state after `step` steps, then delete all but the last two."""
    _save(storage.join(folder, f"step-{step:09d}.pt"), content)
    for _, uri in checkpoints(folder)[:-_KEPT]:
        storage.delete_file(uri)


def save_best(folder: str, step: int, network: dict[str, torch.Tensor]) -> None:
    """Write the network that scored best after `step` steps, beside those that did before."""
    _save(storage.join(folder, _best(step)), network)


def _save(uri: str, content: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    storage.write_bytes(uri, buffer.getvalue())


def load_best(folder: str, step: int) -> dict[str, Any]:
    """The network that `save_best` wrote at a step."""
    return load_checkpoint(storage.join(folder, _best(step)))


def forget_before(folder: str, step: int) -> None:
    """Delete the best networks of earlier steps, once a checkpoint names this one.

    One of a later step stays: a checkpoint that waits may name it.
    """
    for uri in storage.list_files(folder, ".pt"):
        name = uri.rsplit("/", 1)[-1]
        if name.startswith("best-") and name < _best(step):
            storage.delete_file(uri)


def checkpoints(folder: str) -> list[tuple[int, str]]:
    """(step, uri) of the checkpoints in a folder, the oldest first."""
    found = []
    for uri in storage.list_files(folder, ".pt"):
        match = _NAME.fullmatch(uri.rsplit("/", 1)[-1])
        if match:
            found.append((int(match[1]), uri))
    return sorted(found)


def load_checkpoint(uri: str) -> dict[str, Any]:
    """The content of a checkpoint on the CPU; nothing in it is executed."""
    data = io.BytesIO(storage.read_bytes(uri))
    content: dict[str, Any] = torch.load(data, map_location="cpu", weights_only=True)
    return content


def _best(step: int) -> str:
    return f"best-{step:09d}.pt"


def on_cpu(value: Any) -> Any:
    """A copy on the CPU of a state: of all its tensors, in dicts, lists and tuples.

    From a GPU it is on its way, into pinned memory: `arrival` says when it is there.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True, non_blocking=True)
    if isinstance(value, dict):
        return {key: on_cpu(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(on_cpu(inner) for inner in value)
    return value


def arrival() -> Callable[[], None]:
    """What waits until the copies that have begun on this thread's GPU are there."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return lambda: None
    arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    arrived.record()
    return arrived.synchronize


def local_copies(scratch: Path, folder: str) -> str:
    """Where a node keeps the newest checkpoint of a folder in a bucket until it is uploaded.

    A folder that was deleted and made again (`--fresh`) has copies of its own.
    """
    uri = storage.join(folder, "made.txt")
    try:
        made = storage.read_bytes(uri).decode()
    except FileNotFoundError:
        made = uuid.uuid4().hex
        storage.write_bytes(uri, made.encode())
    return str(_copies(scratch, folder) / made)


def _copies(scratch: Path, folder: str) -> Path:
    return scratch / "checkpoints" / hashlib.sha256(folder.encode()).hexdigest()[:16]


class CheckpointWriter:
    """Writes checkpoints in a thread of its own: to this node's disk, then to a bucket.

    What is newer replaces what waits. After a failure it tries again, for as long as it takes.

    Args:
        folder: uri of the checkpoints.
        scratch: of this node.
        told: is called with an event and what it says: `checkpoint`, `checkpoint_failed`,
            `checkpoint_copy_failed` (of this node's disk, once until it succeeds again).
        require: raises where nothing may be written any more.
    """

    def __init__(
        self,
        folder: str,
        scratch: Path,
        told: Callable[..., None],
        require: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._local = local_copies(scratch, folder) if storage.is_remote(folder) else None
        self._told = told
        self._require = require
        self._changed = threading.Condition()
        self._best: tuple[int, dict[str, Any]] | None = None
        self._state: tuple[int, dict[str, Any]] | None = None
        self._arrived = arrival()
        self._working = self._ended = False
        self.failure: str | None = None
        """Why the last attempt failed; None: it succeeded."""
        self._copy_failed = False
        self._thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        self._thread.start()

    def save(self, step: int, content: dict[str, Any]) -> None:
        """Write the state after `step` steps, soon; the content is copied."""
        copy, arrived = on_cpu(content), arrival()
        with self._changed:
            self._state = (step, copy)
            self._arrived = arrived
            self._changed.notify_all()

    def save_best(self, step: int, network: dict[str, torch.Tensor]) -> None:
        """Write the best network, before the next state, which names it."""
        copy, arrived = on_cpu(network), arrival()
        with self._changed:
            self._arrived = arrived
            if self._best and self._state and self._state[1]["best"][0] == self._best[0]:
                self._state = None  # it names a network that may never be written
            self._best = (step, copy)
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Wait until all is written; returns whether it is."""
        with self._changed:
            self._changed.wait_for(lambda: self._idle() or self._ended, seconds)
            return self._idle()

    def close(self, seconds: float = 0.0) -> None:
        """Write no more, but for what is under way after so many seconds."""
        self.wait(seconds)
        with self._changed:
            self._ended, self._best, self._state = True, None, None
            self._changed.notify_all()
        self._thread.join(seconds or _AGAIN_SECONDS)

    def _idle(self) -> bool:
        return self._best is None and self._state is None and not self._working

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._best or self._state)
                if self._ended:
                    return
                best, state, arrived = self._best, self._state, self._arrived
                self._working = True
            written = False
            try:
                arrived()
                written = self._try(best, state)
            finally:
                with self._changed:
                    self._working = False
                    if written and best is not None and self._best is best:
                        self._best = None
                    if written and best is None and self._state is state:
                        self._state = None
                    self._changed.notify_all()
            with self._changed:
                if not written:
                    self._changed.wait_for(lambda: self._ended, _AGAIN_SECONDS)

    def _try(self, best: tuple[int, Any] | None, state: tuple[int, Any] | None) -> bool:
        """Write one of them, a best network first: a state that names it must find it.

        Returns whether it is written.
        """
        try:
            self._require()
            if best is not None:
                save_best(self._folder, *best)
            elif state is not None:
                self._write(*state)
            self.failure = None
        # whatever it is, the training goes on and this thread with it
        except Exception as error:
            self.failure = str(error) or type(error).__name__
            self._tell("checkpoint_failed", reason=self.failure)
        return self.failure is None

    def _tell(self, event: str, **about: Any) -> None:
        # what is written is written, whoever hears of it
        with contextlib.suppress(Exception):
            self._told(event, **about)

    def _write(self, step: int, content: dict[str, Any]) -> None:
        if self._local is not None:
            self._keep(self._local, step, content)
        save_checkpoint(self._folder, step, content)
        forget_before(self._folder, content["best"][0])
        self._tell("checkpoint", step=step)

    def _keep(self, folder: str, step: int, content: dict[str, Any]) -> None:
        """Save on this node's disk; one that fails must not keep the bucket from its checkpoint."""
        try:
            save_checkpoint(folder, step, content)
            self._copy_failed = False
        except (OSError, CannotRunError) as error:
            if not self._copy_failed:
                self._tell("checkpoint_copy_failed", reason=str(error))
            self._copy_failed = True


def newest(folder: str, scratch: Path, fingerprint: str) -> str | None:
    """Uri of the newest checkpoint of a training; None: there is none.

    One that reached only this node's disk is copied to the bucket first.
    """
    found = checkpoints(folder)
    uri = found[-1][1] if found else None
    if not storage.is_remote(folder):
        return uri
    kept = checkpoints(local_copies(scratch, folder))
    if kept and (not found or kept[-1][0] > found[-1][0]):
        step, local = kept[-1]
        content = load_checkpoint(local)
        best = content["best"][0]
        there = not best or storage.exists(storage.join(folder, _best(best)))
        if content["fingerprint"] == fingerprint and there:
            save_checkpoint(folder, step, content)
            uri = checkpoints(folder)[-1][1]
    return uri


def forget_local(folder: str, scratch: Path) -> None:
    """Delete this node's copies of a training that is done, and those that are old.

    A node that only had the first worker for a time is told of no end.
    """
    own = _copies(scratch, folder)
    for copies in own.parent.glob("*"):
        # a disk that fails here must not fail a training that is done
        with contextlib.suppress(OSError, CannotRunError):
            written = max(path.stat().st_mtime for path in [copies, *copies.glob("*")])
            if copies == own or time.time() - written > _OLD_SECONDS:
                storage.delete_folder(str(copies))
