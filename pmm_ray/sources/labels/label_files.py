"""A label space by its name or from a file: what `--label-space` and a folder's class list take."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import yaml

from pmm_ray.config.plain_yaml import read_yaml
from pmm_ray.labels import BACKGROUND, COCO14, VOC12, LabelSpace, is_background, normalize_name
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.manifest import open_manifest
from pmm_ray.sources.reading.names import has_ending, join_key
from pmm_ray.sources.reading.text import TextTable, read_lines, read_table_text, read_text

KNOWN = {space.name: space for space in (VOC12, COCO14)}
FILES = {
    "a name a line": "in the order of their ids, or with them (`1 cat`); `#` begins a comment",
    "labelmap.txt": "CVAT: `name:r,g,b:parts:actions`",
    "class_names.txt": "LabelMe: `__ignore__` and `_background_` first",
    ".csv": "columns `id,name`, or Roboflow's `Pixel Value, Class`",
    ".json": "a label space of ours, or COCO-style `categories`",
    ".yaml": "`names`, a list or a mapping from ids (YOLO's data.yaml)",
    ".parquet": "a manifest",
}
"""What a class list may be."""

# CVAT writes the colour of each class behind its name
_LABELMAP = re.compile(r"^(?P<name>.+?):(?P<colour>\d+,\d+,\d+)?:[^:]*:[^:]*$")
# ids that people write before or behind the names
_NUMBERED = (
    re.compile(r"^(?P<id>\d{1,5})\s*[\s:,;=.]\s*(?P<name>\S.*)$"),
    re.compile(r"^(?P<name>.*[^\s:,;=])\s*[\s:,;=]\s*(?P<id>\d{1,5})$"),
)
# of quotes, of lists in one line, and of other programs' blocks and comments
_ODD = re.compile(r"""^["'].*|[,;]$|[{}]|^//""")
# what a list may begin with that no photograph is labelled with: no class, or the list's own name
_NO_CLASSES = {
    *("unlabeled", "unlabelled", "void", "ignore", "_ignore_", "ignored", "none", "背景"),
    *("name", "names", "class", "classes", "label", "labels", "classes:", "names:"),
}
# two of these and no other word name the columns of `1 cat`
_COLUMN_WORDS = {"id", "ids", "index", "value", "name", "names", "class", "classes", "label"}
# LabelMe's mark of what is not labelled, its value -1
_IGNORE = "__ignore__"
_CSV_COLUMNS = (("id", "name"), ("Pixel Value", "Class"))


@dataclass(frozen=True)
class ClassList:
    """A list of classes; `background` is how it spells the background, empty where it has none.

    `colours` are the (r, g, b) of colour masks by contiguous id, empty where it names none.
    """

    space: LabelSpace
    background: str = ""
    colours: tuple[tuple[int, ...], ...] = ()


def read_label_space(word: str) -> LabelSpace:
    """The label space that a word or file names.

    Args:
        word: `voc12`, `coco14`, or a file, see `FILES`.

    Raises:
        CannotRunError: no such name or file, or one that makes no label space.
    """
    if word in KNOWN:
        return KNOWN[word]
    if not storage.exists(storage.absolute(word)):
        raise CannotRunError(
            f"no label space {word!r}: it is one of {', '.join(KNOWN)}, or a file with the names"
        )
    return read_class_list(storage.absolute(word)).space


def read_class_list(uri: str, name: str = "custom") -> ClassList:
    """The classes that a file lists.

    Args:
        uri: see `FILES`.
        name: of the label space.

    Raises:
        CannotRunError: no such file, or one that makes no label space.
    """
    try:
        if has_ending(uri, ".parquet"):
            return ClassList(open_manifest(uri).label_space)
        if has_ending(uri, ".json"):
            return _from_json(read_text(uri), name)
        if has_ending(uri, (".yaml", ".yml")):
            return _from_yaml(read_text(uri), name)
        if has_ending(uri, ".csv"):
            pairs = _id_names(read_table_text(uri, "file of class names"))
            if pairs is None:
                raise ValueError("the first line must name the columns id and name")
            return _of(pairs, name)
        return _from_lines(read_lines(uri), name)
    except (ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError) as error:
        raise CannotRunError(f"{uri} makes no label space: {error}") from error


def class_list(names: Iterable[str], name: str) -> ClassList:
    """Of names in the order of their ids. Raises ValueError if they make no label space."""
    names = list(names)
    if _IGNORE in names:
        raise ValueError(f"{_IGNORE!r} is no class: only LabelMe's lists begin with it")
    first = names[0] if names and is_background(names[0]) else ""
    return ClassList(LabelSpace.from_names(names, name), first)


