"""The labels of photographs in a CSV file: one line for each, classes separated by `;`."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pmm_ray.labels import BACKGROUND, LabelSpace, is_background, normalize_name
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.labels.label_columns import bits_in
from pmm_ray.sources.reading.cells import (
    SEPARATOR,
    is_empty,
    is_sheet_fault,
    marks_in,
    no_class,
    no_class_in_cell,
    say_yes_or_no,
    visible,
)
from pmm_ray.sources.reading.split_names import is_split
from pmm_ray.sources.reading.text import TableLine, TextTable, read_table_text

DEFAULT_SPLIT = "train"
COLUMNS = {
    "image_id": ("image_id", "file_name", "image", "file"),
    "labels": ("labels", "label", "classes", "class"),
    "split": ("split", "subset"),
}
"""What people call the columns, in any case, with `_`, `-`, a space or nothing between the words.
Two of one kind must say the same in every line."""
LABEL_COLUMN = "data.label_column, `pmm data import`: --label-column"
"""How a user names the column of labels."""
_WHOLE = re.compile(r"^(\d+)\.0+$")
# of a second column of labels, as people and pandas number them
_NUMBERED = re.compile(r"^(.+?)[ ._-]?\d+$")
# 0 or 1 of these says whether the label of the line is there at all
_PRESENCE = {"confidence", "present", "presence", "positive", "exists"}
# beside these `train` is a class, as in VOC and COCO
_VEHICLES = {"aeroplane", "airplane", "bicycle", "bike", "boat", "bus", "car", "truck", "tram"}
_VEHICLES |= {"motorbike", "motorcycle"}
_NUMBER = re.compile(r"[-+]?(?:\d+(?:[.,]\d+)?|[.,]\d+)(?:e[-+]?\d+)? ?%?", re.IGNORECASE)
_SCORES = " (scores and counts are not labels)"


@dataclass(frozen=True)
class LabelLine:
    """A line of the CSV file; `fault` says what is wrong with it.

    `unlisted` says so where no list names the classes; `split` is empty where the line names none;
    `blank` is the word of an empty cell, such as `none`, which a list of classes may name;
    `columns` are the classes that the first line of the CSV names, if it does; `unread` the
    columns that say nothing to us.
    """

    name: str
    labels: tuple[str, ...]
    split: str
    fault: str = ""
    unlisted: str = ""
    blank: str = ""
    columns: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()

    def labels_in(self, space: LabelSpace) -> tuple[str, ...]:
        """The labels, where the classes are known."""
        return (self.blank,) if self.blank in space.names else self.labels


def read_labels_csv(uri: str, folder: str, label_column: str) -> list[LabelLine]:
    """The lines of a CSV file with the columns image_id and labels (or label), and maybe split.

    Without a column of labels each other column is a class, with 0 or 1 (or false, true, no, yes,
    see `marks_in`) in each line, as in Roboflow's `_classes.csv`. See `COLUMNS` for other names of
    the columns.

    Args:
        uri: of the file.
        folder: of Roboflow's: its photographs are there, and it is the name of their split; else
            empty.
        label_column: that of the labels, in place of those of `COLUMNS`; or empty.

    Raises:
        CannotRunError: no such file, no text, without those columns, with two that differ, or
            with cells that name no class.
    """
    lines = label_lines(uri, read_table_text(uri, "labels file"), label_column)
    if not folder:
        return lines
    return [replace(line, name=f"{folder}/{line.name}", split=folder) for line in lines]


def label_lines(uri: str, table: TextTable, label_column: str = "") -> list[LabelLine]:
    """As `read_labels_csv`, of a table that is read already."""
    known = COLUMNS | ({"labels": (label_column,)} if label_column else {})
    places = {name: _only(uri, table, names) for name, names in known.items()}
    if label_column and not places["labels"]:
        raise CannotRunError(f"{uri} has no column {label_column!r}: it has {list(table.columns)}")
    image, labels, split = places["image_id"], places["labels"], places["split"]
    others = [column for column in table.columns if column not in (image, labels, split)]
    split = split or _column_of_splits(uri, table, others)
    others = [column for column in others if column not in ("", split)]
    said = marks_in([line.cells[column] for line in table.lines] for column in others)
    marks = [column for column in others if _are_marks(table, column, said)]
    if image and not labels and _all_marks(table, marks, said):
        _check_marks(uri, table, others, marks)
        return [_marked(line, image, split, others, said) for line in table.lines]
    if image and not labels:
        _check_like_marks(uri, table, others)
    if not image or not labels:
        raise CannotRunError(
            f"{uri}: the first line must name the columns image_id and labels, separated by ','; "
            f"it names {list(table.columns)} ({LABEL_COLUMN} names another column of labels; "
            "without one, each other column is a class and holds 1 or 0)"
        )
    _check_others(uri, table, (labels, split), others, said)
    lines = [
        replace(_line(line, image, labels, split), unread=tuple(others)) for line in table.lines
    ]
    words = {label for line in lines for label in line.labels}
    if say_yes_or_no(words):
        raise CannotRunError(
            f"{uri}: its column {labels!r} holds only {sorted(words)}, which name no class: write "
            "the names of the classes, or a column of 0 and 1 for each class with its name above"
        )
    if count := bits_in(";".join(line.labels) for line in lines):
        # each line alone could be two classes called 0 and 1
        raise CannotRunError(
            f"{uri}: its labels are 0 or 1 for each of {count} classes: write the names of "
            "the classes, or a column of 0 and 1 for each class with its name above"
        )
    return lines


def _key(column: str) -> str:
    return re.sub(r"[\s_-]", "", column.casefold())


def _only(uri: str, table: TextTable, names: Sequence[str]) -> str:
    """The column that one of these names means, in any case; empty where there is none."""
    columns = [column for name in names for column in table.columns if _key(column) == _key(name)]
    if len({_key(column) for column in columns}) < len(columns):
        raise CannotRunError(f"{uri}: its first line names {columns} twice: keep one of them")
    for other in columns[1:]:
        line = next((x for x in table.lines if x.cells[other] != x.cells[columns[0]]), None)
        if line is not None:
            hint = f", or say which one counts ({LABEL_COLUMN})" if "labels" in names else ""
            raise CannotRunError(
                f"{uri}: the columns {columns[0]!r} and {other!r} mean one thing and differ in "
                f"line {line.number}, {line.cells[columns[0]]!r} and {line.cells[other]!r}: keep "
                f"one of them{hint}"
            )
    return columns[0] if columns else ""


def _column_of_splits(uri: str, table: TextTable, columns: Sequence[str]) -> str:
    """The column that holds names of splits in every line, whatever it is called; or empty."""
    found = [
        column
        for column in columns
        if table.lines and all(is_split(line.cells[column]) for line in table.lines)
    ]
    return _only(uri, table, found)


def _check_others(
    uri: str,
    table: TextTable,
    known: tuple[str, str],
    others: Sequence[str],
    said: Mapping[str, bool],
) -> None:
    """Refuse columns beside those of the labels and splits which say more of them."""
    labels, split = known
    numbered = _NUMBERED.match(labels)
    base = _key(numbered[1] if numbered else labels)
    for column in others:
        match = _NUMBERED.match(column)
        if match and _key(match[1]) == base and any(line.cells[column] for line in table.lines):
            raise CannotRunError(
                f"{uri}: {labels!r} and {column!r} both hold labels: write the classes of an image "
                f"into one cell, separated by {SEPARATOR!r}"
            )
        if {said.get(line.cells[column]) for line in table.lines} != {False, True}:
            continue
        if _key(column) in _PRESENCE:
            raise CannotRunError(
                f"{uri}: {column!r} says for some lines that their label is absent: leave them "
                "out, and the column"
            )
        if _is_held_out(column) and not split:
            raise CannotRunError(
                f"{uri}: the column {column!r} is not read: if it says which images are held out, "
                "write a column split with train and val, else take it out"
            )


def _is_held_out(column: str) -> bool:
    """Whether a column is called by what says which images are held out: `val`, `is_test`."""
    word = re.sub(r"^(?:(?i:is|in|for)[ _-]+|[iI]s(?=[A-Z]))", "", column)
    return is_split(word) or _key(word) in ("holdout", "heldout", "eval")


def _all_marks(table: TextTable, columns: Sequence[str], said: Mapping[str, bool]) -> bool:
    """Whether most cells of the columns are 0 or 1."""
    cells = [line.cells[column] for line in table.lines for column in columns]
    marks = sum(cell in said for cell in cells)
    return marks > 0 and marks * 2 >= len(cells)


def _are_marks(table: TextTable, column: str, said: Mapping[str, bool]) -> bool:
    """Whether a column may be a class: marked or not in some of its lines."""
    cells = [line.cells[column] for line in table.lines]
    filled = [cell for cell in cells if cell]
    marks = sum(cell in said for cell in filled)
    # odd cells are the fault of their lines, and one line tells nothing of its column
    return bool(filled) and (marks * 2 >= len(filled) or len(cells) == 1)


def _held(table: TextTable, columns: Sequence[str]) -> Counter[str]:
    """The words of columns, each with the number of columns that hold it."""
    found = ({line.cells[column] for line in table.lines} - {""} for column in columns)
    return Counter(cell for cells in found for cell in cells)


def _check_like_marks(uri: str, table: TextTable, columns: Sequence[str]) -> None:
    """Refuse columns that seem to be one for each class, where what they hold is not 0 or 1."""
    held = _held(table, columns)
    numbers = all(map(_NUMBER.fullmatch, held))
    if len(columns) > 1 and held and (numbers or (len(held) < 5 and max(held.values()) > 1)):
        raise CannotRunError(
            f"{uri} has no column of labels, so {columns[:5]} would be classes, and they hold "
            f"{sorted(held)[:4]}: write 1 or 0 in each cell{_SCORES if numbers else ''}; if one "
            f"of them names the classes, say which ({LABEL_COLUMN})"
        )


def _check_marks(uri: str, table: TextTable, columns: Sequence[str], marks: Sequence[str]) -> None:
    """Refuse a column that is no class, and two of one name."""
    strange = [column for column in columns if column not in marks]
    if strange:
        held = _held(table, strange)
        instead = f", not {sorted(held)[:4]}" if held else ""
        numbers = _SCORES if any(map(_NUMBER.fullmatch, held)) else ""
        raise CannotRunError(
            f"{uri}: {marks[:5]} hold 0 or 1 for each image and are classes, {strange[:5]} do not: "
            "take these out, or write 1 or 0 in each cell if they are classes, too"
            f"{instead}{numbers}; a column that names the classes is called `labels`"
        )
    vehicles = not _VEHICLES.isdisjoint(map(str.casefold, columns))
    for column in columns:
        is_train = vehicles and column.casefold() == "train"
        if re.match(r"is[_ ]", column.casefold()) or (_is_held_out(column) and not is_train):
            raise CannotRunError(
                f"{uri}: the column {column!r} is called as no class is: take it out; a column "
                "split with train and val says which images are held out, and a class of this "
                "name belongs into a column labels"
            )
    names = Counter(map(normalize_name, columns))
    twice = [name for name, count in names.items() if count > 1]
    if twice:
        raise CannotRunError(f"{uri}: its first line names {twice[0]!r} twice: keep one of them")


def _marked(
    line: TableLine, image: str, split: str, columns: Sequence[str], said: Mapping[str, bool]
) -> LabelLine:
    cells = {normalize_name(name): line.cells[name] for name in columns}
    odd = sorted({cell for cell in cells.values() if cell not in said})
    column = next((name for name, cell in cells.items() if cell in odd), "")
    fault = ""
    if line.surplus:
        fault = f"line {line.number} of the CSV has {line.surplus} below no name of a column"
    elif odd:
        fault = (
            f"line {line.number} of the CSV holds {odd}, not 0 or 1, below {column!r}: write these"
        )
    labels = tuple(name for name, cell in cells.items() if said.get(cell))
    return LabelLine(
        line.cells[image] or f"line-{line.number}",
        labels,
        line.cells[split] if split else "",
        fault,
        unlisted_fault(labels),
        columns=tuple(cells),
    )


def _line(line: TableLine, image: str, label_column: str, split: str) -> LabelLine:
    words = [normalize_name(word) for word in line.cells[label_column].split(SEPARATOR)]
    # numbers of a spreadsheet: 1.0 is 1
    words = [_WHOLE.sub(r"\1", word) for word in words if visible(word)]
    blank = ""
    if len(words) == 1 and is_empty(words[0]):
        blank, words = words[0], []
    fault = ""
    if line.surplus:
        fault = (
            f"line {line.number} of the CSV has {line.surplus} below no name of a column: "
            f"separate the classes of an image by {SEPARATOR!r}, in quotes where that separates "
            "the columns, too"
        )
    elif not line.cells[image]:
        fault = f"line {line.number} of the CSV names no image"
    elif any(map(is_sheet_fault, words)):
        fault = f"line {line.number} of the CSV holds {words}, an error of the spreadsheet"
        words = []
    elif len(set(words)) < len(words) and set(words) <= {"0", "1"}:
        fault = f"line {line.number} of the CSV holds {words}, 0 or 1 a class: write the names"
    return LabelLine(
        name=line.cells[image] or f"line-{line.number}",
        labels=tuple(words),
        split=line.cells[split] if split else "",
        fault=fault,
        unlisted=unlisted_fault(words, no_class_in_cell),
        blank=blank,
    )


def names_of(lines: Iterable[LabelLine]) -> list[str]:
    """The classes that sound lines name, sorted, numbers as such; the background is none.

    Where the first line of the CSV names them, they are those, in its order, marked or not.
    """
    lines = list(lines)
    named = dict.fromkeys(name for line in lines for name in line.columns)
    if named:
        return [name for name in named if not is_background(name)]
    sound = (line for line in lines if not line.fault and not line.unlisted)
    found = {name for line in sound for name in line.labels if not is_background(name)}
    return sorted(found, key=int) if all(map(str.isdecimal, found)) else sorted(found)


def unlisted_fault(labels: Sequence[str], odd: Callable[[str], str] = no_class) -> str:
    """What is wrong with labels that no list of classes names; empty where nothing is.

    Args:
        odd: why a label alone is no class.
    """
    for label in labels:
        if len(labels) > 1 and is_empty(label):
            return (
                f"the label {label!r} beside others is how an empty cell is written: leave it out, "
                "or name this class in classes.txt"
            )
        if fault := odd(label):
            return fault
    return ""


def label_ids(line: LabelLine, space: LabelSpace, *, listed: bool) -> list[int]:
    """The contiguous ids of a line.

    Args:
        listed: whether a list names them; else they are those that the CSV uses.

    Raises:
        ValueError: a faulty line, or a label that is no class.
    """
    fault = line.fault or ("" if listed else line.unlisted)
    if fault:
        raise ValueError(fault)
    try:
        ids = [space.id_of(name) for name in line.labels_in(space)]
    except ValueError as error:
        # says more than the nearest name
        raise ValueError(line.unlisted or str(error)) from error
    if 0 in ids:
        raise ValueError(f"{BACKGROUND!r} is no label: every photograph has some")
    return ids
