"""Where the photographs are that entries of a table or a COCO file name: each is of one entry."""

from __future__ import annotations

import contextlib
import posixpath
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.sources.importing.photographs import IMAGE_FOLDERS, why_left_out
from pmm_ray.sources.importing.results import results_in
from pmm_ray.sources.reading.names import (
    BY_PART,
    Found,
    NameIndex,
    beaten,
    grouped,
    path_below,
)
from pmm_ray.sources.reading.split_names import of_other_splits, splits_in

Key = TypeVar("Key", bound=Hashable)


class Places:
    """Folders in which photographs are looked for, the likeliest first.

    Args:
        folders: uris; they are listed only if a file does not stand where its name says.
        out: where results go: they are no photographs, nor are older results.
        source: that is imported.
    """

    def __init__(self, folders: Sequence[str], out: str, source: str) -> None:
        self._folders = list(dict.fromkeys(folders))
        self._out = out
        self._source = source
        self._how: dict[str, list[str]] = {}

    @cached_property
    def _listed(self) -> list[tuple[str, NameIndex]]:
        out = []
        for folder in self._folders:
            uris = [e.uri for e in storage.list_entries(folder, recursive=True) if not e.fault]
            root = storage.parent(folder) if posixpath.basename(folder) in IMAGE_FOLDERS else folder
            results = results_in(uris, root, self._out, self._source)
            found = (uri for uri in uris if not why_left_out(uri, root, folder, results))
            out.append((folder, NameIndex(path_below(uri, folder) for uri in found)))
        return out

    def find(self, written: str, split: str = "") -> Found:
        """The file that a name means, its uri as `name`.

        Args:
            split: of the entry. By a part of its path alone it finds no file of another split.

        Raises:
            ValueError: it is in none, or may be one of several.
        """
        for folder in self._folders:
            with contextlib.suppress(ValueError):  # a name that leaves its folder
                uri = storage.join(folder, written)
                if storage.exists(uri):
                    # `a/./b` and `a//b` are `a/b`
                    odd = "./" in written or "//" in written
                    return Found(storage.join(folder, posixpath.normpath(written)) if odd else uri)
        own = written if splits_in(written) else f"{split}/{written}"
        hits: list[tuple[str, Found]] = []
        unsure: ValueError | None = None
        other = ""
        for folder, index in self._listed:
            try:
                found = index.find(written)
            except ValueError as error:
                unsure = unsure or error
                continue
            if found and found.rank >= BY_PART and of_other_splits(own, found.name):
                other = f"; {storage.join(folder, found.name)} is of another split"
            elif found:
                hits.append((folder, found))
        if not hits:
            raise unsure or ValueError(self.missing(written) + other)
        folder, best = min(hits, key=lambda hit: hit[1].rank)
        return Found(storage.join(folder, best.name), best.how, best.rank)

    def note(self, written: str, found: Found) -> None:
        """Keep by what rule a file was found."""
        if found.how:
            self._how.setdefault(found.how, []).append(written)

    def missing(self, written: str) -> str:
        """What to say of a file that is not there."""
        return f"{written} is in none of {self._folders}"

    def notes(self) -> list[str]:
        """How many files were found by another rule than their very name."""
        return [
            f"photographs found {how}: {len(names)}, such as {names[0]!r}"
            for how, names in self._how.items()
        ]


@dataclass(frozen=True)
class Wanted:
    """A photograph that an entry names: `written` so, in `source`, a file's name or a row of it."""

    written: str
    source: str
    places: Places
    split: str = ""


def find_wanted(wanted: Mapping[Key, Wanted]) -> dict[Key, str | RowError]:
    """The uri of each entry's photograph, or why it has none.

    A photograph that one entry names is not another's. Where two name it in full, in one spelling
    or in two, it is a `label` error of both.
    """
    out: dict[Key, str | RowError] = {}
    claims: dict[Key, tuple[str, Found]] = {}
    for key, entry in wanted.items():
        try:
            claims[key] = (entry.written, entry.places.find(entry.written, entry.split))
        except ValueError as error:
            out[key] = RowError("missing", str(error))
    wrong = beaten(claims)
    for key, why in wrong.items():
        entry = wanted[key]
        out[key] = RowError("missing", why or entry.places.missing(entry.written))
    claims = {key: claim for key, claim in claims.items() if key not in wrong}
    sharing = grouped(claims, lambda key: claims[key][1].name)
    for key, (written, found) in claims.items():
        sharers = sharing[found.name]
        if len(sharers) == 1:
            out[key] = found.name
            wanted[key].places.note(written, found)
            continue
        entries = [f"{wanted[one].written!r} ({wanted[one].source})" for one in sharers]
        more = f" and {len(entries) - 3} more" if len(entries) > 3 else ""
        text = f"{' and '.join(entries[:3])}{more} are one file: which labels are its own?"
        out[key] = RowError("label", f"{written} is listed twice: {text}", found.name)
    return out
