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

import numpy as np

from pmm_ray.labels import COCO14, VOC12, LabelSpace
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.index import TableIndex
from pmm_ray.sources.cams.cam_files import CamFolder
from pmm_ray.sources.cams.cam_layouts import LAYOUTS, OWN, UNREAD, Planes, Reading
from pmm_ray.sources.cams.cam_reader import HIGHEST, SHARES, TABLE, CamReader, adds_up, told_ids
from pmm_ray.sources.cams.said import ClassIds, Said

T = TypeVar("T")

# files that are opened: the first, and others at equal steps
_LOOKED_INTO = 20
# a map that was normalized reaches 1; resizing lowers that
_NEAR_ONE = 0.75
# of a plane that is the same everywhere; and of its range, all steps upwards of one that only falls
_SAME, _SMALL_STEPS = 1e-4, 0.05


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
    highest: tuple[float, ...]
    """Of each map, as the file has it."""
    like_background: bool
    """Whether the plane of class 0 is as that of a background: see `_like_background`."""


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
        if reading.class_ids == "dataset":
            rules.append("numbers are values of the class list")
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
        said.normalize or "none",
        said.class_ids,
    )


def detect(cams: CamFolder, reader: CamReader, *, as_it_is: bool = False) -> Detected:
    """Look into some files, and refuse what they cannot tell.

    Args:
        cams: from `find_cams`.
        reader: with what the user says.
        as_it_is: whether the user says that maps which are not normalized are to be taken so.

    Raises:
        CannotRunError: the files are not what the user says, or of every one that was looked into:
            it cannot be read, its planes add up to one, it has a class 0 that may be the
            background, its scores are out of range, nowhere above 0, or were never normalized.
    """
    reading = reader.reading
    if cams.is_table and reading != UNREAD:
        raise CannotRunError("a cams table of ours says what it holds: leave the flags out")
    # what numbers mean comes last: the classes are not known yet
    reader = replace(reader, reading=replace(reading, class_ids="contiguous"))
    peeks, faults = peek_into_rows(cams.index, _LOOKED_INTO, partial(_peek, reader))
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
    # scores that are declared CAMs reach 1 nowhere
    if reading.normalize == "none" and not as_it_is and not reading.background_channel:
        _refuse_raw([peek for peek in peeks if peek.layout != TABLE and peek.highest])
    return Detected(reading, tuple(peeks), len(peeks) + len(faults))


def _refuse_raw(peeks: Sequence[Peek]) -> None:
    """Maps that were never normalized: none comes near 1, or they are on both sides of it."""
    highest = {peek.image_id: max(peek.highest) for peek in peeks}
    most = max(highest.values(), default=1.0)
    apart = most > HIGHEST and min(min(peek.highest) for peek in peeks) < _NEAR_ONE
    if most < _NEAR_ONE or apart:
        first = max(highest, key=lambda image_id: highest[image_id])
        raise CannotRunError(
            f"the highest scores of the CAMs that were looked into are {min(highest.values()):.3g} "
            f"to {most:.3g} (such as {first}): each map has a highest score of 1 where it was "
            "normalized. Say --normalize max, or --normalize none to take them as they are"
        )


def _peek(reader: CamReader, image_id: str, row: dict[str, Any]) -> Peek:
    planes, fault = reader.peek(row)
    labels, numbers = tuple(planes.labels), tuple(planes.numbers)
    highest = tuple(float(plane.max()) for plane in planes.scores if plane.size)
    return Peek(
        image_id,
        planes.layout,
        planes.key,
        labels,
        numbers,
        planes.sure,
        adds_up(planes),
        fault,
        highest,
        _like_background(planes),
    )


def _like_background(planes: Planes) -> bool:
    """Whether class 0 is the same everywhere, or falls wherever the others' highest score rises."""
    if planes.sure or 0 not in planes.numbers:
        return False
    place = list(planes.numbers).index(0)
    own = planes.scores[place].astype(np.float32).ravel()
    if not own.size or np.ptp(own) < _SAME:
        return bool(own.size)
    others = np.delete(planes.scores, place, axis=0)
    if not len(others):
        return False
    rising = own[np.argsort(others.max(0).astype(np.float32).ravel(), kind="stable")]
    # float16 and resizing leave small steps upwards
    return bool(np.maximum(np.diff(rising), 0).sum() < _SMALL_STEPS * np.ptp(own))


