"""Which lists, tables and annotation files were read or looked for, so that a change is noticed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.fingerprints import fingerprint
from pmm_ray.sources.reading.names import ending_of

_noted: ContextVar[dict[str, None] | None] = ContextVar("noted", default=None)
_ALL = "/*"


def note(*uris: str) -> None:
    """Take down files whose content is read, or would be if they were there."""
    if (noted := _noted.get()) is not None:
        noted |= dict.fromkeys(uris)


def note_all(folder: str, ending: str) -> None:
    """Take down all files of a folder with an ending, as one; there may be none yet."""
    note(f"{folder}{_ALL}{ending}")


def first_there(uris: Iterable[str]) -> str | None:
    """The first of some files that is there; it and those before it are taken down."""
    for uri in uris:
        note(uri)
        if storage.exists(uri):
            return uri
    return None


@contextmanager
def noted() -> Iterator[dict[str, None]]:
    """What is taken down in a `with` block, in order."""
    found: dict[str, None] = {}
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)


def version(noted_uri: str) -> list[int | None] | str | None:
    """What tells whether a file, or one of those that were taken down as one, is another.

    Returns:
        Size in bytes and time of the last change in ns, or a hash of these; None: nothing is there.
    """
    folder, several, ending = noted_uri.rpartition(_ALL)
    if several:
        files = [uri for uri in storage.list_files(folder) if ending_of(uri) == ending]
        return fingerprint({uri: uri for uri in files}) if files else None
    size, changed = storage.version(noted_uri)
    return None if size is None else [size, changed]
