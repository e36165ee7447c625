"""How names that people and other programs wrote are compared: one rule for every join.

A file is known by its path below the folder that was given, without its ending. Where two sides
name it differently, it is found in this order: the same path; the same in Unicode's composed form,
with `/` for `\\`, and an ending in any case; the same with `%20` and its like decoded and without
a url's `?...`; the same in any case of letters; with another ending of a picture, or one more; a
number without its leading zeros; by the end of its path, the longest that a file shares and only
one file has; and last by its name alone, where only one file has it. These two find nothing in the
folder of another split: `val/1.jpg` is not `train/1.jpg`.
"""

from __future__ import annotations

import hashlib
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.rows.images import IMAGE_SUFFIXES
from pmm_ray.sources.reading.split_names import apart, of_other_splits, splits_in

Key = TypeVar("Key")
Item = TypeVar("Item")

_DRIVE = re.compile(r"^(?:[A-Za-z]:)?/+")
# longer than Python converts are texts
_NUMBER = re.compile(r"-?[0-9]{1,4000}")
_ENDING = re.compile(r"\.[A-Za-z0-9]{1,8}$")
# of a path that ends in a number: what spreadsheets drop
_ZEROS = re.compile(r"(?:^|(?<=/))0+(?=[0-9]+(?:\.[A-Za-z0-9]+)?$)")
# Label Studio's `/data/local-files/?d=PATH`, and what follows the path of any other url
_QUESTION = re.compile(r"^.*\?d=|\?[^/]*$")
# folders that systems make: thumbnails of Synology, halves of a Mac's files in a zip, waste bins
_SYSTEM = ("@eadir", "__macosx", "$recycle.bin", "system volume information")


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items of each key, both in the order in which they come."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def join_key(value: Any) -> str:
    """The key of an id that one file holds as a number and another as text: `7`, `"7"`, `7.0`.

    Raises:
        ValueError: it is neither.
    """
    if type(value) is int:
        return str(value)
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        return str(int(value))
    if isinstance(value, str) and value.strip():
        text = unicodedata.normalize("NFC", value.strip())
        return str(int(text)) if _NUMBER.fullmatch(text) else text
    raise ValueError(f"{value!r} is no id")


def lookup(table: Mapping[str, int]) -> Callable[[Any], int | None]:
    """Finds the entry of an id among keys of `join_key`; None for what is no id or not there.

    Whole numbers, of which a file may hold a million, are found without making a key of each.
    """
    numbers = {int(key): value for key, value in table.items() if _NUMBER.fullmatch(key)}

    def find(value: Any) -> int | None:
        if type(value) is int:
            return numbers.get(value)
        try:
            return table.get(join_key(value))
        except ValueError:
            return None

    return find


def clean_path(name: str) -> str:
    """A path as we write it: composed, with `/`, without `./`, a drive or a leading `/`."""
    path = _DRIVE.sub("", unicodedata.normalize("NFC", name.strip()).replace("\\", "/"))
    return "/".join(part for part in path.split("/") if part not in ("", "."))


def has_ending(name: str, endings: str | tuple[str, ...]) -> bool:
    """Whether a file's name ends so, in any case; `endings` are lower."""
    return name.lower().endswith(endings)


def ending_of(name: str) -> str:
    """`.jpg` of `a/b.JPG`; empty where a name has none."""
    found = _ENDING.search(name)
    return found.group().lower() if found else ""


def is_hidden(path: str) -> bool:
    """Whether a path, below the folder that was given, is a hidden file or one of the system."""
    return any(part.startswith(".") or part.casefold() in _SYSTEM for part in path.split("/"))


def path_below(uri: str, root: str) -> str:
    """The path of a file below a folder."""
    return uri.removeprefix(root.rstrip("/") + "/")


def stem_path(uri: str, root: str = "") -> str:
    """The path of a file below `root` without its ending: what it is known by."""
    # a Mac stores file names decomposed, a list is mostly written composed
    path = unicodedata.normalize("NFC", path_below(uri, root) if root else uri)
    folder, _, name = path.rpartition("/")
    stem = name.rsplit(".", 1)[0]
    return f"{folder}/{stem}" if folder else stem


def file_stem(name: str) -> str:
    """A file's name without its folders and its ending, as it is written."""
    return name.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def safe_image_id(name: str) -> str:
    """The name itself if it is an allowed image id, else a safe id that only it gets."""
    if tables.IMAGE_ID_PATTERN.fullmatch(name):
        return name
    name = unicodedata.normalize("NFC", name)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:100]
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{readable or 'image'}-{digest}"


