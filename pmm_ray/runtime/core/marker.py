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
    # one level: a data set in a bucket may have millions of files below
    held = [name for name in storage.list_names(folder) if writes is None or name in writes]
    # what a process leaves that is killed while it writes the marker
    held = [name for name in held if not name.startswith(f".{marker}.")]
    if held:
        raise CannotRunError(
            f"{folder} holds files that this command did not make, such as {held[0]}, and it would "
            "overwrite them: choose another folder, or move them away"
        )
    return None
