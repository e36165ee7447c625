"""The lines of a table of labels beside the photographs that they are of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pmm_ray.sources.importing.photographs import IMAGE_FOLDERS
from pmm_ray.sources.labels.label_lines import LabelLine
from pmm_ray.sources.reading.cells import SEPARATOR
from pmm_ray.sources.reading.names import NameIndex, Unsure, clean_path


@dataclass(frozen=True)
class JoinedLines:
    """The line of each photograph by its name, with a fault where one may mean it or another;
    `missed` are those of no photograph."""

    of: dict[str, LabelLine]
    missed: tuple[LabelLine, ...]
    notes: tuple[str, ...]


def join_lines(lines: Sequence[LabelLine], index: NameIndex) -> JoinedLines:
    """Find the photograph of each line.

    Two lines of one photograph must say the same, else it gets a line with a fault. So do all
    photographs that a line may mean, where it may mean several.

    Args:
        index: of the photographs' names.
    """
    of: dict[str, LabelLine] = {}
    missed: list[LabelLine] = []
    how: Counter[str] = Counter()
    repeated = 0
    found, unsure = index.find_all((line.name for line in lines), spellings)
    for line in lines:
        file = found.get(line.name)
        if file is None:
            missed.append(line)
            continue
        if file.how:
            how[file.how] += 1
        earlier = of.setdefault(file.name, line)
        if earlier is not line:
            repeated += 1
            if (set(earlier.labels), earlier.split) != (set(line.labels), line.split):
                fault = (
                    "the CSV names it twice, and not alike: all classes of an image belong into "
                    f"one line, separated by {SEPARATOR!r}"
                )
                of[file.name] = LabelLine(line.name, (), earlier.split, fault)
    notes = [f"names of the CSV found {rule}: {count}" for rule, count in how.items()]
    if unread := dict.fromkeys(column for line in lines for column in line.unread):
        notes.append(f"columns of the CSV that are not read: {', '.join(unread)}")
    notes += [f"lines of the CSV that name a photograph again: {repeated}"] if repeated else []
    marked = _mark(of, missed, unsure)
    missed = [
        replace(line, fault=unsure[line.name].why or line.fault) if line.name in unsure else line
        for line in missed
        if line.name not in marked
    ]
    return JoinedLines(of, tuple(missed), tuple(notes))


def _mark(
    of: dict[str, LabelLine], missed: Sequence[LabelLine], unsure: Mapping[str, Unsure]
) -> set[str]:
    """Give all photographs that lines may mean, and that have none, a line with the fault.

    Returns:
        The names of these lines, as they are written.
    """
    named = frozenset(of)
    # lines that mean the same files share one tuple: each is gone through once
    unnamed: dict[int, list[str]] = {}
    marked: set[str] = set()
    for line in missed:
        if line.name not in unsure:
            continue
        why, names = unsure[line.name].why, unsure[line.name].names
        if id(names) not in unnamed:
            unnamed[id(names)] = [name for name in names if name not in named]
            for name in unnamed[id(names)]:
                of.setdefault(name, LabelLine(line.name, (), "", why))
        if unnamed[id(names)]:
            marked.add(line.name)
    return marked


def spellings(written: str) -> tuple[str, ...]:
    """The ways to look up a name as it stands in a CSV, the best first.

    Below the folder of photographs if it begins with that, in any case and on any system. A
    spreadsheet makes `7.0` of the name 7.
    """
    beginnings = tuple(f"{folder}/" for folder in IMAGE_FOLDERS)
    path = clean_path(written)
    begins = path.casefold().startswith
    below = next((path[len(b) :] for b in beginnings if begins(b.casefold())), None)
    ways = (written,) if below is None else (below, written)
    number = written.removesuffix(".0")
    return (*ways, number) if number != written and number.isdecimal() else ways