def _lower_ending(name: str) -> str:
    path = clean_path(name)
    ending = ending_of(path)
    return path[: len(path) - len(ending)] + ending


def _decoded(name: str) -> str:
    return _lower_ending(unquote(_QUESTION.sub("", name)))


def _without_picture(name: str) -> str:
    path = _decoded(name)
    ending = ending_of(path)
    return path.removesuffix(ending) if ending in IMAGE_SUFFIXES else path


# what a message says of a name found by each rule, and the key by which it compares
_RULES: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("", lambda name: unicodedata.normalize("NFC", name)),
    ("written on another system", _lower_ending),
    ("written on another system", _decoded),
    ("in another case of letters", lambda name: _decoded(name).casefold()),
    ("with another ending", _without_picture),
    ("without leading zeros", lambda name: _ZEROS.sub("", _decoded(name))),
    ("by the end of the path", lambda name: _decoded(name).casefold().rsplit("/", 1)[-1]),
    ("by the file's name alone", lambda name: _decoded(name).rsplit("/", 1)[-1]),
)
# rules up to the first are of one path, written in another way; from the second on, of a part of it
_LAST_OF_PATH, BY_PART = 2, 6
_NAME_ALONE = len(_RULES) - 1


@dataclass(frozen=True)
class Found:
    """A file that a written name means.

    `how` says by what rule, empty where it is written so; rules of a higher `rank` are weaker.
    """

    name: str
    how: str = ""
    rank: int = 0


class UnsureError(ValueError):
    """A name may mean any of several files, `names`."""

    def __init__(self, written: str, names: tuple[str, ...]) -> None:
        self.names = names
        super().__init__(
            f"{written!r} may be any of {len(names)} files ({', '.join(names[:3])}): name its "
            "folder and its ending"
        )


@dataclass(frozen=True)
class Unsure:
    """Why a written name is not sure, and the files that it may mean; both empty: see `beaten`."""

    why: str
    names: tuple[str, ...]


