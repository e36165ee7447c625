"""What the numbers in a mask mean: class names, dataset ids <-> contiguous ids, colours, ignore.

Contiguous ids are 0 for the background and 1..C for the foreground classes; every table of the
pipeline holds them. Dataset ids are what foreign files hold (COCO: 1..90 with ten missing).
"""

from __future__ import annotations

import difflib
import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

BACKGROUND = "background"
MAX_FOREGROUND = 1000
# 255 is the ignore value of an 8-bit mask, so 254 is the last class it can hold
LAST_8BIT_CLASS = 254
IGNORE_8BIT = 255
IGNORE_16BIT = 65535


# its spellings without what is no letter: background, _background_ (LabelMe), __background__
# (torchvision), BG (Mask R-CNN), bkg, each in any case
_BACKGROUNDS = frozenset({"background", "bg", "bkg", "bkgd", "backgroundclass"})


def is_background(name: str) -> bool:
    """Whether a name is one of the field's spellings of the background, in any case."""
    return re.sub(r"[\W_]+", "", name).casefold() in _BACKGROUNDS


def normalize_name(name: str) -> str:
    """A class name without surrounding space and in Unicode NFC, so that equal names are equal."""
    return unicodedata.normalize("NFC", name).strip()


@lru_cache(maxsize=1)
def voc_palette() -> NDArray[np.uint8]:
    """The VOC colour map, uint8 [256, 3] RGB: the bits of the id, dealt out to r, g, b in turn.

    Entry 255 is VOC's void colour (224, 224, 192). Source: VOCdevkit, VOClabelcolormap.m.
    """
    ids = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((ids >> (3 * bit + channel)) & 1) << (7 - bit)).astype(
                np.uint8
            )
    palette.setflags(write=False)
    return palette


