"""What people call splits, and the folders and files of them: `train`, `val2017`, `test_set`."""

from __future__ import annotations

import re

_SPLIT = re.compile(
    r"(train|training|val|valid|validation|dev|test|testing)([_ -]?(set|split))?[_ -]?\d*",
    re.IGNORECASE,
)
_SAME = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}


def is_split(name: str) -> bool:
    """Whether a folder or file is called as splits are."""
    return _SPLIT.fullmatch(name) is not None


def splits_in(path: str) -> set[str]:
    """The splits that the folders of a path are called by, in one spelling: `train`, `val`."""
    words = (_SPLIT.fullmatch(part) for part in path.split("/")[:-1])
    names = (word.group(1).lower() for word in words if word)
    return {_SAME.get(name, name) for name in names}


def of_other_splits(one: str, other: str) -> bool:
    """Whether two paths name folders of splits, and not one in common."""
    mine, others = splits_in(one), splits_in(other)
    return bool(mine and others) and not mine & others
