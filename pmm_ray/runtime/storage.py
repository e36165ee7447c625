"""Files behind one set of functions, local or in a bucket, through pyarrow.fs.

A uri is an absolute path, a relative path, or `scheme://...` (`s3`, `gs`, `file`).
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import uuid
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import pyarrow.fs as pafs


def is_remote(uri: str) -> bool:
    """Whether the uri names an object store rather than this machine's disk."""
    return "://" in uri and not uri.startswith("file://")


def absolute(uri: str) -> str:
    """The uri with a local path made absolute; remote uris are returned as they are."""
    if is_remote(uri):
        return uri.rstrip("/")
    return str(Path(uri.removeprefix("file://")).expanduser().absolute())


@lru_cache(maxsize=64)
def _filesystem(root: str) -> Any:
    if not root:
        return pafs.LocalFileSystem()
    filesystem, _ = pafs.FileSystem.from_uri(root)
    return filesystem


def resolve(uri: str) -> tuple[Any, str]:
    """The (pyarrow filesystem, path inside it) of a uri."""
    if not is_remote(uri):
        return _filesystem(""), absolute(uri)
    scheme, _, rest = uri.partition("://")
    bucket = rest.split("/", 1)[0]
    return _filesystem(f"{scheme}://{bucket}"), rest


def join(base: str, *parts: str) -> str:
    """`base/part/part`; parts are relative. Raises ValueError where one would leave `base`."""
    for part in parts:
        if part.startswith("/") or ".." in part.split("/"):
            raise ValueError(f"{part!r} leaves its root {base!r}")
    return posixpath.join(base.rstrip("/") or "/", *parts)


def anchor(uri: str, root: str) -> str:
    """A uri from a table made absolute: kept if absolute or remote, else below `root`."""
    if is_remote(uri) or uri.startswith("/"):
        return uri
    return join(root, uri)


def parent(uri: str) -> str:
    """The folder a uri lies in."""
    return uri.rstrip("/").rsplit("/", 1)[0]


def exists(uri: str) -> bool:
    filesystem, path = resolve(uri)
    return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """The whole file, or its first `limit` bytes. Raises FileNotFoundError or another OSError."""
    filesystem, path = resolve(uri)
    with filesystem.open_input_stream(path, compression=None) as stream:
        return cast(bytes, stream.read(limit))


@contextlib.contextmanager
def naming(path: str) -> Iterator[None]:
    """Give an OSError of a write the path that it lacks: a full disk must be found by its name."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, path) from error


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file so that it appears whole or not at all.

    On a local disk: a temporary file beside it, fsync, rename. In a bucket an object becomes
    visible when its upload completes, so one plain write is enough.
    """
    filesystem, path = resolve(uri)
    if is_remote(uri):
        with filesystem.open_output_stream(path) as stream:
            stream.write(data)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with naming(path), open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


def list_files(folder: str, suffix: str = "", *, recursive: bool = False) -> list[str]:
    """Sorted uris of the files in a folder, hidden ones left out; empty if there is no folder."""
    filesystem, path = resolve(folder)
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
    prefix = folder.split("://", 1)[0] + "://" if is_remote(folder) else ""
    return sorted(
        prefix + info.path
        for info in filesystem.get_file_info(selector)
        if info.type == pafs.FileType.File
        and info.path.endswith(suffix)
        and not posixpath.basename(info.path).startswith(".")
    )


def delete_file(uri: str) -> None:
    """Delete a file; a missing one is fine."""
    filesystem, path = resolve(uri)
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(path)


def delete_folder(uri: str) -> None:
    """Delete a folder and all in it; a missing one is fine."""
    filesystem, path = resolve(uri)
    with contextlib.suppress(FileNotFoundError):
        filesystem.delete_dir(path)


def make_folder(uri: str) -> None:
    if not is_remote(uri):
        Path(absolute(uri)).mkdir(parents=True, exist_ok=True)
