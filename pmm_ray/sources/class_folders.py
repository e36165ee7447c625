"""Labels from folders that are named by class, as programs for classification keep photographs.

ROOT/CLASS/a.jpg          or   ROOT/images/CLASS/a.jpg
ROOT/SPLIT/CLASS/a.jpg    where every folder at the top is called by a split, see `SPLITS`
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from pmm_ray.labels import normalize_name
from pmm_ray.sources.label_lines import DEFAULT_SPLIT, LabelLine

SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing")
"""What people call the folders of splits, in any case."""


def folder_lines(names: Iterable[str]) -> list[LabelLine]:
    """A line for each photograph in a folder of its class; none for those above such folders.

    Args:
        names: of the photographs, as paths below the folder of photographs.
    """
    parts = {name: name.split("/") for name in names}
    tops = {path[0] for path in parts.values() if len(path) > 1}
    by_split = bool(tops) and all(top.casefold() in SPLITS for top in tops)
    lines = []
    for name, path in parts.items():
        split, folders = (path[0], path[1:-1]) if by_split else (DEFAULT_SPLIT, path[:-1])
        if folders:
            lines.append(LabelLine(name, (normalize_name(folders[0]),), split))
    return lines


def folders_note(lines: Sequence[LabelLine]) -> list[str]:
    """A sentence for a folder without labels, where those of its folders may be meant."""
    counts = Counter(line.labels[0] for line in lines)
    if len(counts) < 2:
        return []
    shown = ", ".join(f"{name} {count}" for name, count in sorted(counts.items())[:5])
    more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
    return [
        f"the photographs are in folders: {shown}{more}; if these are their classes, set "
        "data.labels_from=folders (`pmm data import folder`: --labels-from folders)"
    ]
