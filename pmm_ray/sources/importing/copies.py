"""Photographs that a data set has twice, under two names."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.rows.images import read_file

Item = TypeVar("Item")


@dataclass(frozen=True)
class Copies(Generic[Item]):
    """Files of the same bytes, a group for each; `all_read` is false where there may be more."""

    groups: list[list[Item]]
    all_read: bool = True

    @property
    def least(self) -> str:
        """What stands before their number."""
        return "" if self.all_read else "at least "


def find_copies(
    groups: Iterable[Sequence[Item]],
    uri: Callable[[Item], str],
    differ: Callable[[Item], object],
    most_bytes: float = math.inf,
) -> Copies[Item]:
    """The copies among some files, but for those of which no two differ.

    Args:
        groups: files that may be the same.
        uri: of a file.
        differ: by what, such as the split; one where it is empty differs from none.
        most_bytes: that are read for certainty.
    """
    found: list[list[Item]] = []
    left = most_bytes
    for group in groups:
        if not _several(group, differ):
            continue
        by_content: dict[bytes, list[Item]] = {}
        for item in group:
            if left <= 0:
                return Copies(found, all_read=False)
            try:
                data = read_file(uri(item))
            except RowError:
                continue  # a stage says what is wrong with it
            left -= len(data)
            by_content.setdefault(hashlib.sha256(data).digest(), []).append(item)
        found += [items for items in by_content.values() if _several(items, differ)]
    return Copies(found)


def _several(items: Sequence[Item], differ: Callable[[Item], object]) -> bool:
    return len({*filter(None, map(differ, items))}) > 1
