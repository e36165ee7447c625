"""Labels from folders that are named by class, as programs for classification keep photographs.

ROOT/CLASS/a.jpg          or   ROOT/images/CLASS/a.jpg
ROOT/SPLIT/CLASS/a.jpg    or   ROOT/CLASS/SPLIT/a.jpg, with folders called by a split

`seg_train` and `seg_test` are such folders, too, if all at the top have the same words around it.
"""

from __future__ import annotations

import hashlib
import itertools
import posixpath
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from pmm_ray.labels import normalize_name
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.labels.label_lines import DEFAULT_SPLIT, LabelLine, unlisted_fault
from pmm_ray.sources.reading.cells import SEPARATOR
from pmm_ray.sources.reading.names import grouped
from pmm_ray.sources.reading.split_names import affixed_splits, differ_by_split, is_split

# folders of other layouts, which hold photographs of all classes
_NO_CLASSES = {"images", "jpegimages", "labels", "annotations", "masks"}
_HOW = "folders named by class are ROOT/CLASS/a.jpg or ROOT/SPLIT/CLASS/a.jpg"


def folder_lines(names: Iterable[str]) -> list[LabelLine]:
    """A line for each photograph in a folder of its class; none for those above such folders.

    Args:
        names: of the photographs, as paths below the folder of photographs.

    Raises:
        CannotRunError: folders that may be read in two ways, or that are no classes.
    """
    folders = {name: name.split("/")[:-1] for name in names}
    inside = {name: path for name, path in folders.items() if path}
    if all(path[:1] == path[1:2] for path in inside.values()):
        # as unpacking makes it: seg_train/seg_train
        inside = {name: path[1:] for name, path in inside.items()}
    placed = _by_split(inside) or _split_below(inside)
    if placed is None:
        placed = {name: (DEFAULT_SPLIT, path) for name, path in inside.items()}
    lines = []
    for name, (split, path) in placed.items():
        if path:
            label = normalize_name(path[0])
            fault = (
                f"the folder {path[0]!r} has no name of one class: call it otherwise; a photograph "
                "of several classes needs a CSV"
            )
            several = unlisted_fault((label,)) or SEPARATOR in label
            lines.append(LabelLine(name, (label,), split, fault if several else ""))
    _check({path[0] for _, path in placed.values() if path}, placed.values())
    return lines


def contradicted(lines: Sequence[LabelLine], files: Mapping[str, str]) -> list[LabelLine]:
    """The lines, with a fault where one photograph is in the folders of two classes.

    People copy a photograph of two classes into both folders, under its name.

    Args:
        lines: from `folder_lines`.
        files: the uris of the photographs by their names.
    """
    by_name = grouped(lines, lambda line: posixpath.basename(line.name).casefold())
    several = [found for found in by_name.values() if len({line.labels for line in found}) > 1]
    folders = {storage.parent(files[line.name]) for found in several for line in found}
    sizes: dict[str, tuple[int, int]] = {}
    for folder in sorted(folders):
        sizes |= storage.list_versions(folder)
    fault_of: dict[str, str] = {}
    for found in several:
        by_size = grouped(found, lambda line: sizes.get(files[line.name], (-1, 0))[0])
        for size, alike in by_size.items():
            if size > 0 and len({line.labels for line in alike}) > 1:
                fault_of |= _copies(alike, files)
    return [replace(line, fault=fault_of.get(line.name, line.fault)) for line in lines]


def _copies(lines: Sequence[LabelLine], files: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with those of some photographs that are one, by their names."""
    by_content: dict[bytes, list[LabelLine]] = {}
    for line in lines:
        try:
            digest = hashlib.sha256(storage.read_bytes(files[line.name])).digest()
        # the import says what is wrong with a file that cannot be read
        except OSError:
            continue
        by_content.setdefault(digest, []).append(line)
    return {
        line.name: f"the same photograph is {' and '.join(copy.name for copy in copies)}: one of "
        "several classes needs a CSV"
        for copies in by_content.values()
        if len({copy.labels for copy in copies}) > 1
        for line in copies
    }


def _by_split(inside: dict[str, list[str]]) -> dict[str, tuple[str, list[str]]] | None:
    """Split and further folders of each photograph, if the top folders are splits."""
    tops = {path[0] for path in inside.values()}
    held = {path[0] for path in inside.values() if len(path) > 1}
    splits = {name: name for name in tops if is_split(name)}
    if not held & splits.keys():  # a class may be called `train`
        splits = affixed_splits(tops)
    if not held & splits.keys():
        return None
    odd = sorted(tops - splits.keys())
    if odd:
        raise CannotRunError(
            f"{sorted(splits)} are called as splits are, and {odd[:5]} beside them are not: {_HOW}"
        )
    return {name: (splits[path[0]], path[1:]) for name, path in inside.items()}


def _split_below(inside: dict[str, list[str]]) -> dict[str, tuple[str, list[str]]] | None:
    """The same, if each class has folders of splits below its own."""
    below = [len(path) > 1 and is_split(path[1]) for path in inside.values()]
    if not any(below):
        return None
    if not all(below):
        raise CannotRunError(f"some classes have folders of splits below them, some not: {_HOW}")
    return {name: (path[1], path[:1]) for name, path in inside.items()}


def _check(classes: set[str], placed: Iterable[tuple[str, list[str]]]) -> None:
    strange = sorted(name for name in classes if name.casefold() in _NO_CLASSES)
    if strange:
        raise CannotRunError(f"the folder {strange[0]!r} is no class: {_HOW}")
    below: dict[str, set[str]] = {name: set() for name in classes}
    for _, path in placed:
        if len(path) > 1:
            below[path[0]].add(path[1])
    if len(classes) == 1 and len(below[only := min(classes)]) > 1:
        raise CannotRunError(
            f"all photographs are in the folder {only!r}, and {sorted(below[only])[:5]} are below "
            f"it: if these are the classes, give {only!r} as ROOT"
        )
    if alike := differ_by_split(classes):
        raise CannotRunError(
            f"the folders {alike} differ by the name of a split: are they classes? {_HOW}, with "
            "folders called train, val or test alone"
        )
    several = sorted(name for name in classes if len(below[name]) > 1)
    for one, other in itertools.combinations(several, 2):
        shared = sorted(below[one] & below[other])
        if len(shared) > 1:
            raise CannotRunError(
                f"the folders {one!r} and {other!r} both hold folders {shared[:5]}: which are the "
                f"classes? {_HOW}: move the photographs of {shared[0]!r} into one folder, or those "
                f"of {one!r} out of the folders below it"
            )


def folders_note(names: Iterable[str]) -> list[str]:
    """A sentence for a folder without labels, where those of its folders may be meant."""
    try:
        counts = Counter(line.labels[0] for line in folder_lines(names))
    except CannotRunError:
        return []
    if len(counts) < 2:
        return []
    shown = ", ".join(f"{name} {count}" for name, count in sorted(counts.items())[:5])
    more = f" and {len(counts) - 5} more" if len(counts) > 5 else ""
    return [
        f"the photographs are in folders: {shown}{more}; if these are their classes, set "
        "data.labels_from=folders (`pmm data import folder`: --labels-from folders)"
    ]