@dataclass(frozen=True)
class LabelSpace:
    """The classes of a data set.

    Args:
        name: a short name of the data set (`voc12`, `coco14`, `shapes`, ...).
        names: names[0] is "background", names[i] the class with contiguous id i; unique, 1..1000
            foreground classes, any script.
        dataset_ids: dataset_ids[i] is the id of class i in the data set's own masks;
            dataset_ids[0] is 0, unique, 0..65534, never the ignore value.

    Raises:
        ValueError: one of the above does not hold.
    """

    name: str
    names: tuple[str, ...]
    dataset_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        names = tuple(normalize_name(name) for name in self.names)
        object.__setattr__(self, "names", names)
        object.__setattr__(self, "dataset_ids", tuple(map(_whole_number, self.dataset_ids)))
        if not names or names[0] != BACKGROUND:
            raise ValueError(f"names[0] must be {BACKGROUND!r}, got {list(names[:1])}")
        if not 1 <= self.num_foreground <= MAX_FOREGROUND:
            raise ValueError(
                f"{self.num_foreground} foreground classes: 1..{MAX_FOREGROUND} are possible"
            )
        if any(not name for name in names):
            raise ValueError(f"an empty class name at id {names.index('')}")
        duplicates = sorted({name for name in names if names.count(name) > 1})
        if duplicates:
            raise ValueError(f"class names occur twice: {duplicates}")
        if len(self.dataset_ids) != len(names):
            raise ValueError(f"{len(names)} names but {len(self.dataset_ids)} dataset ids")
        if self.dataset_ids[0] != 0 or len(set(self.dataset_ids)) != len(names):
            raise ValueError("dataset ids must be unique and begin with 0 for the background")
        if min(self.dataset_ids) < 0 or max(self.dataset_ids) >= IGNORE_16BIT:
            raise ValueError(f"dataset ids must be in 0..{IGNORE_16BIT - 1}")
        if self.ignore in self.dataset_ids:
            raise ValueError(f"dataset id {self.ignore} is the ignore value")

    @classmethod
    def from_names(cls, names: Sequence[str], name: str = "custom") -> LabelSpace:
        """A space whose dataset ids are the contiguous ids; a leading background is optional.

        Raises:
            ValueError: no label space; or a background that is not first: mask values would be one
                off.
        """
        foreground = list(names[1:] if names and is_background(names[0]) else names)
        for place, text in enumerate(foreground, 1):
            if is_background(text):
                raise ValueError(
                    f"{text!r} is class {place} of the list: the background is 0, name it first"
                )
        return cls(name, (BACKGROUND, *foreground), tuple(range(len(foreground) + 1)))

    @property
    def num_classes(self) -> int:
        """C + 1: the foreground classes and the background."""
        return len(self.names)

    @property
    def num_foreground(self) -> int:
        """C: the number of foreground classes."""
        return len(self.names) - 1

    @property
    def ignore(self) -> int:
        """The mask value that counts as no class: 255 while C <= 254, else 65535."""
        return IGNORE_8BIT if self.num_foreground <= LAST_8BIT_CLASS else IGNORE_16BIT

    @property
    def mask_dtype(self) -> np.dtype[Any]:
        """uint8 while C <= 254, else uint16."""
        return np.dtype(np.uint8 if self.ignore == IGNORE_8BIT else np.uint16)

    @property
    def palette(self) -> NDArray[np.uint8]:
        """Display colours, read-only uint8 [256, 3] RGB; class i has palette[i % 256]."""
        return voc_palette()

    def id_of(self, name: str) -> int:
        """The contiguous id of a class name. Raises ValueError with the nearest known name."""
        wanted = normalize_name(name)
        found = self._ids.get(wanted, 0 if is_background(wanted) else None)
        if found is None:
            folded = {known.casefold(): known for known in self.names}
            near = difflib.get_close_matches(wanted.casefold(), folded, n=1, cutoff=0.0)
            raise ValueError(
                f"unknown class {name!r} in label space {self.name!r}; "
                f"the nearest known one is {folded[near[0]]!r}"
            )
        return found

    def to_dataset(self, mask: NDArray[Any]) -> NDArray[Any]:
        """A mask of contiguous ids as one of dataset ids.

        Args:
            mask: integers, any shape, values 0..C or `ignore`.

        Returns:
            The same shape, uint8 if every dataset id and `ignore` fit in it, else uint16.

        Raises:
            ValueError: other values occur; they are named.
        """
        dtype = np.min_scalar_type(max(*self.dataset_ids, self.ignore))
        return _look_up(mask, self._dataset_table, dtype, f"0..{self.num_foreground}", self.ignore)

    def to_contiguous(self, mask: NDArray[Any]) -> NDArray[Any]:
        """A mask of dataset ids as one of contiguous ids.

        Args:
            mask: integers, any shape, values in `dataset_ids` or `ignore`.

        Returns:
            The same shape, `mask_dtype`.

        Raises:
            ValueError: other values occur; they and the allowed ones are named.
        """
        return _look_up(
            mask, self._contiguous_table, self.mask_dtype, _ranges(self.dataset_ids), self.ignore
        )

    def to_json(self) -> str:
        """The space as JSON; equal spaces give equal text."""
        content = {"name": self.name, "names": self.names, "dataset_ids": self.dataset_ids}
        return json.dumps(content, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> LabelSpace:
        """The space that `to_json` wrote. Raises ValueError if the text is not one."""
        content = json.loads(text)
        if not isinstance(content, dict) or set(content) != {"name", "names", "dataset_ids"}:
            raise ValueError("a label space is a JSON object with name, names and dataset_ids")
        return cls(content["name"], tuple(content["names"]), tuple(content["dataset_ids"]))

    @cached_property
    def _ids(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def _dataset_table(self) -> NDArray[np.int32]:
        return _table(dict(enumerate(self.dataset_ids)), self.ignore)

    @cached_property
    def _contiguous_table(self) -> NDArray[np.int32]:
        return _table({known: i for i, known in enumerate(self.dataset_ids)}, self.ignore)


def _whole_number(value: Any) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError(f"dataset id {value!r} is no whole number")
    return int(value)


def _table(mapping: dict[int, int], ignore: int) -> NDArray[np.int32]:
    """int32 look-up table of at least 256 entries, -1 where a value is unknown."""
    table = np.full(max(*mapping, ignore, 255) + 1, -1, np.int32)
    table[list(mapping)] = list(mapping.values())
    table[ignore] = ignore
    return table


def _look_up(
    mask: NDArray[Any], table: NDArray[np.int32], dtype: np.dtype[Any], allowed: str, ignore: int
) -> NDArray[Any]:
    if mask.dtype.kind not in "ui":
        raise ValueError(f"a mask holds integers, got {mask.dtype}")
    if mask.size == 0:
        return mask.astype(dtype)
    outside = mask.dtype != np.uint8 and (mask.min() < 0 or mask.max() >= len(table))
    if not outside:
        out = table[mask]
        if out.min() >= 0:
            return out.astype(dtype)
    unknown = np.setdiff1d(mask, np.flatnonzero(table >= 0)).tolist()
    raise ValueError(f"unknown mask values {_ranges(unknown)}: allowed are {allowed} and {ignore}")


def _ranges(values: Sequence[int]) -> str:
    """Numbers for a message: `0..11, 13`."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    shown = [f"{a}..{b}" if b > a else str(a) for a, b in runs]
    return ", ".join(shown[:20]) + (", ..." if len(shown) > 20 else "")


VOC12 = LabelSpace.from_names(
    [
        *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
        *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
        *("train", "tvmonitor"),
    ],
    name="voc12",
)

# original COCO ids that no instance of the 2014 annotations carries
_COCO_MISSING = frozenset({12, 26, 29, 30, 45, 66, 68, 69, 71, 83})

COCO14 = LabelSpace(
    "coco14",
    (
        *(BACKGROUND, "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train"),
        *("truck", "boat", "traffic light", "fire hydrant", "stop sign", "parking meter"),
        *("bench", "bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra"),
        *("giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis"),
        *("snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard"),
        *("surfboard", "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon"),
        *("bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog"),
        *("pizza", "donut", "cake", "chair", "couch", "potted plant", "bed", "dining table"),
        *("toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave"),
        *("oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors"),
        *("teddy bear", "hair drier", "toothbrush"),
    ),
    tuple(i for i in range(91) if i not in _COCO_MISSING),
)