def _from_lines(lines: list[str], name: str) -> ClassList:
    found = [m for m in map(_LABELMAP.match, lines) if m]
    if 0 < len(found) < len(lines):
        other = next(line for line in lines if not _LABELMAP.match(line))
        raise ValueError(f"{other!r} is no line of a label map, as {found[0][0]!r} is")
    odd = next((line for line in lines if _ODD.search(line)), None)
    if odd is not None:
        raise ValueError(f"{odd!r} is no name alone: write a name a line, without quotes or commas")
    # pandas writes a 0 above a column that has no name
    headed = lines[:1] == ["0"] and not all(map(str.isdecimal, lines))
    words = re.findall(r"[^\W_]+", lines[0].casefold()) if lines else []
    headed = headed or (len(words) > 1 and _COLUMN_WORDS.issuperset(words))
    if headed or (lines and lines[0].casefold() in _NO_CLASSES):
        raise ValueError(
            f"{lines[0]!r} is no class: write `background` if its mask value is 0, else leave it "
            "out"
        )
    if pairs := _numbered(lines):
        return _of(pairs, name)
    if not any(pattern.match(lines[0]) for pattern in _NUMBERED if lines) and _numbered(lines[1:]):
        raise ValueError(
            f"{lines[0]!r} has no id, and all other lines have one: give it one (`0 background`), "
            "or leave it out"
        )
    if len(lines) == 1 and re.search("[,;|\t]", lines[0]):
        raise ValueError(f"{lines[0]!r} is one line: write a name a line")
    if not lines or len(found) < len(lines):
        return class_list(lines[1:] if lines and lines[0] == _IGNORE else lines, name)
    classes = class_list([m["name"] for m in found], name)
    colours = [tuple(map(int, m["colour"].split(","))) for m in found if m["colour"]]
    if len(colours) < len(found):
        return classes
    if not classes.background:
        colours.insert(0, (0, 0, 0))
    if len(set(colours)) < len(colours):
        raise ValueError("two classes have one colour")
    return replace(classes, colours=tuple(colours))


def _numbered(lines: list[str]) -> list[tuple[int, str]]:
    """The numbers and names of lines such as `0 background`, `1: cat` or `cat,1`; else none.

    Numbers go up by one from 0 or 1, or one of them is the background's 0. Names that are one
    without them are names: `part 1`, `part 2`. So are those with a space and other numbers behind
    them: `boeing 737`, `airbus 320`.

    Raises:
        ValueError: other numbers, which may be ids or belong to the names.
    """
    for pattern in _NUMBERED:
        found = [m for m in map(pattern.match, lines) if m]
        numbers, names = [int(m["id"]) for m in found], {m["name"] for m in found}
        sure = all(re.match(r"\s*[:,;=.\t]", m[0][m.end("id") :]) for m in found)
        if pattern is _NUMBERED[0] and sure and len(found) == len(lines) > len(set(numbers)):
            raise ValueError(f"an id stands there twice: {sorted(numbers)[:12]}")
        if not len(names) == len(set(numbers)) == len(lines) > 1:
            continue
        first = min(numbers)
        in_order = first < 2 and numbers == list(range(first, first + len(lines)))
        zero = any(int(m["id"]) == 0 and is_background(m["name"]) for m in found)
        if in_order or zero:
            return [(int(m["id"]), m["name"]) for m in found]
        if pattern is _NUMBERED[0] or all(m[0][m.end("name")] != " " for m in found):
            raise ValueError(
                f"{lines[0]!r} and {lines[1]!r}: are {numbers[:5]} ids, or parts of the names? "
                "Write a .csv with the columns id,name"
            )
    return []


def _from_json(text: str, name: str) -> ClassList:
    content = json.loads(text)
    if isinstance(content, dict) and "categories" in content:
        pairs = [(int(join_key(c["id"])), _text(c["name"])) for c in content["categories"]]
        return _of(pairs, name)
    return ClassList(LabelSpace.from_json(text))


def _from_yaml(text: str, name: str) -> ClassList:
    content: Any = read_yaml(text)
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise ValueError(f"`names` has the ids {[*names][:12]}, not 0, 1, 2, ...")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list):
        raise ValueError("there is no list `names`")
    count = content.get("nc", len(names))
    if count != len(names):
        raise ValueError(f"`nc` is {count}, and there are {len(names)} `names`")
    return class_list(map(_text, names), name)


def _text(word: Any) -> str:
    """A name as text; YAML reads `no`, `on` and `1.10` as something else."""
    if not isinstance(word, (str, int)) or isinstance(word, bool):
        raise ValueError(f"the name {word!r} is no text: put it in quotes")
    return str(word)


def _id_names(table: TextTable) -> list[tuple[int, str]] | None:
    """(mask value, name) of each line of a table; None where its columns are others.

    Raises:
        ValueError: a line without either.
    """
    pair = next((pair for pair in _CSV_COLUMNS if set(pair) <= set(table.columns)), None)
    if pair is None:
        return None
    found = []
    for line in table.lines:
        number, text = (line.cells[column] for column in pair)
        if not number.isdecimal() or not text:
            raise ValueError(f"line {line.number} is no id (a mask value) and a name")
        found.append((int(number), text))
    return found


def class_pairs(table: TextTable) -> dict[int, str] | None:
    """Name by mask value, without the background, of a table of ids and names; None of another.

    Raises:
        ValueError: a line without either, or an id that has two names.
    """
    pairs = _id_names(table)
    return None if pairs is None else _without_background(pairs)[0]


def _without_background(pairs: list[tuple[int, str]]) -> tuple[dict[int, str], str]:
    """(classes by mask value, how the background is spelt, which may stand among them as 0)."""
    name_of: dict[int, str] = {}
    for number, text in pairs:
        known = name_of.setdefault(number, normalize_name(text))
        if known != normalize_name(text):
            raise ValueError(f"the id {number} is {known!r} and {text!r}")
    for number, text in name_of.items():
        if number and is_background(text):
            raise ValueError(f"{text!r} has the id {number}: the background must be 0")
    background = name_of.pop(0, "")
    if background and not is_background(background):
        raise ValueError(f"the id 0 is {background!r}: it must be the background")
    return {number: name_of[number] for number in sorted(name_of)}, background


def _of(pairs: list[tuple[int, str]], name: str) -> ClassList:
    classes, background = _without_background(pairs)
    return ClassList(LabelSpace(name, (BACKGROUND, *classes.values()), (0, *classes)), background)
