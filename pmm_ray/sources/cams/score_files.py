"""Class scores with a background plane that others made: told, read, and brought to an image.

Class numbers are mask values here, or values of the class list: 0 is the background. Scores
are probabilities or logits, which are told apart by their sums.
"""

# M: planes of one file, the background first or among them; h, w: as stored; H, W: photograph.

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.sources.cams.cam_layouts import LAYOUTS as CAM_LAYOUTS
from pmm_ray.sources.cams.cam_reader import naming_file, to_contiguous
from pmm_ray.sources.cams.plane_files import (
    KINDS,
    MOST_VALUES_PER_PIXEL,
    Content,
    Kind,
    check_aspect,
    floating,
    numbers,
    read_content,
    stack,
)
from pmm_ray.sources.cams.said import ClassIds, Values
from pmm_ray.sources.cams.score_values import MARGIN, Verdict, clip_shares, whole_of


@dataclass(frozen=True)
class ScoreLayout:
    """How one family of programs stores its scores; see `cam_layouts.Layout`.

    Attributes:
        keys: name of the class numbers; empty: planes stand in the order of the classes.
        without: names that such a file does not have.
        unnumbered: whether plane 0 is the background and has no number; classes count from 0 then.
    """

    written_by: str
    kind: Kind
    scores: tuple[str, ...] = ()
    keys: str = ""
    without: tuple[str, ...] = ()
    unnumbered: bool = False

    @property
    def file(self) -> str:
        """What such a file is, in a few words."""
        names = " or ".join(f"`{name}`" for name in self.scores)
        keys = f"`{self.keys}`" if self.keys else ""
        return ", ".join(part for part in (KINDS[self.kind], names, keys) if part)


LAYOUTS: dict[str, ScoreLayout] = {
    "prob": ScoreLayout("WeakTr", "dictionary", ("prob",), "keys"),
    "excel": ScoreLayout(
        "ExCEL", "dictionary", ("valid_lam",), "keys_gt", ("keys",), unnumbered=True
    ),
    "logits": ScoreLayout(
        "ToCo, DuPL, SeCo, WeCLIP, AFA", "dictionary", ("msc_seg", "msc_segs", "segs")
    ),
    "crf": ScoreLayout("SEAM, PSA, EPS, S2C, ACR after their CRF", "numbered"),
    "array": ScoreLayout("deeplab-pytorch, BECO", "array"),
    "npz": ScoreLayout("any program; optionally `keys`", "archive", ("scores",)),
}
"""By the name that `--layout` takes."""

NO_BACKGROUND = (
    "these are CAMs, which have no background: give them to `pmm masks --cams`, or choose a preset "
    "that makes one of its own (--preset irn, seam, clip-es, more or toco-cam)"
)


@dataclass(frozen=True)
class ScoreReading:
    """What is known of a folder of scores; see `cam_layouts.Reading`.

    Attributes:
        first_class: number of the first class where files have class numbers: 1 beside a
            background 0, or 0 where no file has a background, or one without a number.
        background_channel: whether the user says that class 0 is the background, though the
            planes do not add up to one.
        values: logits, which a softmax makes probabilities, or these; `auto`: told from each file.
        class_ids: see `Said`.
    """

    layout: str = ""
    key: str = ""
    first_class: int | None = None
    background_channel: bool = False
    values: Values = "auto"
    class_ids: ClassIds = "auto"


@dataclass(frozen=True)
class ScorePlanes:
    """The scores of one file.

    Attributes:
        layout: its name.
        key: name of the scores.
        numbers: class numbers as stored; None: planes stand in the order of the classes.
        labels: mask values of the numbered planes, or COCO's own ids.
        scores: floating [M, h, w].
        verdict: what the values can be.
        sure: whether they can be nothing else.
        shares: whether the planes add up to one; what a resize left beyond 0..1 is clipped.
    """

    layout: str
    key: str
    numbers: list[int] | None
    labels: list[int] | None
    scores: NDArray[Any]
    verdict: Verdict
    sure: bool
    shares: bool


