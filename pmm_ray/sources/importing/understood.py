"""What an import understood, as lines for people: the one text of the console and of the report."""

from __future__ import annotations

import difflib
import re
import textwrap
from collections import Counter
from collections.abc import Mapping, Sequence

from pmm_ray.runtime.core.storage import printable
from pmm_ray.sources.importing.import_report import ImportReport
from pmm_ray.sources.reading.names import grouped

_WIDTH = 100
_JOINT = re.compile(r"[/+&]|\band\b")


def understood(report: ImportReport) -> list[str]:
    """One line for each thing: labels, background, classes with counts, splits, what missed."""
    there = report.manifest.splits
    splits = list(dict.fromkeys([*(s for s in report.asked if s in there), *there]))
    lines = [f"labels: {report.labels_from}"] if report.labels_from else []
    if report.background:
        lines.append(f"background: {report.background!r} of the source is value 0, no class")
    empty = [name for name, counts in report.classes.items() if not counts]
    if len(empty) == len(report.classes):
        nameless = empty == [f"class {i}" for i in range(1, len(empty) + 1)]
        called = f"class 1 to class {len(empty)}: nothing names them" if nameless else ""
        lines.append(f"no image has a label; the classes are {called or ', '.join(empty)}")
    else:
        of = " + ".join(splits)
        lines.append(f"classes with their images ({of}): {_classes(report.classes, splits)}")
    if empty and len(empty) < len(report.classes):
        lines.append(f"classes without an image: {', '.join(empty)}")
    lines += unused_splits(report.manifest.splits, report.asked)
    lines += near_names(list(report.classes))
    return [printable(line) for line in (*lines, *report.notes)]


def console(report: ImportReport) -> str:
    """`understood` as text, complete whatever the width of the terminal or file."""
    wrapped = (
        textwrap.fill(line, _WIDTH, subsequent_indent="  ", break_long_words=False)
        for line in understood(report)
    )
    return "\n".join(wrapped)


def unused_splits(splits: Mapping[str, int], asked: Sequence[str]) -> list[str]:
    """A line for each split that no stage will use, with the one that may have been meant."""
    if not asked:
        return []
    lines = []
    for name, count in splits.items():
        if name in asked:
            continue
        images = "image" if count == 1 else "images"
        verb = "is" if count == 1 else "are"
        line = f"{count} {images} of split {name} {verb} in neither {' nor '.join(asked)}"
        missing = [split for split in asked if split not in splits]
        near = difflib.get_close_matches(name.casefold(), missing, n=1, cutoff=0.3)
        near = near or [s for s in missing if s and name.casefold().startswith(s.casefold()[:3])]
        keys = dict(zip(asked, ("data.train_split", "data.held_out_split"), strict=False))
        if near and near[0] in keys:
            line += f": if it is meant as {near[0]}, set {keys[near[0]]}={name}"
        lines.append(line)
    lines += [f"no image is of split {name}" for name in asked if name not in splits]
    return lines


def near_names(names: Sequence[str]) -> list[str]:
    """A line for classes that may be one, written in two ways: in another case, or as a plural.

    And one for each class whose name is made of parts of others: `dog/cat` beside `cat/dog`.
    """

    def key(name: str) -> str:
        return "".join(filter(str.isalnum, name.casefold())).removesuffix("s") or name

    known = set(names)
    joined = [name for name in names if len(_parts(name)) > 1 and _parts(name) <= known]
    of_words = Counter(part for name in names for part in set(name.split()))
    shared = [n for n in names if len(n.split()) > 1 and all(of_words[p] > 1 for p in n.split())]
    # tags in one text, of which none stands alone; two such names are a `traffic light` and another
    joined += [name for name in shared if name not in joined] if len(shared) > 2 else []
    for name in filter(_JOINT.search, names):
        others = set[str]().union(*map(_parts, known - {name}))
        joined += [name] if name not in joined and _parts(name) <= others else []
    several = [
        f"is {name!r} several classes? Separate the classes of an image by ';'" for name in joined
    ]
    return several + [
        f"are these one class? {', '.join(repr(name) for name in found)}"
        for found in grouped(names, key).values()
        if len(found) > 1
    ]


def _parts(name: str) -> set[str]:
    return {part for part in re.split(r"[\s/+&]+|\band\b", name) if part}


def _classes(classes: Mapping[str, Mapping[str, int]], splits: Sequence[str]) -> str:
    shown = (
        f"{name} " + " + ".join(str(counts.get(split, 0)) for split in splits)
        for name, counts in classes.items()
    )
    return ", ".join(shown)
