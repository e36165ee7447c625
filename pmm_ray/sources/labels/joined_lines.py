"""The lines of a table of labels beside the photographs that they are of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pmm_ray.sources.labels.label_lines import LabelLine
from pmm_ray.sources.reading.cells import SEPARATOR
from pmm_ray.sources.reading.names import NameIndex


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
    how: Counter[str] = Counter()
    repeated = 0
    found, unsure = index.find_all((line.name for line in lines), spellings)
    for line in lines:
        file = found.get(line.name)
        if file is None:
            missed.append(replace(line, fault=unsure.get(line.name) or line.fault))
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
    return JoinedLines(of, tuple(missed), tuple(notes))
