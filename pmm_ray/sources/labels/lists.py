"""The field's lists of images and of their labels, and what differs from them.

`NAME.txt` holds an id a line; `NAME_cls.txt` an id and its classes, counted from 0 without the
background. Both are what papers train and score on, so an import can be held against them.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.rows.images import IMAGE_SUFFIXES
from pmm_ray.sources.masks.truth import MASK_SUFFIX
from pmm_ray.sources.reading.names import file_stem, has_ending
from pmm_ray.sources.reading.text import read_lines

Labels = tuple[int, ...]
DIFFERENCES = "differences.csv"
# what VOC writes behind an id: there, there but difficult, absent
_MARKS = ("1", "0", _ABSENT := "-1")


@dataclass(frozen=True)
class Difference:
    """One image that an import and a list do not agree on; labels are contiguous ids."""

    image_id: str
    kind: Literal["labels differ", "only in the list", "not in the list"]
    here: Labels = ()
    listed: Labels = ()


def read_words(uri: str) -> Iterator[list[str]]:
    """The words of each line that has some. Raises CannotRunError, see `read_text`."""
    yield from (line.split() for line in read_lines(uri, "list"))


def read_members(uri: str) -> tuple[list[str], list[str]]:
    """The ids of a list, and those that it says are absent, each in its order.

    A line is an id; the paths of a photograph and its mask; or an id and VOC's 1 (there), 0
    (difficult, and there) or -1 (absent).

    Raises:
        CannotRunError: no such file, or another line.
    """
    members: list[str] = []
    absent: list[str] = []
    for first, *others in read_words(uri):
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
    for image_id, *words in read_words(uri):
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


def compare_labels(here: Mapping[str, Labels], listed: Mapping[str, Labels]) -> list[Difference]:
    """Every image on which an import and a list differ, by id."""
    differences = []
    for image_id in sorted(here.keys() | listed.keys()):
        if image_id not in here:
            differences.append(Difference(image_id, "only in the list", listed=listed[image_id]))
        elif image_id not in listed:
            differences.append(Difference(image_id, "not in the list", here=here[image_id]))
        elif here[image_id] != listed[image_id]:
            differences.append(
                Difference(image_id, "labels differ", here[image_id], listed[image_id])
            )
    return differences


def write_differences(uri: str, differences: Iterable[Difference], space: LabelSpace) -> None:
    """Write them as CSV, one line an image, with the names of the classes that one side lacks."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["image_id", "kind", "only_here", "only_in_list"])
    for item in differences:
        here, listed = set(item.here), set(item.listed)
        names = [
            ";".join(space.names[label] for label in sorted(labels))
            for labels in (here - listed, listed - here)
        ]
        writer.writerow([item.image_id, item.kind, *names])
    storage.write_bytes(uri, out.getvalue().encode())


def count_differences(differences: Iterable[Difference]) -> dict[str, int]:
    """How many there are of each kind, for an import's counts."""
    counts = {"labels differ from the list": 0, "only in the list": 0, "not in the list": 0}
    for item in differences:
        counts["labels differ from the list" if item.here and item.listed else item.kind] += 1
    return counts
