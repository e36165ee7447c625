"""Files behind one set of functions, local or in a bucket, through pyarrow.fs.

A uri is an absolute path, a relative path, or `scheme://...` (`s3`, `gs`, `file`). Credentials,
region and endpoint of a bucket come from the usual variables: see docs/reference/storage.md.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from pmm_ray.runtime.core.errors import (
    OF_A_NAME,
    CannotRunError,
    MayPassError,
    system_failure,
)
from pmm_ray.runtime.core.store_faults import STORE_FAILS, naming_path, reaching

# A throttled or failed request is sent again after a random pause that doubles: about a minute in
# all. Left alone, pyarrow sends an S3 request again every 0.2 s for 6 s and no longer.
_S3_ATTEMPTS = 10
_GCS_SECONDS = 90
_GOOGLE = ("gs://", "gcs://")
_PLACES = "give a path of a disk, s3://BUCKET/... or gs://BUCKET/..."


def is_remote(uri: str) -> bool:
    """Whether the uri names an object store rather than this machine's disk."""
    return "://" in uri and not uri.startswith("file://")


def absolute(uri: str) -> str:
    """The uri with a local path made absolute; remote uris are returned as they are."""
    if is_remote(uri):
        scheme, _, rest = uri.partition("://")
        return f"{scheme}://{rest.rstrip('/')}"
    return str(Path(uri.removeprefix("file://")).expanduser().absolute())


@lru_cache(maxsize=64)
def _filesystem(root: str) -> Any:
    if not root:
        return pafs.LocalFileSystem()
    if root.endswith("://"):
        raise CannotRunError(f"{root} names no bucket: {_PLACES}")
    try:
        if root.startswith("s3://"):
            return _s3(root)
        return _gcs() if root.startswith(_GOOGLE) else pafs.FileSystem.from_uri(root)[0]
    except (pa.ArrowInvalid, OSError) as error:
        reason = str(error).splitlines()[0]
        raise CannotRunError(f"{root} cannot be used ({reason}): {_PLACES}") from error


def _s3(root: str) -> Any:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    options: dict[str, Any] = {}
    if endpoint:
        options = {"endpoint_override": endpoint, "scheme": urlsplit(endpoint).scheme or "https"}
    else:
        try:
            found, _ = pafs.FileSystem.from_uri(root)  # asks the bucket for its region
        except OSError as error:
            raise MayPassError(f"{STORE_FAILS}: cannot reach {root}: {error}") from error
        options = {"region": found.region}
    return pafs.S3FileSystem(
        **options,
        allow_delayed_open=True,  # a small file is one request, not the three of a large one
        retry_strategy=pafs.AwsStandardS3RetryStrategy(max_attempts=_S3_ATTEMPTS),
    )


def _gcs() -> Any:
    options: dict[str, Any] = {}
    if emulator := os.environ.get("STORAGE_EMULATOR_HOST"):
        scheme, _, host = emulator.rpartition("://")
        options = {"endpoint_override": host, "scheme": scheme or "http", "anonymous": True}
    return pafs.GcsFileSystem(**options, retry_time_limit=timedelta(seconds=_GCS_SECONDS))


def resolve(uri: str) -> tuple[Any, str]:
    """The (pyarrow filesystem, path inside it) of a uri.

    Raises:
        CannotRunError: it is not UTF-8, and pyarrow takes no other.
    """
    place = absolute(uri)
    if (shown := printable(place)) != place:
        raise CannotRunError(f"{shown}: a name that is not UTF-8: rename it")
    if not is_remote(uri):
        return _filesystem(""), place
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
    """The folder a uri is in."""
    return uri.rstrip("/").rsplit("/", 1)[0]


def is_below(uri: str, folder: str) -> bool:
    """Whether the uri is a folder or in it; links of a local disk are followed."""
    inside, place = (u if is_remote(u) else os.path.realpath(absolute(u)) for u in (uri, folder))
    return f"{inside}/".startswith(f"{place}/")


def exists(uri: str) -> bool:
    filesystem, path = resolve(uri)
    with reaching(uri):
        return bool(filesystem.get_file_info(path).type != pafs.FileType.NotFound)