def read_score_planes(content: Content, reading: ScoreReading) -> ScorePlanes:
    """The scores of a file. Raises ValueError where it has no such layout."""
    name, key = _choose(content, reading)
    layout = LAYOUTS[name]
    stored: list[int] | None = None
    if layout.kind == "numbered":
        stored = [int(number) for number in content.names]
        scores = stack([content[number] for number in content.names])
    else:
        scores = floating(content[key], "the array of scores")
        if scores.ndim == 4 and len(scores) == 1:
            scores = scores[0]
        keys = layout.keys or "keys"
        stored = numbers(content[keys]) if keys in content else None
        if layout.kind == "dictionary" and not layout.keys and len(stored or ()) != len(scores):
            stored = None  # what is there, not what the planes are
    if scores.ndim != 3 or 0 in scores.shape:
        raise ValueError(f"the scores are {list(scores.shape)}: [classes, h, w] is expected")
    labels = None if stored is None else _mask_values(stored, layout, reading)
    if labels is not None and len(labels) != len(scores):
        background = " and the background" if layout.unnumbered else ""
        raise ValueError(
            f"there are {len(scores)} planes for {len(stored or ())} classes{background}"
        )
    if not np.isfinite(scores).all():
        raise RowError("nonfinite", "the scores hold NaN or infinity")
    whole = whole_of(scores)
    shares = whole == 1
    # of some of the classes the shares may add up to anything, as do WeakTr's of two decoders
    some = stored is not None and (bool(layout.keys) or float(scores.max()) <= 1 + MARGIN)
    several = len(scores) > 1 and whole is not None and not shares
    if several and not some and reading.values != "logits":
        raise ValueError(
            f"the planes of each pixel add up to {whole:.5g}: divide them by it, then they are "
            "probabilities; if they are logits, say --values logits"
        )
    verdict, sure = _verdict(scores, shares, stored, layout)
    if shares:
        scores = clip_shares(scores)
    return ScorePlanes(name, key, stored, labels, scores, verdict, sure, shares)


def _mask_values(stored: list[int], layout: ScoreLayout, reading: ScoreReading) -> list[int]:
    """See `ScorePlanes.labels`."""
    usual = 0 if layout.unnumbered else 1
    first = usual if reading.first_class is None else reading.first_class
    labels = [number + 1 - first for number in stored]
    return [0, *labels] if layout.unnumbered else labels


def _choose(content: Content, reading: ScoreReading) -> tuple[str, str]:
    """(layout, name of the scores) of a file."""
    fitting: dict[str, str] = {}
    for name, layout in LAYOUTS.items():
        said = bool(reading.key) and name == reading.layout
        names = (reading.key,) if said else layout.scores or ("",)
        key = next((key for key in names if key in content or not layout.scores), None)
        lacks = layout.keys and layout.keys not in content
        lacks = lacks or any(other in content for other in layout.without)
        if layout.kind == content.kind and key is not None and not lacks:
            fitting[name] = key
    if reading.key and not reading.layout:
        kinds = {"dictionary": "logits", "archive": "npz"}
        fitting = {n: key for n, key in fitting.items() if key == reading.key}
        if not fitting and reading.key in content and content.kind in kinds:
            fitting = {kinds[content.kind]: reading.key}
    if reading.layout:
        fitting = {n: key for n, key in fitting.items() if n == reading.layout}
    if fitting:
        return next(iter(fitting.items()))
    held = sorted(content.names)[:5]
    maps = {name for layout in CAM_LAYOUTS.values() for name in layout.maps}
    if not reading.layout and not reading.key and maps & set(content.names):
        raise ValueError(f"it is {KINDS[content.kind]} with {held}: {NO_BACKGROUND}")
    wanted = reading.layout and f"layout {reading.layout} ({LAYOUTS[reading.layout].file})"
    known = wanted or "; ".join(layout.file for layout in LAYOUTS.values())
    if reading.key:
        known += f"; scores called {reading.key!r}"
    raise ValueError(f"it is {KINDS[content.kind]} with {held}: expected is {known}")


def _verdict(
    scores: NDArray[Any], shares: bool, stored: list[int] | None, layout: ScoreLayout
) -> tuple[Verdict, bool]:
    """What values can be, and whether that is sure."""
    if layout.keys and float(scores.min()) >= -MARGIN:
        # WeakTr adds the shares of two decoders: 0.8 p + q; ExCEL's background is 1 - max
        return "probabilities", float(scores.sum(axis=0, dtype=np.float32).max()) <= 1 + MARGIN
    if shares:
        return "probabilities", True
    if float(scores.min()) < -MARGIN:
        return "logits", True
    if float(scores.max()) > 1 + MARGIN:
        return "logits", False
    # of some of the classes: their shares add up to no more than one
    total = scores.sum(axis=0, dtype=np.float32)
    some = stored is not None and layout.kind != "numbered" and float(total.max()) <= 1 + MARGIN
    return ("probabilities", True) if some else ("unknown", False)


