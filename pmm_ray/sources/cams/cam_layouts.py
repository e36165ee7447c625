"""Which program wrote a file of activation maps, and which class each of its planes belongs to.

A layout is known by the names in a file. What names do not tell is asked for: where classes begin,
and whether a plane is the background.
"""

# K: classes of one file; h, w: a CAM of any size.

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from numpy.typing import NDArray

from pmm_ray.runtime.core.errors import RowError
from pmm_ray.sources.cams.plane_files import KINDS, Content, Kind, floating, numbers, stack
from pmm_ray.sources.cams.said import ClassIds, Normalize

Background = Literal["none", "first plane", "class 0"]


@dataclass(frozen=True)
class Layout:
    """How one family of programs stores its CAMs.

    Attributes:
        written_by: the programs.
        kind: of file.
        maps: names of the maps, the one to take first.
        keys: name of the class numbers.
        without: names that such a file does not have.
        background: whether a plane is the background, which is no class: none, the first one of
            K + 1, or that of class number 0, from which the numbers then count.
    """

    written_by: str
    kind: Kind
    maps: tuple[str, ...] = ()
    keys: str = "keys"
    without: tuple[str, ...] = ()
    background: Background = "none"

    @property
    def file(self) -> str:
        """What such a file is, in a few words."""
        if not self.maps:
            return KINDS[self.kind]
        names = " or ".join(f"`{name}`" for name in self.maps)
        return f"{KINDS[self.kind]}, `{self.keys}`, {names}"


LAYOUTS: dict[str, Layout] = {
    "pot": Layout("POT", "dictionary", ("IS_CAM", "IS_CAM1"), background="class 0"),
    "more": Layout("MoRe", "dictionary", ("valid_lam",)),
    "excel": Layout(
        "ExCEL", "dictionary", ("valid_lam",), "keys_gt", ("keys",), background="first plane"
    ),
    "puzzlecam": Layout("PuzzleCAM", "dictionary", ("hr_cam", "rw")),
    "clip-es": Layout("CLIP-ES, WeCLIP", "dictionary", ("attn_highres",)),
    "irn": Layout("IRN, ReCAM, LPCAM, AdvCAM, W-OoD, ToCo, AFA", "dictionary", ("high_res", "cam")),
    "fma": Layout("FMA-WSSS", "archive", ("cam",), "fg_cls"),
    "npz": Layout("any program; optionally `size`", "archive", ("cam",)),
    "seam": Layout("SEAM, PSA, PMM, EPS, L2G, S2C, MCTformer, WeakTr, CoSA", "numbered"),
    "per-class": Layout("L2G on COCO; a file per class", "files"),
}
"""By the name that `--layout` takes."""
OWN = "npz"
"""The layout for programs that write for us."""
# the small copy of other maps: it counts only where it is alone
_SMALL = "cam"
_LARGE = {name for layout in LAYOUTS.values() for name in layout.maps} - {_SMALL}
# what class numbers are called where only the maps have a name that the user says
_KEYS = tuple(dict.fromkeys(layout.keys for layout in LAYOUTS.values()))
# what a file of a user's own names is read as
_OTHERS: dict[Kind, str] = {"dictionary": "irn", "archive": OWN}


@dataclass(frozen=True)
class Reading:
    """What the user says of a folder of CAMs; what it leaves open is decided by `cam_detect`.

    Attributes:
        layout: name of one in `LAYOUTS`; empty: told from each file.
        key: name of the maps in a dictionary or archive; empty: the layout's.
        first_class: the number of the first class, 0 or 1; None: 0, unless the file says.
        background_channel: whether class 0 (or the first of K + 1 planes) is the background.
        normalize: how each map is brought to 0..1: divided by its maximum, stretched from its
            minimum to its maximum, or as it is.
        class_ids: see `Said`.
    """

    layout: str = ""
    key: str = ""
    first_class: int | None = None
    background_channel: bool = False
    normalize: Normalize = "none"
    class_ids: ClassIds = "auto"


UNREAD = Reading()
"""Nothing is known but what the files say."""


@dataclass(frozen=True)
class Planes:
    """The maps of one file.

    Attributes:
        layout: its name.
        key: name of the maps.
        labels: from 1; below 1 if the numbers are wrong.
        scores: floating [K, h, w].
        numbers: of the classes, as they are stored.
        sure: whether the file itself says where the background is.
        size: of the photograph, if the file states it.
    """

    layout: str
    key: str
    labels: list[int]
    scores: NDArray[Any]
    numbers: list[int]
    sure: bool
    size: tuple[int, int] | None = None


def read_planes(content: Content, reading: Reading) -> Planes:
    """The maps of a file and their classes.

    Raises:
        ValueError: the file has no such layout, or several.
        RowError: `label`: its numbers are not what the reading says.
    """
    name, key = choose(content, reading)
    layout = LAYOUTS[name]
    size = None
    if layout.maps:
        keys = next(name for name in (layout.keys, *_KEYS) if name in content)
        stored = numbers(content[keys])
        scores = floating(content[key], "a map" if content.kind == "dictionary" else "the CAM")
        if "size" in content and name == OWN:
            size = _size(content["size"])
    else:
        stored = [int(number) for number in content.names]
        scores = stack([content[number] for number in content.names])
    if scores.ndim == 4 and len(scores) == 1:
        scores = scores[0]
    if scores.ndim != 3:
        raise ValueError(
            f"the CAM is {scores.dtype} {list(scores.shape)}: floating [K, h, w] is expected"
        )
    labels, scores, sure = _classes(stored, scores, layout, reading)
    return Planes(name, key, labels, scores, stored, sure, size)


