"""What a folder of CAMs is, decided once from some of its files, or refused with what to say.

One look costs a few files; what it decides holds for all of them, and a file that contradicts it
becomes an error row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from pmm_ray.labels import COCO14, LabelSpace
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.index import TableIndex
from pmm_ray.sources.cam_files import CamFolder
from pmm_ray.sources.cam_layouts import LAYOUTS, OWN, UNREAD, Reading
from pmm_ray.sources.cam_reader import SHARES, TABLE, CamReader, adds_up
from pmm_ray.sources.said import ClassIds, Said

T = TypeVar("T")

# files that are opened: the first, and others at equal steps
_LOOKED_INTO = 20
# COCO's ids up to here are the same as numbers without gaps
_SAME_IDS = 11


@dataclass(frozen=True)
class Peek:
    """What is known of one file that was opened."""

    image_id: str
    layout: str
    key: str
    labels: tuple[int, ...]
    numbers: tuple[int, ...]
    sure: bool
    adds_up: bool
    out_of_range: str


@dataclass(frozen=True)
class Detected:
    """What the files are: the reading that holds for all, and what was seen of some."""

    reading: Reading
    peeks: tuple[Peek, ...]
    looked_into: int

    @property
    def line(self) -> str:
        """What was detected, for people."""
        if not self.peeks:
            return f"CAMs: not one of the {self.looked_into} files looked into can be read"
        count = Counter((peek.layout, peek.key) for peek in self.peeks)
        layouts = "; ".join(_described(*of, number) for of, number in count.most_common())
        parts = [f"CAMs: {layouts}", *self._rules()]
        return ", ".join(parts) + f" ({len(self.peeks)} of {self.looked_into} files looked into)"

    def _rules(self) -> list[str]:
        reading = self.reading
        if all(peek.layout == TABLE for peek in self.peeks):
            return []
        if all(peek.sure for peek in self.peeks):
            where = "the file says which plane is the background"
            if reading.background_channel:
                where = "the background's plane is left out"
        else:
            where = f"classes count from {reading.first_class or 0}"
        rules = [where]
        if reading.class_ids == "coco90":
            rules.append("COCO's 90 ids become 1..80")
        if reading.normalize != "none":
            rules.append(f"maps are normalized ({reading.normalize})")
        return rules


def asked(said: Said) -> Reading:
    """What the user says of CAMs, checked. Raises CannotRunError, see `Said.check`."""
    said.check(LAYOUTS, "CAMs")
    return Reading(
        said.layout or "",
        said.key or "",
        said.first_class,
        said.background_channel,
        said.normalize,
        said.class_ids,
    )


def detect(cams: CamFolder, reader: CamReader) -> Detected:
    """Look into some files, and refuse what they cannot tell.

    Args:
        cams: from `find_cams`.
        reader: with what the user says.

    Raises:
        CannotRunError: the files are not what the user says, or of every one that was looked into:
            it cannot be read, its planes add up to one, it has a class 0 that may be the
            background, its scores are out of range or nowhere above 0.
    """
    reading = reader.reading
    if cams.is_table and reading != UNREAD:
        raise CannotRunError("a cams table of ours says what it holds: leave the flags out")
    # what numbers mean comes last: the classes are not known yet
    reader = replace(reader, reading=replace(reading, class_ids="contiguous"))
    peeks, faults = look_into(cams.index, _LOOKED_INTO, partial(_peek, reader))
    if not peeks and faults and not cams.is_table:
        fault = f"{faults[0].uri}: {faults[0].message}"
        if reading != UNREAD:
            raise CannotRunError(f"the CAMs are not what the flags say: {fault}")
        raise CannotRunError(
            f"not one of the {len(faults)} CAMs that were looked into can be read, such as {fault}"
        )
    _refuse_shares([peek for peek in peeks if not peek.sure])
    if reading.first_class is None and not reading.background_channel:
        _refuse_class_0([peek for peek in peeks if not peek.sure])
    if peeks and all(peek.out_of_range for peek in peeks):
        first = peeks[0]
        raise CannotRunError(
            f"{first.image_id}, and so all {len(peeks)} CAMs that were looked into: "
            f"{first.out_of_range}"
        )
    return Detected(reading, tuple(peeks), len(peeks) + len(faults))


def _peek(reader: CamReader, image_id: str, row: dict[str, Any]) -> Peek:
    planes, fault = reader.peek(row)
    labels, numbers = tuple(planes.labels), tuple(planes.numbers)
    shares = adds_up(planes)
    return Peek(image_id, planes.layout, planes.key, labels, numbers, planes.sure, shares, fault)


def look_into(
    index: TableIndex, most: int, peek: Callable[[str, dict[str, Any]], T]
) -> tuple[list[T], list[RowError]]:
    """What `peek` makes of (image id, row) of rows at equal steps, and the faults of the others."""
    places = sorted((i, uri, row) for i, (uri, row) in index.locations().items())
    found: list[T] = []
    faults: list[RowError] = []
    for image_id, uri, row in places[:: max(1, -(-len(places) // most))]:
        try:
            found.append(peek(image_id, tables.read_rows(uri, [row])[0]))
        except RowError as error:
            faults.append(error)
    return found, faults


def _refuse_shares(peeks: Sequence[Peek]) -> None:
    several = [peek for peek in peeks if len(peek.numbers) > 1 or peek.numbers == (0,)]
    if several and all(peek.adds_up for peek in several):
        first = several[0]
        raise CannotRunError(
            f"{first.image_id}: the planes of classes {list(first.numbers)} add up to one, as in "
            f"every CAM that was looked into ({len(several)}): they {SHARES}"
        )


def _refuse_class_0(peeks: Sequence[Peek]) -> None:
    # what our own guide describes counts from 0
    named = [peek for peek in peeks if peek.numbers and peek.layout != OWN]
    alone = any(peek.numbers == (0,) for peek in named)
    if named and not alone and all(0 in peek.numbers for peek in named):
        raise CannotRunError(
            f"every CAM that was looked into ({len(named)}, such as {named[0].image_id} with "
            f"classes {list(named[0].numbers)}) has a class 0: is it the background or the first "
            "class? Say --background-channel or --first-class 0"
        )


def with_class_ids(
    found: Detected, space: LabelSpace, labels: Mapping[str, Sequence[int]]
) -> Detected:
    """The same, with its class ids decided.

    Args:
        found: what was detected.
        space: what the classes are.
        labels: contiguous image-level labels by image id, where they are known.

    Raises:
        CannotRunError: the numbers may be COCO's 90 ids, and nothing tells.
    """
    reading = found.reading
    if reading.class_ids != "auto" or all(peek.layout == TABLE for peek in found.peeks):
        return found
    seen = {peek.image_id: set(peek.labels) for peek in found.peeks}
    ids = class_ids_of(seen, space, labels)
    return replace(found, reading=replace(reading, class_ids=ids)) if ids == "coco90" else found


def class_ids_of(
    labels_in: Mapping[str, Set[int]], space: LabelSpace, labels: Mapping[str, Sequence[int]]
) -> ClassIds:
    """How the classes of some files, from 1, are numbered, by image id; see `with_class_ids`."""
    seen = {label for found in labels_in.values() for label in found}
    gapless = set(range(1, COCO14.num_classes))
    own = set(COCO14.dataset_ids[1:])
    coco = space.names == COCO14.names
    # a class beyond 80 says COCO's ids, one that COCO lacks says none of them
    if not seen <= own or not (coco or _nameless(space)):
        return "contiguous"
    if not seen <= gapless:
        if not coco:
            raise CannotRunError(
                f"classes go up to {max(seen)}, and none is one that COCO lacks among its 90 ids: "
                "say --class-ids coco90 if they are COCO's, else --class-ids contiguous"
            )
        return "coco90"
    if not coco or max(seen, default=0) <= _SAME_IDS:
        return "contiguous"
    return _by_labels(labels_in, labels)


def _nameless(space: LabelSpace) -> bool:
    return space.names[1] == "class 1"


def _by_labels(labels_in: Mapping[str, Set[int]], labels: Mapping[str, Sequence[int]]) -> ClassIds:
    """The ids under which every file has the classes that its image-level labels name."""
    fits = {"contiguous": True, "coco90": True}
    known = False
    for image_id, found in labels_in.items():
        wanted = list(labels.get(image_id) or ())
        known |= any(label > _SAME_IDS for label in wanted)
        fits["contiguous"] &= set(wanted) <= found
        fits["coco90"] &= {COCO14.dataset_ids[i] for i in wanted} <= found
    if known and fits["contiguous"] != fits["coco90"]:
        return "contiguous" if fits["contiguous"] else "coco90"
    raise CannotRunError(
        "the classes of the files may be COCO's 90 ids or numbered without gaps, and those looked "
        "into fit both: say --class-ids coco90 or contiguous"
    )


def _described(layout: str, key: str, count: int) -> str:
    if layout == TABLE:
        return "a table of ours"
    known = LAYOUTS[layout]
    maps = f", maps `{key}`" if key else ""
    return f"layout {layout} ({known.written_by}; {known.file}{maps}) in {count}"