@dataclass(frozen=True)
class ScoreReader:
    """Reads and checks the scores of a joined row; small and picklable.

    Attributes:
        space: the classes.
        trust_pickle: whether the user vouches for pickles.
        max_pixels: of a photograph.
        reading: what is known of the files.
    """

    space: LabelSpace
    trust_pickle: bool
    max_pixels: int
    reading: ScoreReading

    def __call__(
        self, row: Mapping[str, Mapping[str, Any]]
    ) -> tuple[list[int], NDArray[np.float32]]:
        """Class ids and their probabilities, float32 [M, H, W], at the size of the photograph.

        Logits are resized before their softmax, as the programs do.

        Raises:
            RowError: `missing`, `decode`, `label`, `nonfinite` or `too_large`, with the file.
        """
        manifest, source = row["manifest"], row["cams"]
        with naming_file(source):
            planes = self._read(source)
            labels = self._labels(planes)
            values = self._values(planes)
            size = manifest["height"], manifest["width"]
            check_aspect(planes.scores.shape[1:], manifest, "scores")
            kept = [k for k, label in enumerate(labels) if label >= 0]
            scores = resize_planes(planes.scores, kept, *size)
        if values == "logits":
            scores -= scores.max(axis=0)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=0)
        return [labels[k] for k in kept], np.clip(scores, 0, 1, out=scores)

    def peek(self, source: Mapping[str, Any]) -> ScorePlanes:
        """What a row of `CamFolder.index` holds. Raises RowError as above."""
        with naming_file(source):
            return self._read(source)

    def _read(self, source: Mapping[str, Any]) -> ScorePlanes:
        most = self.max_pixels * MOST_VALUES_PER_PIXEL
        content = read_content(
            source["cam_uri"], None, trust_pickle=self.trust_pickle, most_values=most
        )
        return read_score_planes(content, self.reading)

    def _labels(self, planes: ScorePlanes) -> list[int]:
        """The class id of each plane; -1 of one that is no class."""
        count, classes = len(planes.scores), self.space.num_classes
        if planes.labels is None:
            ids = self.space.dataset_ids
            if count == classes:
                return list(range(classes))
            if count == max(ids) + 1:
                return [ids.index(k) if k in ids else -1 for k in range(count)]
            raise RowError(
                "label",
                f"there are {count} planes, but {classes} classes with the background: which are "
                "they? Say --label-space",
            )
        labels = planes.labels
        if len(set(labels)) < len(labels):
            raise RowError("label", f"classes occur twice: {planes.numbers}")
        labels = to_contiguous(labels, self.reading.class_ids, self.space.dataset_ids)
        if min(labels) < 0 or max(labels) >= classes:
            raise RowError(
                "label",
                f"the file has classes {planes.numbers}, the mask values {sorted(labels)}: "
                f"0..{classes - 1} are known",
            )
        if planes.layout == "crf" and not self.reading.background_channel:
            if 0 not in (planes.numbers or ()):
                raise RowError("label", f"no plane is class 0, the background: {NO_BACKGROUND}")
            if planes.verdict != "probabilities":
                raise RowError("label", NOT_SHARES)
        return labels

    def _values(self, planes: ScorePlanes) -> Verdict:
        said = self.reading.values
        if said == "auto" and planes.verdict == "unknown" and planes.layout != "crf":
            raise ValueError("the values are within 0..1 and do not add up to one: say --values")
        if said not in ("auto", planes.verdict) and planes.sure:
            raise ValueError(f"the values are said to be {said}, but are {planes.verdict}")
        return planes.verdict if said == "auto" else said


@dataclass(frozen=True)
class ForegroundReader:
    """The classes of scores as activation maps, for a preset that makes its own background.

    Classes that are nowhere the strongest, the background among them, are left out, as those of
    CAMs are that the image-level labels do not name.
    """

    reader: ScoreReader

    def __call__(
        self, row: Mapping[str, Mapping[str, Any]]
    ) -> tuple[list[int], NDArray[np.float32]]:
        """Class ids from 1 and maps, float32 [K, H, W]. Raises RowError as `ScoreReader`."""
        labels, scores = self.reader(row)
        kept = [k for k in np.unique(scores.argmax(axis=0)) if labels[k]]
        return [labels[k] for k in kept], scores[kept]


NOT_SHARES = (
    "there is a class 0, but the planes do not add up to one: if class 0 is the first class, "
    + NO_BACKGROUND
    + "; if it is the background, say --background-channel"
)
"""What is wrong with numbered planes that may be CAMs."""


def resize_planes(
    scores_Mhw: NDArray[Any], kept: list[int], height: int, width: int
) -> NDArray[np.float32]:
    """Some planes at another size, bilinear, float32 [M, height, width]; a copy."""
    out = np.empty((len(kept), height, width), np.float32)
    for plane_HW, k in zip(out, kept, strict=True):
        source_hw = np.ascontiguousarray(scores_Mhw[k], np.float32)
        if source_hw.shape == plane_HW.shape:
            plane_HW[...] = source_hw
        else:
            cv2.resize(source_hw, (width, height), plane_HW, interpolation=cv2.INTER_LINEAR)
    return out
