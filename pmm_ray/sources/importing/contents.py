"""What was in the folders of photographs, so that a run notices new ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.rows.images import IMAGE_SUFFIXES
from pmm_ray.sources.reading.names import has_ending, is_hidden

# each is looked at at the start of a run
_MOST = 1000


def contents(uris: Iterable[str], root: str) -> dict[str, list[int | None]]:
    """The time of the last change of folders on this machine's disks, ns, and how much is in them.

    Args:
        uris: of photographs, or of tables of them.
        root: the folders between it and the photographs count, too.
    """
    folders = {storage.parent(uri) for uri in uris if not storage.is_remote(uri)}
    for folder in [*folders]:
        while folder.startswith(f"{root}/"):
            folder = storage.parent(folder)
            folders.add(folder)
    return {folder: [_changed(folder), _count(folder)] for folder in sorted(folders)[:_MOST]}


def other_contents(before: Mapping[str, Sequence[int | None]]) -> list[str]:
    """The folders in which there is more or less than there was; not those that are gone."""
    return [
        folder
        for folder, (changed, count) in before.items()
        if _changed(folder) not in (changed, None) and _count(folder) != count
    ]


def _changed(folder: str) -> int | None:
    return storage.version(folder)[1]


def _count(folder: str) -> int:
    """How many photographs, tables and folders are in a folder."""
    endings = (*IMAGE_SUFFIXES, ".parquet")
    names = storage.list_names(folder)
    return sum(has_ending(n, endings) or "." not in n for n in names if not is_hidden(n))
