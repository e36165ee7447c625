"""Which lists, tables and annotation files were read, so that a change of them is noticed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_noted: ContextVar[dict[str, None] | None] = ContextVar("noted", default=None)


def note(uri: str) -> None:
    """Take down a file whose content is read."""
    if (noted := _noted.get()) is not None:
        noted[uri] = None


@contextmanager
def noted() -> Iterator[dict[str, None]]:
    """The uris of the files that are read in a `with` block, in order."""
    found: dict[str, None] = {}
    token = _noted.set(found)
    try:
        yield found
    finally:
        _noted.reset(token)