def changed(uri: str) -> float:
    """When a file was written, s since the epoch by the clock of whatever stores it.

    Raises:
        FileNotFoundError: there is no such file.
    """
    filesystem, path = resolve(uri)
    with reaching(uri):
        info = filesystem.get_file_info(path)
    if info.type == pafs.FileType.NotFound:
        raise FileNotFoundError(uri)
    return float(info.mtime.timestamp())


def read_bytes(uri: str, limit: int | None = None) -> bytes:
    """The whole file, or its first `limit` bytes.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read, and another attempt would not help.
        MayPassError: its store or disk fails.
    """
    filesystem, path = resolve(uri)
    # not `open_input_stream`, which asks a bucket for 256 KB at a time
    with reaching(uri), filesystem.open_input_file(path) as file:
        return cast(bytes, file.read(limit))


def write_bytes(uri: str, data: bytes) -> None:
    """Write a file so that it appears whole or not at all.

    On a local disk: a temporary file beside it, fsync, rename. In a bucket an object becomes
    visible when its upload completes, so one plain write is enough.
    """
    filesystem, path = resolve(uri)
    if is_remote(uri):
        buffer = pa.py_buffer(data)  # before a stream is open: closing one completes its object
        with reaching(uri), filesystem.open_output_stream(path) as stream:
            stream.write(buffer)
        return
    target = Path(path)
    make_folder(str(target.parent))
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with naming_path(path), open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)  # from here on it is there
    finally:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()


@dataclass(frozen=True)
class Entry:
    """What a listing found: a file, or something that cannot be read as one."""

    uri: str
    fault: str = ""
    """Why there is nothing to read; empty for a file."""
    folder: bool = False
    """Whether it is a folder that cannot be listed."""


