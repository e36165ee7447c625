"""What a column of labels means: numbers, names, lists of them, or a 0 or 1 for each class.

Nothing in a file says which, so it is decided from all values at once, and said.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pmm_ray.labels import MAX_FOREGROUND, is_background, normalize_name
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.reading.cells import (
    JOINTS,
    SEPARATOR,
    has_score,
    is_empty,
    is_several_numbers,
    say_yes_or_no,
)

Form = Literal["class numbers", "class names", "0 or 1 for each class"]
UNNAMED_CLASS = "object"
"""The class where nothing names one."""
_JOINTS = (SEPARATOR, *JOINTS)
# in no class name of the field; a comma is in some: "tench, Tinca tinca"
_OF_LISTS = f"{SEPARATOR}{JOINTS}[]{{}}".replace(",", "")
_BITS = re.compile(r"^[01]{2,}$")


def bits_in(cells: Iterable[str]) -> int:
    """For how many classes each cell has a 0 or 1: `0;1;1`, `0110`, `[0, 1, 1]`; 0 if not so."""
    found = set(filter(None, cells))
    bits = {re.sub(r"[\s,;\[\]]+", "", text) for text in found}
    # 10 and 11 are numbers of classes, unless another has a zero first
    sure = bits != found or any(text.startswith("0") for text in bits)
    lengths = set(map(len, bits))
    return lengths.pop() if sure and len(lengths) == 1 and all(map(_BITS.match, bits)) else 0


def _whole(label: Any) -> Any:
    """The number that a float of pandas was before a row lacked one; None where it is NaN."""
    if not isinstance(label, float) or math.isinf(label):
        return label
    if math.isnan(label):
        return None
    return int(label) if label.is_integer() else label


@dataclass(frozen=True)
class ColumnLabels:
    """How to read the labels of a row.

    Args:
        names: of the classes in the order of their numbers; the background may come first.
        form: what the values are.
    """

    names: tuple[str, ...]
    form: Form

    @property
    def _first(self) -> int:
        return 0 if self.names and is_background(self.names[0]) else 1

    def ids(self, value: Any) -> list[int]:
        """Contiguous ids of a row. Raises ValueError for what is no class, or no such list."""
        values = value if isinstance(value, list) else [value]
        # -1 is Hugging Face's mark of an unlabelled row
        values = [label for label in map(_whole, values) if label not in (None, "", -1)]
        values = [label for label in values if not self._is_empty(label)]
        if self.form == "0 or 1 for each class":
            if values and len(values) != len(self.names):
                raise ValueError(f"{len(values)} values of 0 or 1 for {len(self.names)} classes")
            values = [place for place, label in enumerate(values) if label]
        # several objects of one class have its name each
        elif _may_be_bits(values) and len(set(map(str, values))) < len(values):
            raise ValueError(
                f"the list {values[:12]} repeats a class: neither class numbers, nor 0 or 1 for "
                f"each of the {len(self.names)} classes"
            )
        return [label for label in map(self._id, values) if label]

    def _is_empty(self, label: Any) -> bool:
        """Whether a text says that there is no label, where no class is called so."""
        return isinstance(label, str) and is_empty(label) and label not in self.names

    def _id(self, label: Any) -> int:
        if isinstance(label, str):
            name = normalize_name(label)
            if name in self.names:
                return self.names.index(name) + self._first
            if is_background(name):
                return 0
            hint = ": write the class alone, without a number" if has_score(name) else ""
            if is_several_numbers(name) or any(char in name for char in (*_JOINTS, *_OF_LISTS)):
                hint = ": of several classes, write a list of names"
            raise ValueError(self._unknown(label) + hint)
        if isinstance(label, int) and 0 <= label < len(self.names):
            return int(label) + self._first
        raise ValueError(self._unknown(label))

    def _unknown(self, label: Any) -> str:
        text = repr(label)
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        return f"label {shown} is none of the {len(self.names)} classes"


def read_column(values: Iterable[Any], names: Sequence[str] | None) -> ColumnLabels:
    """Decide what the values of a column are.

    Lists are a 0 or 1 for each class if all are of one length, which is that of the names where
    there are any, hold nothing else, and one cannot be class numbers: it repeats or descends.

    Args:
        values: of all rows.
        names: of the classes, where the data set tells them.

    Raises:
        CannotRunError: numbers and names in one column, texts of 0 and 1 for each class, or
            nothing but true and false.
    """
    words: set[str] = set()
    texts: set[str] = set()
    truths: set[str] = set()
    highest = -1
    lengths: set[int] = set()
    binary, unlike_numbers = True, False
    for value in values:
        labels = value if isinstance(value, list) else [value]
        labels = [label for label in map(_whole, labels) if label not in (None, "")]
        spelt = [normalize_name(label) for label in labels if isinstance(label, str)]
        words |= set(spelt)
        texts.add(SEPARATOR.join(word for word in spelt if not is_empty(word)))
        numbers = [label for label in labels if isinstance(label, (int, float))]
        highest = max(
            [highest, *(int(number) for number in numbers if 0 <= number < MAX_FOREGROUND * 2)]
        )
        if isinstance(value, list) and numbers:
            lengths.add(len(numbers))
            binary &= all(number in (0, 1) for number in numbers)
            bools = any(isinstance(number, bool) for number in numbers)
            unlike_numbers |= bools or any(a >= b for a, b in itertools.pairwise(numbers))
        elif numbers:
            binary = False
            truths |= {str(number) for number in numbers if isinstance(number, bool)}
    words = {word for word in words if not is_empty(word)}
    if words and highest >= 0:
        raise CannotRunError("some labels are numbers and some are names: use one or the other")
    if say_yes_or_no(words):
        truths = words
    if truths and names is None:
        raise CannotRunError(
            f"the labels are only {sorted(truths)}, which name no class: write the names of the "
            "classes, or a list of 0 and 1 for each class"
        )
    if count := bits_in(texts):
        raise CannotRunError(
            f"the labels are texts of 0 or 1 for each of {count} classes: write lists of numbers"
        )
    length = next(iter(lengths), 0)
    fits = len(lengths) == 1 and (names is None or len(names) == length)
    if binary and unlike_numbers and fits:
        return ColumnLabels(tuple(names or map(str, range(length))), "0 or 1 for each class")
    if names is not None:
        named = tuple(map(normalize_name, names))
        return ColumnLabels(named, "class names" if words else "class numbers")
    if words:
        classes = sorted(word for word in words if not is_background(word))
        return ColumnLabels(tuple(_unjoined(classes) or [UNNAMED_CLASS]), "class names")
    numbers_found = tuple(str(i) for i in range(highest + 1))
    return ColumnLabels(numbers_found or (UNNAMED_CLASS,), "class numbers")


def _unjoined(words: list[str]) -> list[str]:
    """The words without those that are lists in one text, or others of them joined by commas."""
    known = Counter(words)
    for word in words:
        known.update(_parts(word) - {word})
    return [
        word
        for word in words
        if not any(char in word for char in _OF_LISTS)
        and not is_several_numbers(word)
        and not has_score(word)
        and not any(known[part] > 1 for part in _parts(word) - {word})
    ]


def _may_be_bits(values: list[Any]) -> bool:
    """Whether the values of a row may be a 0 or 1 for each class, also as texts."""
    return not all(isinstance(value, str) for value in values) or set(values) <= {"0", "1"}


def _parts(word: str) -> set[str]:
    return {part.strip() for joint in _JOINTS for part in word.split(joint)}
