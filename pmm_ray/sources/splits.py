"""What people call splits."""

from __future__ import annotations

import re

# train, val, test_set, train2017
_SPLIT = re.compile(
    r"(train|training|val|valid|validation|dev|test|testing)([_ -]?(set|split))?[_ -]?\d*",
    re.IGNORECASE,
)
_KIND = {"tra": "train", "val": "val", "dev": "val", "tes": "test"}


def is_split(name: str) -> bool:
    """Whether a folder, a file or a cell is called as splits are."""
    return _SPLIT.fullmatch(name) is not None


def same_split(one: str, other: str) -> bool:
    """Whether two names are of one split: `valid` and `val`, but not `val` and `test`."""
    kinds = [_KIND.get(name[:3].casefold(), name) for name in (one, other)]
    return kinds[0] == kinds[1]


def splits_of_folders(names: list[str]) -> dict[str, str]:
    """The split of each file, where all are below folders called so, and there are two or more.

    Args:
        names: paths.

    Returns:
        The top folder by path; empty where folders tell nothing.
    """
    tops = {name: name.split("/", 1)[0] for name in names if "/" in name}
    several = len(set(tops.values())) > 1
    return tops if several and len(tops) == len(names) and all(map(is_split, tops.values())) else {}