def printable(text: str) -> str:
    """The text, where bytes of another encoding than UTF-8 are written as `\\xe9`."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def stand_in(head: bytes) -> str:
    """What the file is, if it begins as a pointer of Git LFS or as gzip; else an empty text."""
    if head.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS, not the file: run `git lfs pull`"
    if head.startswith(b"\x1f\x8b"):
        return "a gzip archive, not the file in it: unpack it"
    return ""


def list_entries(folder: str, *, recursive: bool = False) -> list[Entry]:
    """All that is in a folder but folders, sorted, hidden ones too; empty if there is none.

    Links are followed, each folder is visited once: a link to a folder above does no harm.
    """
    if is_remote(folder):
        scheme = folder.split("://", 1)[0]
        infos = _listed(folder, recursive)
        paths = sorted(info.path for info in infos if info.type == pafs.FileType.File)
        return [Entry(f"{scheme}://{path}") for path in paths]
    found: list[Entry] = []
    folders, links = [absolute(folder)], list[str]()
    seen: set[str] = set()
    while folders or links:
        # Folders come before links, so a place that both lead to keeps its own path.
        place = folders.pop() if folders else links.pop()
        real = os.path.realpath(place)
        if real in seen:
            continue
        seen.add(real)
        try:
            with reaching(place), os.scandir(place) as entries:
                for entry in entries:
                    if _is(entry.is_dir):
                        if recursive:
                            (links if entry.is_symlink() else folders).append(entry.path)
                    else:
                        found.append(_entry(entry))
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            text = f"the folder cannot be listed: {error.strerror}"
            found.append(Entry(place, text, folder=True))
    return sorted(found, key=lambda entry: entry.uri)


def refuse_no_folder(uri: str) -> None:
    """Of a folder in which nothing was found. Raises CannotRunError of a local uri that is none."""
    if not is_remote(uri) and not Path(uri).is_dir():
        what = (
            "is no folder: unpack it, or give the folder that it is in"
            if Path(uri).exists()
            else "does not exist"
        )
        raise CannotRunError(f"{uri} {what}")


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError as error:
        if system_failure(error):
            raise
        return False  # a link that leads to itself


def _entry(entry: os.DirEntry[str]) -> Entry:
    if not _is(entry.is_file):
        fault = "a link to nothing" if entry.is_symlink() else "no regular file"
        return Entry(entry.path, fault)
    if printable(entry.path) != entry.path:
        return Entry(entry.path, "its name is not UTF-8: rename it")
    return Entry(entry.path)


def list_files(folder: str, suffix: str = "", *, recursive: bool = False) -> list[str]:
    """Sorted uris of the files in a folder, hidden ones left out; empty if there is no folder."""
    return [
        entry.uri
        for entry in list_entries(folder, recursive=recursive)
        if not entry.fault
        and entry.uri.endswith(suffix)
        and not posixpath.basename(entry.uri).startswith(".")
    ]


def list_versions(folder: str, suffix: str = "") -> dict[str, tuple[int, int]]:
    """Size in bytes and time of the last change in ns, of each file in a folder, by its uri.

    In order of names; hidden files are left out. One request for a thousand objects of a bucket.
    """
    files = sorted(
        (info.base_name, info.size, info.mtime_ns or 0)
        for info in _listed(folder)
        if info.type == pafs.FileType.File
        and info.base_name.endswith(suffix)
        and not info.base_name.startswith(".")
    )
    return {join(folder, name): (size, changed) for name, size, changed in files}


def list_names(folder: str) -> list[str]:
    """Sorted names of the files and folders in a folder; empty if there is none."""
    return sorted(_held(folder))


def list_folders(folder: str) -> list[str]:
    """Sorted names of the folders in a folder; empty if there is no folder."""
    return sorted(name for name, is_folder in _held(folder).items() if is_folder)


def _held(folder: str) -> dict[str, bool]:
    """Whether it is a folder, of each name in a folder."""
    if not is_remote(folder):
        try:
            with os.scandir(absolute(folder)) as entries:
                return {entry.name: _is(entry.is_dir) for entry in entries}
        except (FileNotFoundError, NotADirectoryError):
            return {}
    held: dict[str, bool] = {}
    root = resolve(folder)[1].rstrip("/") + "/"
    # Google's store has no folders: it names them only in the paths of the files below
    for info in _listed(folder, recursive=folder.startswith(_GOOGLE)):
        name, below, _ = info.path.removeprefix(root).partition("/")
        is_folder = below or info.type == pafs.FileType.Directory
        held[name] = held.get(name, False) or bool(is_folder)
    return held


def _listed(folder: str, recursive: bool = False) -> list[pafs.FileInfo]:
    """What pyarrow finds in a folder; nothing if there is none."""
    filesystem, path = resolve(folder)
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=recursive)
    with reaching(folder):
        return list(filesystem.get_file_info(selector))


def version(uri: str) -> tuple[int | None, int | None]:
    """Size in bytes and time of the last change in ns: others once a file is written again."""
    filesystem, path = resolve(uri)
    info = filesystem.get_file_info(path)
    return info.size, info.mtime_ns


def delete_file(uri: str) -> None:
    """Delete a file; a missing one is fine."""
    filesystem, path = resolve(uri)
    with reaching(uri), contextlib.suppress(FileNotFoundError):
        filesystem.delete_file(path)


def delete_folder(uri: str) -> None:
    """Delete a folder and all in it; a missing one is fine."""
    filesystem, path = resolve(uri)
    # Google's folders are no objects: after their files are gone, deleting one finds nothing
    with reaching(uri), contextlib.suppress(FileNotFoundError):
        if filesystem.get_file_info(path).type != pafs.FileType.NotFound:
            filesystem.delete_dir(path)


def delete_temporary(folder: str) -> None:
    """Delete what a process that died in `write_bytes` left in a local folder."""
    if not is_remote(folder):
        for litter in Path(absolute(folder)).glob(".*.tmp"):
            litter.unlink(missing_ok=True)


def make_folder(uri: str) -> None:
    if is_remote(uri):
        return
    try:
        Path(absolute(uri)).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in OF_A_NAME:
            raise
        raise CannotRunError(
            f"cannot make the folder {uri}: {error.strerror}: choose another place"
        ) from error