def peek_into_rows(
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
    with_0 = [peek for peek in peeks if 0 in peek.numbers]
    like = [peek for peek in with_0 if peek.like_background]
    if with_0 and len(like) * 2 > len(with_0):
        raise CannotRunError(
            f"the plane of class 0 is like a background's in {len(like)} of the {len(with_0)} CAMs "
            f"that were looked into and have one (such as {like[0].image_id}): is it? Say "
            "--background-channel, or --first-class 0 if it is the first class"
        )
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
        CannotRunError: the numbers may be COCO's 90 ids or values of the class list, and nothing
            tells.
    """
    reading = found.reading
    if reading.first_class is None and not reading.background_channel:
        _refuse_beyond([peek for peek in found.peeks if not peek.sure], reading, space)
    if reading.class_ids != "auto" or all(peek.layout == TABLE for peek in found.peeks):
        return found
    seen = {peek.image_id: set(peek.labels) for peek in found.peeks}
    ids = class_ids_of(seen, space, labels)
    return found if ids == "contiguous" else replace(found, reading=replace(reading, class_ids=ids))


def _refuse_beyond(peeks: Sequence[Peek], reading: Reading, space: LabelSpace) -> None:
    """Numbers that never are 0 count from 1 where they end one beyond the classes, or are all among
    the values of a class list that has gaps."""
    seen = {number for peek in peeks for number in peek.numbers if peek.layout != TABLE}
    last, classes = max(seen, default=0), space.num_foreground
    coco = space.names == COCO14.names
    if _nameless(space):
        beyond = last in (VOC12.num_foreground, COCO14.num_foreground, COCO14.dataset_ids[-1])
    else:
        values = not coco and _has_gaps(space) and seen <= set(space.dataset_ids)
        beyond = last == classes or values or (coco and last > classes)
    if not seen or 0 in seen or not beyond or reading.class_ids == "coco90":
        return
    raise CannotRunError(
        f"class {last} is the highest of the CAMs that were looked into, and none has a class 0: "
        "do they count from 1? Say --first-class 1, or --first-class 0 if they do not"
    )


def class_ids_of(
    labels_in: Mapping[str, Set[int]], space: LabelSpace, labels: Mapping[str, Sequence[int]]
) -> ClassIds:
    """How the classes of some files, from 1, are numbered, by image id; see `with_class_ids`."""
    seen = {label for found in labels_in.values() for label in found}
    nameless = _nameless(space)
    coco = nameless or space.names == COCO14.names
    ids = COCO14.dataset_ids if coco else space.dataset_ids
    # a class beyond the last says the ids with gaps, one that they lack says none of them
    told = told_ids(seen, ids)
    if nameless and told == "dataset":
        raise CannotRunError(
            f"classes go up to {max(seen)}, and none is one that COCO lacks among its 90 ids: "
            "say --class-ids coco90 if they are COCO's, else --class-ids contiguous"
        )
    if nameless or told == "contiguous":
        return "contiguous"
    own: ClassIds = "coco90" if coco else "dataset"
    if told == "dataset" or _by_labels(labels_in, ids, labels, own) == "dataset":
        return own
    return "contiguous"


def _nameless(space: LabelSpace) -> bool:
    return space.names[1] == "class 1"


def _has_gaps(space: LabelSpace) -> bool:
    return space.dataset_ids != tuple(range(space.num_classes))


def _by_labels(
    labels_in: Mapping[str, Set[int]],
    ids: Sequence[int],
    labels: Mapping[str, Sequence[int]],
    own: ClassIds,
) -> ClassIds:
    """The ids under which every file has the classes that its image-level labels name."""
    contiguous = dataset = True
    known = False
    for image_id, found in labels_in.items():
        wanted = list(labels.get(image_id) or ())
        known |= any(ids[label] != label for label in wanted)
        contiguous &= set(wanted) <= found
        dataset &= {ids[label] for label in wanted} <= found
    if known and contiguous != dataset:
        return "contiguous" if contiguous else "dataset"
    what = "COCO's 90 ids" if own == "coco90" else f"values of the class list ({list(ids)[1:6]})"
    raise CannotRunError(
        f"the classes of the files may be {what} or numbered without gaps, and those looked "
        f"into fit both: say --class-ids {own} or contiguous"
    )


def _described(layout: str, key: str, count: int) -> str:
    if layout == TABLE:
        return "a table of ours"
    known = LAYOUTS[layout]
    maps = f", maps `{key}`" if key else ""
    return f"layout {layout} ({known.written_by}; {known.file}{maps}) in {count}"
