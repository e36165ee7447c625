"""Labels from folders that are named by class, as programs for classification keep photographs.

ROOT/CLASS/a.jpg          or   ROOT/images/CLASS/a.jpg
ROOT/SPLIT/CLASS/a.jpg    or   ROOT/CLASS/SPLIT/a.jpg, with folders called by a split

`seg_train` and `seg_test` are such folders, too, if all at the top have the same words around it.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable

from pmm_ray.labels import normalize_name
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.importing.importer import Importer
from pmm_ray.sources.importing.photographs import MASK_FOLDERS
from pmm_ray.sources.labels.label_lines import DEFAULT_SPLIT, LabelLine, unlisted_fault
from pmm_ray.sources.masks.lookalikes import called_as_masks, lookalikes
from pmm_ray.sources.reading.cells import SEPARATOR
from pmm_ray.sources.reading.names import grouped, path_below
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
    placed = _placed(names)
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


def withdraw_contradicted(images: Importer, folder: str) -> None:
    """Make errors of the photographs that are in the folders of two classes, under any names.

    Args:
        images: all that were imported.
        folder: of the photographs.
    """
    for found in images.copies(lambda row: row.labels).groups:
        copies = [row for row in found if row.labels]
        names = " and ".join(path_below(row.uri, folder) for row in copies[:3])
        more = f" and {len(copies) - 3} more" if len(copies) > 3 else ""
        for row in copies:
            text = f"the same photograph is {names}{more}: one of several classes needs a CSV"
            images.withdraw(row.image_id, "label", text)


def refuse_masks(lines: Iterable[LabelLine], root: str) -> None:
    """Refuse pictures that are called as masks of photographs in their class.

    A class may be called so itself: photographs of people with a mask.

    Args:
        lines: from `folder_lines`.
        root: of the data set.

    Raises:
        CannotRunError: there are such.
    """
    for labels, of_class in grouped(lines, lambda line: line.labels).items():
        found = [one for one in lookalikes(line.name for line in of_class) if one.named]
        if found and not any(map(called_as_masks, labels)):
            raise CannotRunError(
                f"{found[0].name} is called as a mask of {found[0].photograph} is, and "
                f"{len(found)} such files would be photographs of {labels[0]!r}: move masks into "
                f"{root}/{MASK_FOLDERS[0]} under the paths of their photographs, as PNG files, and "
                "call photographs otherwise"
            )


def deeper_folders_note(names: Iterable[str]) -> list[str]:
    """A sentence where a class has several folders below its own, which say nothing.

    Args:
        names: as of `folder_lines`.
    """
    found = []
    for name, folders in sorted(_below(_placed(names).values()).items()):
        found += [f"{name}/{folder}" for folder in sorted(folders)] if len(folders) > 1 else []
    if not found:
        return []
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return [
        f"folders below those of classes are not read: {', '.join(found[:5])}{more}; if these are "
        "the classes, move them up"
    ]


def _placed(names: Iterable[str]) -> dict[str, tuple[str, list[str]]]:
    """The split of each photograph in a folder, and its further folders, of which the first is its
    class."""
    folders = {name: name.split("/")[:-1] for name in names}
    inside = {name: path for name, path in folders.items() if path}
    if all(path[:1] == path[1:2] for path in inside.values()):
        # as unpacking makes it: seg_train/seg_train
        inside = {name: path[1:] for name, path in inside.items()}
    placed = _by_split(inside) or _split_below(inside)
    if placed is not None:
        return placed
    return {name: (DEFAULT_SPLIT, path) for name, path in inside.items()}


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
    below = _below(placed)
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


def _below(placed: Iterable[tuple[str, list[str]]]) -> dict[str, set[str]]:
    """The folders below that of each class."""
    below: dict[str, set[str]] = {}
    for _, path in placed:
        if path:
            below.setdefault(path[0], set()).update(path[1:2])
    return below


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