def choose(content: Content, reading: Reading) -> tuple[str, str]:
    """(layout, name of the maps) of a file. Raises ValueError as `read_planes`."""
    fitting = {
        name: key
        for name, layout in LAYOUTS.items()
        if layout.kind == content.kind
        and (key := _maps_in(content, layout, name, reading)) is not None
    }
    if reading.layout:
        if reading.layout not in fitting:
            raise ValueError(
                f"it is no file of layout {reading.layout} ({LAYOUTS[reading.layout].file}): "
                f"{_holds(content)}" + (f"; it fits {', '.join(fitting)}" if fitting else "")
            )
        return reading.layout, fitting[reading.layout]
    if len(fitting) == 1:
        return next(iter(fitting.items()))
    if fitting:
        raise ValueError(
            f"{_holds(content)}, as several programs write it: say which with --layout "
            f"{' or '.join(fitting)}"
        )
    other = _OTHERS.get(content.kind)
    if other and reading.key in content and any(name in content for name in _KEYS):
        return other, reading.key
    raise ValueError(_unknown(content, reading))


def _maps_in(content: Content, layout: Layout, name: str, reading: Reading) -> str | None:
    """The name of the maps if the file has this layout, else None."""
    if not layout.maps:
        return None if reading.key else ""
    if layout.keys not in content or any(other in content for other in layout.without):
        return None
    if not reading.key:
        key = next((key for key in layout.maps if key in content), None)
        larger = any(other in content for other in _LARGE)
        return None if key == _SMALL and larger else key
    said = name == reading.layout or reading.key in layout.maps
    return reading.key if said and reading.key in content else None


def _holds(content: Content) -> str:
    names = content.names
    if content.kind == "array":
        return "it holds one array"
    shown = f"{sorted(names)[:5]}" + (" and more" if len(names) > 5 else "")
    return f"it is {KINDS[content.kind]} with {shown}"


def _unknown(content: Content, reading: Reading) -> str:
    if content.kind == "array":
        return (
            "it holds one array without class numbers: scores of all classes are for `pmm refine "
            "--scores`; a file per class is read with --layout per-class"
        )
    if reading.key:
        return f"{_holds(content)}: the maps {reading.key!r} and {' or '.join(_KEYS)} are expected"
    if content.kind == "archive":
        return f"{_holds(content)}: keys and cam are expected, or --key NAME"
    if "keys" in content or "keys_gt" in content:
        known = [name for layout in LAYOUTS.values() for name in layout.maps]
        names = ", ".join(dict.fromkeys(known))
        return f"the dictionary has keys, but none of {names}: say --key NAME"
    return (
        f"the dictionary's keys are {sorted(content.names)[:5]}: class numbers (SEAM, PMM), or "
        "keys, cam and high_res (IRN) are expected"
    )


def _classes(
    stored: list[int], scores: NDArray[Any], layout: Layout, reading: Reading
) -> tuple[list[int], NDArray[Any], bool]:
    """(labels from 1, their planes, whether the file says where the background is)."""
    more = len(scores) - len(stored)
    if more == 1 and (layout.background == "first plane" or reading.background_channel):
        first = reading.first_class or 0
        return [number + 1 - first for number in stored], scores[1:], True
    if more == -1 and stored[0] == 0:  # the background has a number and no plane
        _counts_from_one(reading, "class 0 of the file has no plane, it is the background")
        return stored[1:], scores, True
    if more or layout.background == "first plane":
        raise ValueError(
            f"the CAM is {scores.dtype} {list(scores.shape)} for {len(stored)} classes: floating "
            "[K, h, w] with one map per class is expected"
        )
    if layout.background == "class 0" or reading.background_channel:
        if 0 not in stored:
            raise RowError(
                "label", f"the file has no class 0, the background: its classes are {stored}"
            )
        _counts_from_one(reading, "class 0 of the file is the background")
        kept = [k for k, number in enumerate(stored) if number != 0]
        return [stored[k] for k in kept], scores[kept], True
    if reading.first_class == 1 and 0 in stored:
        raise RowError(
            "label",
            "the file has a class 0, but the first class is said to be 1: if it is the background, "
            "say --background-channel, else --first-class 0",
        )
    return [number + 1 - (reading.first_class or 0) for number in stored], scores, False


def _counts_from_one(reading: Reading, why: str) -> None:
    if reading.first_class == 0:
        raise RowError("label", f"{why}, but the first class is said to be 0")


def _size(value: NDArray[Any]) -> tuple[int, int]:
    if value.shape != (2,) or value.dtype.kind not in "iu":
        raise ValueError(f"size is {value.dtype} {list(value.shape)}: [height, width] is expected")
    return int(value[0]), int(value[1])
