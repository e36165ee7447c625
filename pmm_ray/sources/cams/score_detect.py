"""What a folder of scores is, decided once from some of its files, or refused with what to say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from pmm_ray.labels import COCO14, LAST_8BIT_CLASS, VOC12, LabelSpace
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.sources.cams.cam_detect import class_ids_of, peek_into_rows
from pmm_ray.sources.cams.cam_files import CamFolder
from pmm_ray.sources.cams.said import Said, Values
from pmm_ray.sources.cams.score_files import (
    LAYOUTS,
    NO_BACKGROUND,
    NOT_SHARES,
    ScorePlanes,
    ScoreReader,
    ScoreReading,
)
from pmm_ray.sources.cams.score_values import are_energies, best_posterior, whole_of

# files that are opened: one may have 100 MB
_LOOKED_INTO = 8
# the part of them that may lack a background, where it fills no pixel
_MAY_LACK = 0.125
# logits give some class more than this somewhere
_LOGITS_ARE_SURER = 0.3
# what a number of planes means where nobody says it: COCO's ids go to 90
_KNOWN = {VOC12.num_classes: VOC12, COCO14.num_classes: COCO14, COCO14.dataset_ids[-1] + 1: COCO14}
_WITHOUT_BACKGROUND = {VOC12.num_foreground, COCO14.num_foreground, COCO14.dataset_ids[-1]}


@dataclass(frozen=True)
class DetectedScores:
    """What the files are.

    Attributes:
        reading: holds for all.
        space: the classes: said, known by the number of planes, or without names.
        planes: most planes that a file had; what a task needs memory for.
        line: what was detected, for people.
    """

    reading: ScoreReading
    space: LabelSpace
    planes: int
    line: str


@dataclass(frozen=True)
class _Peek:
    image_id: str
    planes: ScorePlanes
    count: int
    best: float
    """The highest posterior of the file, if its values are logits; else 1."""
    classes_last: bool
    """Whether the planes add up to one over the last axis, and not over the first."""


def asked_scores(said: Said) -> ScoreReading:
    """What the user says of scores, checked. Raises CannotRunError, see `Said.check`."""
    if said.normalize not in (None, "none"):
        raise CannotRunError("--normalize is for CAMs, not for scores")
    said.check(LAYOUTS, "scores")
    return ScoreReading(
        said.layout or "",
        said.key or "",
        said.first_class,
        said.background_channel,
        said.values,
        said.class_ids,
    )


def detect_scores(
    scores: CamFolder,
    reading: ScoreReading,
    space: LabelSpace | None,
    *,
    trust_pickle: bool,
    max_pixels: int,
) -> DetectedScores:
    """Look into some files, and refuse what they cannot tell.

    Args:
        scores: from `find_cams`.
        reading: what the user says.
        space: the classes, if the user says them.
        trust_pickle, max_pixels: see `ScoreReader`.

    Raises:
        CannotRunError: no background, the files are not what the user says, or nothing tells what
            their planes or values are.
    """
    if scores.is_table:
        raise CannotRunError(f"{scores.index.parts[0]} is a cams table of ours: {NO_BACKGROUND}")
    nameless = LabelSpace.from_names([f"class {i}" for i in range(1, LAST_8BIT_CLASS + 1)])
    reader = ScoreReader(space or nameless, trust_pickle, max_pixels, reading)
    peeks, faults = peek_into_rows(scores.index, _LOOKED_INTO, partial(_peek, reader))
    if not peeks and faults:
        raise CannotRunError(f"not one file can be used: {faults[0].uri}: {faults[0].message}")
    numbered = [peek for peek in peeks if peek.planes.numbers is not None]
    _refuse_cams([p for p in numbered if p.planes.layout == "crf"], reading)
    _refuse_unclear_first_class(
        [p for p in numbered if not LAYOUTS[p.planes.layout].unnumbered], reading
    )
    plain = [peek for peek in peeks if peek.planes.numbers is None]
    _refuse_classes_last(plain, space)
    space = space or _space_of(plain)
    if space is None:
        space = COCO14 if reading.class_ids == "coco90" else nameless
    if numbered and reading.class_ids == "auto":
        seen = {peek.image_id: set(peek.planes.labels or ()) - {0} for peek in numbered}
        if class_ids_of(seen, space, {}) == "coco90":
            reading = replace(reading, class_ids="coco90")
    reading = replace(reading, values=_values(peeks, reading))
    return DetectedScores(
        reading,
        space,
        max((peek.count for peek in peeks), default=1),
        _line(peeks, len(peeks) + len(faults), reading, space),
    )


def _peek(reader: ScoreReader, image_id: str, row: dict[str, Any]) -> _Peek:
    planes = reader.peek(row)
    scores, best = planes.scores, 1.0
    if planes.verdict == "logits":
        if are_energies(scores):
            raise RowError(
                "label",
                "these are energies, -log of probabilities: save exp(-energies), which are "
                "probabilities",
                row["cam_uri"],
            )
        best = best_posterior(scores)
    last = not planes.shares and whole_of(np.moveaxis(scores, -1, 0)) == 1
    # the values themselves are not kept
    return _Peek(image_id, replace(planes, scores=scores[:0].copy()), len(scores), best, last)


def _refuse_cams(peeks: Sequence[_Peek], reading: ScoreReading) -> None:
    if not peeks or reading.background_channel:
        return
    first = peeks[0]
    if not any(0 in (peek.planes.numbers or ()) for peek in peeks):
        raise CannotRunError(
            f"no file that was looked into ({len(peeks)}, such as {first.image_id} with classes "
            f"{first.planes.numbers}) has a class 0, the background: {NO_BACKGROUND}"
        )
    if not any(peek.planes.verdict == "probabilities" for peek in peeks):
        raise CannotRunError(f"{first.image_id}: {NOT_SHARES}")


def _refuse_unclear_first_class(peeks: Sequence[_Peek], reading: ScoreReading) -> None:
    """Refuse files that do not tell where class numbers begin: at 1 beside the background as 0.

    A class 0 that only some files have may be the first class, if they do not add up to one.
    """
    if not peeks:
        return
    with_zero = [peek for peek in peeks if 0 in (peek.planes.numbers or ())]
    shares = [peek for peek in peeks if peek.planes.shares]
    all_shares = bool(shares) and all(0 in (peek.planes.numbers or ()) for peek in shares)
    if len(peeks) - len(with_zero) > _MAY_LACK * len(peeks) and not all_shares:
        with_zero = []
    if reading.first_class == 0 and len(with_zero) == len(peeks):
        raise CannotRunError(
            f"every file that was looked into has a class 0, such as {peeks[0].image_id}: of "
            "scores it is the background, and the first class is 1"
        )
    if not with_zero and reading.first_class is None and not reading.background_channel:
        without = [peek for peek in peeks if 0 not in (peek.planes.numbers or ())]
        example = without[0]
        raise CannotRunError(
            f"{len(without)} of {len(peeks)} files that were looked into have no class 0, such as "
            f"{example.image_id} with classes {example.planes.numbers}: say --first-class 1 if 0 "
            "would be the background, --first-class 0 if it would be a class"
        )


def _refuse_classes_last(peeks: Sequence[_Peek], space: LabelSpace | None) -> None:
    """Arrays [h, w, classes], told by their last axis."""
    known = set(_KNOWN) if space is None else {space.num_classes}
    if space is not None and space.names == COCO14.names:
        known.add(COCO14.dataset_ids[-1] + 1)

    def turned(peek: _Peek) -> bool:
        return peek.count not in known and peek.planes.scores.shape[2] in known

    if peeks and (all(map(turned, peeks)) or all(peek.classes_last for peek in peeks)):
        shape = [peeks[0].count, *peeks[0].planes.scores.shape[1:]]
        raise CannotRunError(
            f"{peeks[0].image_id}: the scores are {shape}, which seems to be [h, w, classes]: "
            "write [classes, h, w]; if the classes do come first, name them with --label-space"
        )


def _space_of(peeks: Sequence[_Peek]) -> LabelSpace | None:
    """The classes that a number of planes stands for; None where there are class numbers."""
    if not peeks:
        return None
    count = Counter(peek.count for peek in peeks).most_common(1)[0][0]
    if count in _KNOWN:
        return _KNOWN[count]
    if count in _WITHOUT_BACKGROUND:
        raise CannotRunError(
            f"the scores have {count} planes, as many as there are classes without the background: "
            f"{NO_BACKGROUND}; if one of them is the background, name the classes with "
            "--label-space"
        )
    if count < 2:
        raise CannotRunError(f"the scores have {count} plane: a background and classes are needed")
    return LabelSpace.from_names([f"class {i}" for i in range(1, count)])


def _values(peeks: Sequence[_Peek], reading: ScoreReading) -> Values:
    """Logits or probabilities, if all files agree; else each file tells."""
    verdicts = {p.planes.verdict for p in peeks if p.planes.layout != "crf"}
    if reading.values != "auto":
        other = "logits" if reading.values == "probabilities" else "probabilities"
        if verdicts == {other} and all(p.planes.sure for p in peeks):
            raise CannotRunError(f"the values are said to be {reading.values}, but are {other}")
        return reading.values
    if verdicts == {"unknown"}:
        raise CannotRunError(
            "the values are within 0..1 and do not add up to one: say --values logits or "
            "--values probabilities"
        )
    if verdicts == {"logits"} and (best := max(peek.best for peek in peeks)) < _LOGITS_ARE_SURER:
        raise CannotRunError(
            f"read as logits, the scores give no class more than {best * 100:.0f} % at any pixel: "
            "if they are similarities, multiply them by the scale of their network (CLIP: 100); "
            "if they are logits, say --values logits"
        )
    return "auto"


def _line(
    peeks: Sequence[_Peek], looked_into: int, reading: ScoreReading, space: LabelSpace
) -> str:
    of = Counter((p.planes.layout, p.planes.key, p.planes.verdict) for p in peeks)
    layouts = []
    for (layout, key, verdict), count in of.most_common():
        known = LAYOUTS[layout]
        name = f", `{key}`" if key else ""
        values: str = verdict if reading.values == "auto" else reading.values
        values = "scores as they are" if values == "unknown" else values
        layouts.append(f"layout {layout} ({known.written_by}{name}), {values}, in {count}")
    classes = f"classes {space.name}" if space in (VOC12, COCO14) else f"{space.num_classes} values"
    return f"scores: {'; '.join(layouts)}; {classes} ({len(peeks)} of {looked_into} looked into)"
