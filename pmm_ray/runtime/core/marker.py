"""Folders that a command fills: a file in one, its marker, says that we may overwrite the rest."""

from __future__ import annotations

from collections.abc import Collection

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError


def read_marker(folder: str, marker: str, writes: Collection[str] | None = None) -> bytes | None:
    """What the marker of a folder says; None: there is none yet, and nothing to overwrite.

    Whoever fills the folder writes the marker first: an interrupted attempt is known by it.

    Args:
        marker: name of the file.
        writes: names in the folder that would be written; None: it must hold nothing.

    Raises:
        CannotRunError: the folder has no marker and holds something, or one of `writes`.
    """
    try:
        return storage.read_bytes(storage.join(folder, marker))
    except (FileNotFoundError, NotADirectoryError):
        pass
    if held := _all_in(folder, marker) if writes is None else held_in(folder, writes):
        raise CannotRunError(
            f"{folder} holds files that this command did not make, such as {held[0]}, and it would "
            "overwrite them: choose another folder, or move them away"
        )
    return None


def held_in(folder: str, names: Collection[str]) -> list[str]:
    """Which of these files and folders are in a folder, sorted."""
    return [name for name in sorted(names) if storage.exists(storage.join(folder, name))]


def _all_in(folder: str, marker: str) -> list[str]:
    """What is in a folder, but for what a process leaves that is killed at the marker."""
    return [name for name in storage.list_names(folder) if not name.startswith(f".{marker}.")]
