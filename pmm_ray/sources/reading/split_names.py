"""What people call splits, and the folders and files of them: `train`, `val2017`, `test_set`."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

_WORDS = "training|train|validation|valid|val|dev|testing|test"
_SPLIT = re.compile(rf"({_WORDS})([_ -]?(set|split))?[_ -]?\d*", re.IGNORECASE)
# with a word before it or behind it: seg_train, 01_train, train_images
_AFFIXED = re.compile(rf"(.*?[_ \d-])?({_WORDS})([_ \d-].*)?", re.IGNORECASE)
# in a name of other words: trainA, cats_train
_WITHIN = re.compile(rf"(?<![A-Za-z])(?i:{_WORDS})(?![a-z])")
_SAME = {"training": "train", "valid": "val", "validation": "val", "dev": "val", "testing": "test"}


def is_split(name: str) -> bool:
    """Whether a folder or file is called as splits are."""
    return _SPLIT.fullmatch(name) is not None


def splits_in(path: str) -> frozenset[str]:
    """The splits that the folders of a path are called by, in one spelling: `train`, `val`."""
    words = (_SPLIT.fullmatch(part) for part in path.split("/")[:-1])
    return frozenset(_usual(word.group(1)) for word in words if word)


def same_split(one: str, other: str) -> bool:
    """Whether two names are of one split: `valid` and `val`, but not `val` and `test`."""
    kinds = [_usual(m.group(1)) if (m := _SPLIT.fullmatch(name)) else name for name in (one, other)]
    return kinds[0] == kinds[1]


def splits_of_folders(names: Collection[str]) -> dict[str, str]:
    """The top folder of each path, where all are called as splits are, and there are two or more;
    empty where folders tell nothing."""
    tops = {name: name.split("/", 1)[0] for name in names if "/" in name}
    several = len(set(tops.values())) > 1
    return tops if several and len(tops) == len(names) and all(map(is_split, tops.values())) else {}


def untold_splits(names: Iterable[str], default: str, unsaid: Iterable[str]) -> list[str]:
    """A sentence where photographs are in a folder called by another split than the default.

    Args:
        names: of all photographs, of which `splits_of_folders` does not tell.
        default: the split that those get of which nothing says it.
        unsaid: these.
    """
    folders = {name: name.rpartition("/")[0] for name in unsaid}
    other = {
        f for f in {*folders.values()} if (found := splits_in(f"{f}/")) and default not in found
    }
    lost = [name for name, folder in folders.items() if folder in other]
    if not lost:
        return []
    odd = next((n for n in names if "/" not in n or not is_split(n.split("/", 1)[0])), "")
    beside = f", and {odd!r} is not: move it" if odd else ": make the other one"
    return [
        f"photographs of split {default} in folders of other splits: {len(lost)}, such as "
        f"{lost[0]!r}: folders tell the split only where all photographs are in two or more that "
        f"are called as splits{beside}, or write the column split into labels.csv"
    ]


def affixed_splits(names: Collection[str]) -> dict[str, str]:
    """The split of each name, where all have the same words around it, and numbers.

    `seg_train` and `seg_test` are `train` and `test`, as are `01_train` and `02_test`. Empty where
    they are of no two splits, or a name is of none.
    """
    found = {name: _AFFIXED.fullmatch(name) for name in names}
    splits = {name: _usual(match.group(2)) for name, match in found.items() if match}
    around = {_words(match.group(1), match.group(3)) for match in found.values() if match}
    alike = len(splits) == len(found) and len(around) == 1
    return splits if alike and len(set(splits.values())) > 1 else {}


def differ_by_split(names: Iterable[str]) -> list[str]:
    """The first names that are alike but for the split in them: `trainA`, `testA`; else none."""
    alike: dict[str, dict[str, str]] = {}
    for name in sorted(names):
        if match := _WITHIN.search(name):
            rest = _words(name[: match.start()], name[match.end() :])
            alike.setdefault(rest, {}).setdefault(_usual(match.group()), name)
    return next((list(found.values()) for found in alike.values() if len(found) > 1), [])


def _usual(word: str) -> str:
    return _SAME.get(word.lower(), word.lower())


def _words(*parts: str | None) -> str:
    """Words around a split, without numbers and what stands between."""
    return "|".join(re.sub(r"[_ \d-]+", " ", part or "").strip().casefold() for part in parts)


def apart(splits: frozenset[str], others: frozenset[str]) -> bool:
    """Whether two paths, of these splits, name folders of splits and not one in common."""
    return bool(splits and others) and not splits & others


def of_other_splits(one: str, other: str) -> bool:
    """Whether two paths are `apart`."""
    return apart(splits_in(one), splits_in(other))
