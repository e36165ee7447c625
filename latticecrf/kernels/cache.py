"""Compiled kernels on disk: per user, per version, shared by all processes of a machine.

Numba's own cache stands beside the source files, which fails in a read-only install, forgets
everything when the package is shipped to a new folder for every job, and may hand one process
the other's file when two save at once. Here a compiled kernel is one file named after everything
it depends on: Numba and Python version, CPU, package source, function and argument types. Files
appear by an atomic rename. Of processes that need a kernel at once, one compiles it and the others
wait for its file; where a file system has no locks, the worst is work done twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.resources
import os
import pickle
import platform
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, Any

import llvmlite.binding  # type: ignore[import-untyped, unused-ignore]
import numba
from numba.core import compiler
from numba.core.caching import _Cache
from numba.core.serialize import dumps

# Where kernels and what they are made of stand: a change there compiles them anew.
KERNEL_ROOMS = ("kernels", "lattice", "mean_field", "simd")

# How long a process waits for another's kernel, and how often it looks, seconds. A lock ends with
# its process, so that only one that is stopped costs all of it.
_PATIENCE, _LOOK = 300.0, 0.05


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function on its first call with each set of types; releases the GIL."""
    dispatcher = numba.njit(nogil=True)(function)
    dispatcher._cache = _DiskCache(function)
    return dispatcher


@cache
def cache_folder() -> Path | None:
    """Where this user's compiled kernels are kept; None when no place will do.

    The first of `$LATTICECRF_CACHE_DIR`, `$XDG_CACHE_HOME/latticecrf` (or `~/.cache/latticecrf`)
    and a private folder in the system's temporary one, that can be written to or holds kernels
    already. Compiled code is run as it is found, so a folder that belongs to another user is never
    used.
    """
    cpu = llvmlite.binding.get_host_cpu_name()
    python = platform.python_version()
    name = f"numba-{numba.__version__}-python-{python}-{cpu}-{_source_digest()[:12]}"
    for root in _candidates():
        folder = root / name
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            mine = folder.stat().st_uid == os.getuid()
            # A container's image may hold the kernels, on a disk that is only read.
            useful = os.access(folder, os.W_OK) or any(folder.glob("*.kernel"))
        except OSError:
            continue
        if mine and useful:
            return folder
    return None


def _candidates() -> Iterator[Path]:
    chosen = os.environ.get("LATTICECRF_CACHE_DIR")
    if chosen:
        yield Path(chosen)
    with suppress(RuntimeError):  # a user without a home
        yield Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "latticecrf"
    with suppress(OSError):
        yield _private_folder()


def _private_folder() -> Path:
    """A folder for temporary files into which no other user can write."""
    folder = Path(tempfile.gettempdir()) / f"latticecrf-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    # Whoever may rename what is in it could put other code there.
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PermissionError(f"{folder} is open to other users")
    return folder


@cache
def _source_digest() -> str:
    """Digest of the source of the rooms that hold kernels: a kernel depends on those it calls."""
    digest = hashlib.sha256()
    for room in KERNEL_ROOMS:
        files = importlib.resources.files(f"latticecrf.{room}").iterdir()
        for file in sorted(files, key=lambda file: file.name):
            if file.name.endswith(".py"):
                digest.update(f"{room}/{file.name}".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()


def _write(path: Path, content: bytes) -> None:
    """Make a file appear whole, or not at all."""
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
        try:
            file.write(content)
            file.flush()
            Path(file.name).replace(path)
        except BaseException:
            Path(file.name).unlink(missing_ok=True)
            raise


@cache
def _warn(folder: Path, reason: str) -> None:
    """Say once, not for every kernel, that they are compiled in vain."""
    warnings.warn(
        f"compiled CRF kernels cannot be kept in {folder} ({reason}): every process compiles them"
        " anew. Set LATTICECRF_CACHE_DIR to a folder that can be written to",
        stacklevel=3,
    )


class _DiskCache(_Cache):  # type: ignore[misc, unused-ignore]
    """Numba's cache protocol over one file per compiled signature."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = f"{function.__module__.removeprefix('latticecrf.')}.{function.__qualname__}"
        self._enabled = True
        self._held: dict[Path, IO[str]] = {}

    @property
    def cache_path(self) -> str:
        """The folder, for Numba's own messages."""
        return str(cache_folder())

    def load_overload(self, signature: Any, target_context: Any) -> Any:
        """The compiled kernel, or None when it must be compiled: then this process holds its lock.

        Numba calls `save_overload` next, which gives the lock back.
        """
        path = self._path(signature, target_context.codegen())
        if path is None:
            return None
        found = self._read(path, target_context)
        if found is None:
            self._lock(path)
            found = self._read(path, target_context)
            if found is not None:
                self._unlock(path)
        return found

    def _read(self, path: Path, target_context: Any) -> Any:
        try:
            content = path.read_bytes()
        except OSError:
            return None
        digest, payload = content[:32], content[32:]
        if hashlib.sha256(payload).digest() != digest:
            return None
        target_context.refresh()
        return compiler.CompileResult._rebuild(target_context, *pickle.loads(payload))

    def _lock(self, path: Path) -> None:
        """Be the one that compiles a kernel, or wait until another has; neither is certain."""
        if path in self._held:  # an earlier attempt did not compile
            return
        try:
            file = path.with_suffix(".lock").open("w")
        except OSError:
            return
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._held[path] = file
                return
            except BlockingIOError:
                if path.exists():
                    break
                time.sleep(_LOOK)
            except OSError:  # no locks on this file system
                break
        file.close()

    def _unlock(self, path: Path) -> None:
        file = self._held.pop(path, None)
        if file is not None:
            path.with_suffix(".lock").unlink(missing_ok=True)
            file.close()

    def save_overload(self, signature: Any, result: Any) -> None:
        """Write a compiled kernel; a full disk only costs the next process its time."""
        path = self._path(signature, result.codegen)
        if path is None:
            return
        payload = dumps(result._reduce())
        try:
            _write(path, hashlib.sha256(payload).digest() + payload)
        except OSError as error:
            _warn(path.parent, error.strerror)
        finally:
            self._unlock(path)

    def enable(self) -> None:
        """Use the disk (the default)."""
        self._enabled = True

    def disable(self) -> None:
        """Compile in memory only."""
        self._enabled = False

    def flush(self) -> None:
        """Forget nothing: files are named after their content's inputs and never go stale."""

    def _path(self, signature: Any, codegen: Any) -> Path | None:
        folder = cache_folder()
        if folder is None or not self._enabled:
            return None
        key = repr((signature, codegen.magic_tuple()))
        return folder / f"{self._name}-{hashlib.sha256(key.encode()).hexdigest()[:24]}.kernel"