class NameIndex:
    """Finds files by the names that others wrote for them.

    Args:
        names: of the files, paths below one folder; a name without its ending finds a file, too.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._tables: dict[int, dict[str, list[str]]] = {}
        self._ends: dict[int, dict[str, dict[frozenset[str], list[str]]]] = {}
        # of all names that end alike, which may be as many as there are files
        self._by_end: dict[tuple[int, str, frozenset[str]], tuple[str, ...]] = {}

    def _table(self, rule: int) -> dict[str, list[str]]:
        """Names by the keys of one rule, made when it is first needed."""
        if rule not in self._tables:
            key = _RULES[rule][1]
            table: dict[str, list[str]] = {}
            for name in self._names:
                for way in {key(name), key(_without_ending(name))}:
                    table.setdefault(way, []).append(name)
            self._tables[rule] = table
        return self._tables[rule]

    def _end_table(self, rule: int) -> dict[str, dict[frozenset[str], list[str]]]:
        """Names by the ends of their paths, and by the splits of their folders."""
        if rule not in self._ends:
            table: dict[str, dict[frozenset[str], list[str]]] = {}
            for name in self._names:
                splits = splits_in(name)
                for end in {*_ends(rule, name), *_ends(rule, _without_ending(name))}:
                    table.setdefault(end, {}).setdefault(splits, []).append(name)
            self._ends[rule] = table
        return self._ends[rule]

    def _named(self, rule: int, written: str) -> tuple[str, ...]:
        """The files that a name means by a rule, sorted."""
        if rule < BY_PART:
            key = _RULES[rule][1]
            return _whole_first(self._table(rule).get(key(written), ()), key, key(written))
        table, splits = self._end_table(rule), splits_in(written)
        for end in _ends(rule, written):
            at = (rule, end, splits)
            if end in table and at not in self._by_end:
                there = table[end].items()
                names = [n for of, names in there if not apart(splits, of) for n in names]
                self._by_end[at] = _whole_first(names, _RULES[rule][1], end.rsplit("/", 1)[-1])
            if found := self._by_end.get(at):
                return found
        return ()

    def find(self, written: str) -> Found | None:
        """The file that a name means, None where there is none.

        Raises:
            UnsureError: it may mean several.
        """
        for rule, (how, _) in enumerate(_RULES):
            names = self._named(rule, written)
            if len(names) == 1:
                return Found(names[0], how, rule)
            if names:
                raise UnsureError(written, names)
        return None

    def find_all(
        self, names: Iterable[str], spellings: Callable[[str], Iterable[str]]
    ) -> tuple[dict[str, Found], dict[str, Unsure]]:
        """The file of each written name, and the names that are not sure.

        Args:
            names: as they are written.
            spellings: the ways to look a name up, the best first.

        Returns:
            Both by name.
        """
        found: dict[str, Found] = {}
        unsure: dict[str, Unsure] = {}
        for name in dict.fromkeys(names):
            try:
                hit = next(filter(None, map(self.find, spellings(name))), None)
            except UnsureError as error:
                unsure[name] = Unsure(str(error), error.names)
                continue
            if hit is not None:
                found[name] = hit
        for name, why in beaten({name: (name, hit) for name, hit in found.items()}).items():
            unsure[name] = Unsure(why, (found[name].name,) if why else ())
        return {name: hit for name, hit in found.items() if name not in unsure}, unsure


def _whole_first(names: Sequence[str], key: Callable[[str], str], wanted: str) -> tuple[str, ...]:
    """The names that have a key as they stand, else those without their ending; sorted."""
    if len(names) < 2:
        return tuple(names)
    return tuple(sorted([name for name in names if key(name) == wanted] or names))


def _ends(rule: int, name: str) -> list[str]:
    """What two names may have in common by a rule of a part, the longest first."""
    parts = _decoded(name).split("/")
    if rule == _NAME_ALONE:
        return parts[-1:]
    parts = [part.casefold() for part in parts]
    return ["/".join(parts[at:]) for at in range(len(parts) - 1)]


def beaten(claims: Mapping[Key, tuple[str, Found]]) -> dict[Key, str]:
    """The names that find a file which another name means, by an earlier rule: they are not there.

    Where no rule is earlier, and they are not one path written in two ways, none of them is sure.

    Args:
        claims: (name as written, what it finds) by any key; `Found.name` tells files apart.

    Returns:
        By key, empty, or why it is not sure.
    """
    wrong: dict[Key, str] = {}
    for name, keys in grouped(claims, lambda key: claims[key][1].name).items():
        if len(keys) == 1:
            continue
        rank = min(claims[key][1].rank for key in keys)
        paths = {_decoded(claims[key][0]) for key in keys if claims[key][1].rank == rank}
        unsure = rank > _LAST_OF_PATH and len(paths) > 1
        for key in keys:
            written, found = claims[key]
            if unsure:
                wrong[key] = f"{written!r} may be {name}, and so may another name: name its folder"
            elif found.rank > max(rank, _LAST_OF_PATH):
                wrong[key] = ""
    return wrong


def _without_ending(name: str) -> str:
    return name[: len(name) - len(ending_of(name))]


@dataclass(frozen=True)
class Pairs:
    """What belongs together of two sides.

    `of` gives the right name of a left one, `how` counts those found by another rule than the same
    path, `several` are left names that more than one right name fits.
    """

    of: dict[str, str]
    how: dict[str, int]
    several: dict[str, tuple[str, ...]]


def pair(left: Sequence[str], right: Sequence[str]) -> Pairs:
    """Pair names without endings, each at most once: by path first, by name alone where unique.

    Args:
        left, right: `stem_path`s, unique on either side.
    """
    of: dict[str, str] = {}
    how: Counter[str] = Counter()
    several: dict[str, tuple[str, ...]] = {}
    open_left, open_right = list(dict.fromkeys(left)), list(dict.fromkeys(right))
    for rule, (said, key) in enumerate(_RULES):
        if BY_PART <= rule < _NAME_ALONE:
            continue
        # a name alone tells nothing where another file has it too, paired already or not
        alone = rule == _NAME_ALONE
        by_key = grouped(right if alone else open_right, key)
        rivals = Counter(map(key, left if alone else open_left))
        for name in open_left:
            found = by_key.get(key(name), [])
            if alone and len(found) == 1 and of_other_splits(name, found[0]):
                continue
            if len(found) == 1 and rivals[key(name)] == 1:
                of[name] = found[0]
                if said:
                    how[said] += 1
            elif found:
                several[name] = tuple(found)
        taken = set(of.values())
        open_left = [name for name in open_left if name not in of]
        open_right = [name for name in open_right if name not in taken]
    return Pairs(of, how, {name: names for name, names in several.items() if name not in of})
