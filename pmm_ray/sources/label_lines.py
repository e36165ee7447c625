"""The labels of photographs in a CSV file: one line for each, classes separated by `;`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from pmm_ray.labels import BACKGROUND, LabelSpace, is_background, normalize_name
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.names import NameIndex
from pmm_ray.sources.text import TableLine, TextTable, read_table_text

DEFAULT_SPLIT = "train"
SEPARATOR = ";"
_FILE_NAME = "filename"
_MARKS = {"0": False, "1": True, "0.0": False, "1.0": True}
_LABEL_COLUMNS = ("labels", "label")
# in no class name of the field, and what people separate classes by
_OTHER_SEPARATORS = ",|[]{}\t\n"


@dataclass(frozen=True)
class LabelLine:
    """A line of the CSV file; `fault` says what is wrong with it."""

    name: str
    labels: tuple[str, ...]
    split: str
    fault: str = ""


def read_labels_csv(uri: str, folder: str = "") -> list[LabelLine]:
    """The lines of a CSV file with the columns image_id and labels (or label), and maybe split.

    Roboflow's `_classes.csv` is read as well: `filename`, and a column of 0 and 1 for each class.

    Args:
        uri: of the file.
        folder: of Roboflow's: its photographs are there, and it is the name of their split.

    Raises:
        CannotRunError: no such file, no text, or without those columns.
    """
    table = read_table_text(uri, "labels file")
    lines = _lines_of_marks(table) if _FILE_NAME in table.columns else label_lines(uri, table)
    if not folder:
        return lines
    return [replace(line, name=f"{folder}/{line.name}", split=folder) for line in lines]


def _lines_of_marks(table: TextTable) -> list[LabelLine]:
    """The lines of a table with a column of 0 and 1 for each class."""
    lines = []
    for line in table.lines:
        marks = {normalize_name(n): cell for n, cell in line.cells.items() if n != _FILE_NAME}
        odd = {cell for cell in marks.values() if cell not in _MARKS}
        fault = f"line {line.number} of the CSV holds {sorted(odd)}, not 0 or 1" if odd else ""
        labels = tuple(name for name, cell in marks.items() if _MARKS.get(cell))
        name = line.cells[_FILE_NAME] or f"line-{line.number}"
        lines.append(LabelLine(name, labels, DEFAULT_SPLIT, fault))
    return lines


def label_lines(uri: str, table: TextTable) -> list[LabelLine]:
    """As `read_labels_csv`, of a table that is read already."""
    labels = next((column for column in _LABEL_COLUMNS if column in table.columns), None)
    if "image_id" not in table.columns or labels is None:
        raise CannotRunError(
            f"{uri}: the first line must name the columns image_id and labels, separated by ','; "
            f"it names {list(table.columns)}"
        )
    return [_line(line, labels) for line in table.lines]


def _line(line: TableLine, label_column: str) -> LabelLine:
    words = [normalize_name(word) for word in line.cells[label_column].split(SEPARATOR)]
    words = [word for word in words if word]
    fault = ""
    if line.surplus:
        fault = (
            f"line {line.number} of the CSV has more columns than its first: "
            f"separate the classes of an image by {SEPARATOR!r}"
        )
    elif not line.cells["image_id"]:
        fault = f"line {line.number} of the CSV names no image"
    elif len(set(words)) < len(words) and set(words) <= {"0", "1"}:
        fault = f"line {line.number} of the CSV holds {words}, 0 or 1 a class: write the names"
    return LabelLine(
        name=line.cells["image_id"] or f"line-{line.number}",
        labels=tuple(words),
        split=line.cells.get("split", "") or DEFAULT_SPLIT,
        fault=fault,
    )


def names_of(lines: Iterable[LabelLine]) -> list[str]:
    """The classes that sound lines name, sorted; the background is none."""
    sound = (line for line in lines if not line.fault and not separator_in(line.labels))
    return sorted({name for line in sound for name in line.labels if not is_background(name)})


def separator_in(labels: Sequence[str]) -> str:
    """What is wrong with labels that no list of classes names; empty where nothing is."""
    for label in labels:
        used = next((char for char in _OTHER_SEPARATORS if char in label), None)
        if used is not None:
            return (
                f"the label {label!r} holds {used!r}: separate the classes of an image by "
                f"{SEPARATOR!r}, or name this class in classes.txt"
            )
    return ""


def label_ids(line: LabelLine, space: LabelSpace, *, listed: bool) -> list[int]:
    """The contiguous ids of a line.

    Args:
        listed: whether a list names them; else they are those that the CSV uses.

    Raises:
        ValueError: a faulty line, or a label that is no class.
    """
    fault = line.fault or ("" if listed else separator_in(line.labels))
    if fault:
        raise ValueError(fault)
    ids = [space.id_of(name) for name in line.labels]
    if 0 in ids:
        raise ValueError(f"{BACKGROUND!r} is no label: every photograph has some")
    return ids


@dataclass(frozen=True)
class JoinedLines:
    """The lines of each photograph by its name; `missed` are those of no photograph."""

    of: dict[str, LabelLine]
    missed: tuple[LabelLine, ...]
    notes: tuple[str, ...]


def join_lines(
    lines: Sequence[LabelLine], index: NameIndex, spellings: Callable[[str], Sequence[str]]
) -> JoinedLines:
    """Find the photograph of each line.

    Two lines of one photograph must say the same, else it gets a line with a fault.

    Args:
        index: of the photographs' names.
        spellings: the ways to look a written name up, the best first.
    """
    of: dict[str, LabelLine] = {}
    missed: list[LabelLine] = []
    how: dict[str, int] = {}
    repeated = 0
    for line in lines:
        try:
            found = next(filter(None, (index.find(way) for way in spellings(line.name))), None)
        except ValueError as error:
            missed.append(LabelLine(line.name, line.labels, line.split, str(error)))
            continue
        if found is None:
            missed.append(line)
            continue
        if found.how:
            how[found.how] = how.get(found.how, 0) + 1
        earlier = of.setdefault(found.name, line)
        if earlier is not line:
            repeated += 1
            if (set(earlier.labels), earlier.split) != (set(line.labels), line.split):
                fault = "the CSV names it twice, and not alike"
                of[found.name] = LabelLine(line.name, (), earlier.split, fault)
    notes = [f"names of the CSV found {rule}: {count}" for rule, count in how.items()]
    notes += [f"lines of the CSV that name a photograph again: {repeated}"] if repeated else []
    return JoinedLines(of, tuple(missed), tuple(notes))
