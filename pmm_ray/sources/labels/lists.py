"""The field's lists of images and of their labels, and what differs from them.

`NAME.txt` holds an id a line; `NAME_cls.txt` an id and its classes, counted from 0 without the
background. Both are what papers train and score on, so an import can be held against them.
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from collections.abc import Mapping

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.files import DIFFERENCES_FILE
from pmm_ray.runtime.core.manifest import ManifestRow
from pmm_ray.runtime.rows.images import IMAGE_SUFFIXES
from pmm_ray.sources.masks.truth import MASK_SUFFIX
from pmm_ray.sources.reading.names import file_stem, has_ending
from pmm_ray.sources.reading.text import read_lines

Labels = tuple[int, ...]
# what VOC writes behind an id: there, there but difficult, absent
_MARKS = ("1", "0", _ABSENT := "-1")


def read_members(uri: str) -> tuple[list[str], list[str]]:
    """The ids of a list, and those that it says are absent, each in its order.

    A line is an id; the paths of a photograph and its mask; or an id and VOC's 1 (there), 0
    (difficult, and there) or -1 (absent).

    Raises:
        CannotRunError: no such file, or another line.
    """
    members: list[str] = []
    absent: list[str] = []
    for first, *others in map(str.split, read_lines(uri, "list")):
        image_id = file_stem(first) if has_ending(first, IMAGE_SUFFIXES) else first
        masks = [word for word in others if MASK_SUFFIX.sub("", file_stem(word)) == image_id]
        if len(others) > 1 or (others and not masks and others[0] not in _MARKS):
            raise CannotRunError(
                f"{uri}: the line {' '.join((first, *others[:5]))!r} is no id, no photograph and "
                "its mask, and no id with 1, 0 or -1: write an id a line"
            )
        (absent if others == [_ABSENT] else members).append(image_id)
    return members, absent


def read_label_list(uri: str, space: LabelSpace) -> dict[str, Labels]:
    """Contiguous ids of each image of a `NAME_cls.txt`.

    Raises:
        CannotRunError: no such file, a word that is no number, or a class outside the space.
    """
    found: dict[str, Labels] = {}
    for image_id, *words in map(str.split, read_lines(uri, "list")):
        if len(set(words)) < len(words):
            raise CannotRunError(
                f"{uri}: {image_id}: a class stands in it twice, {' '.join(words[:12])}: write the "
                "numbers of its classes, not 0 or 1 for each"
            )
        try:
            labels = tuple(sorted({int(word) + 1 for word in words}))
        except ValueError as error:
            raise CannotRunError(f"{uri}: {image_id}: classes are numbers: {words}") from error
        if any(not 1 <= label <= space.num_foreground for label in labels):
            raise CannotRunError(
                f"{uri}: {image_id}: classes must be 0..{space.num_foreground - 1}: {words}"
            )
        if found.setdefault(image_id, labels) != labels:
            raise CannotRunError(f"{uri}: {image_id} stands in it twice, with different classes")
    return found


def compare_with_lists(
    rows: Mapping[str, ManifestRow], listed: Mapping[str, Labels], out: str, space: LabelSpace
) -> dict[str, int]:
    """Compare the labels of an import with those of lists, and write what differs.

    `differences.csv` has a line for each such image, with the classes that one side lacks.

    Args:
        rows: of the import, by image id.
        listed: contiguous ids by image id.
        out: folder of the import.
        space: the classes.

    Returns:
        How many images differ in which way, for an import's counts.
    """
    kinds: Counter[str] = Counter()
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image_id", "kind", "only_here", "only_in_list"])
    for image_id in sorted(rows.keys() | listed.keys()):
        if image_id not in rows:
            kind = "only in the list"
        elif image_id not in listed:
            kind = "not in the list"
        elif rows[image_id].labels != listed[image_id]:
            kind = "labels differ"
        else:
            continue
        kinds[kind] += 1
        here = set(rows[image_id].labels) if image_id in rows else set()
        there = set(listed.get(image_id, ()))
        lacking = (sorted(here - there), sorted(there - here))
        names = (";".join(space.names[label] for label in labels) for labels in lacking)
        writer.writerow([image_id, kind, *names])
    storage.write_bytes(storage.join(out, DIFFERENCES_FILE), text.getvalue().encode())
    return {
        "labels differ from the list": kinds["labels differ"],
        "only in the list": kinds["only in the list"],
        "not in the list": kinds["not in the list"],
    }
