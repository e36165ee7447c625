"""The lines of a table of labels beside the photographs that they are of."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pmm_ray.sources.importing.photographs import IMAGE_FOLDERS
from pmm_ray.sources.labels.label_lines import LabelLine
from pmm_ray.sources.reading.cells import SEPARATOR
from pmm_ray.sources.reading.names import NameIndex, clean_path


@dataclass(frozen=True)
class JoinedLines:
    """The lines of each photograph by its name; `missed` are those of no photograph."""

    of: dict[str, LabelLine]
    missed: tuple[LabelLine, ...]
    notes: tuple[str, ...]

    def unsure(self, photographs: Iterable[str]) -> dict[str, LabelLine]:
        """The lines that may be of photographs which none is sure to name, by the photographs."""
        written = {way: line for line in self.missed if line.fault for way in spellings(line.name)}
        index = NameIndex(written)
        found: dict[str, LabelLine] = {}
        for name in photographs:
            with contextlib.suppress(ValueError):  # of several such lines none is its own
                if name not in self.of and (line := index.find(name)):
                    found[name] = written[line.name]
        return found


def join_lines(lines: Sequence[LabelLine], index: NameIndex) -> JoinedLines:
    """Find the photograph of each line.

    Two lines of one photograph must say the same, else it gets a line with a fault.

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
