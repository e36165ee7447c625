"""What cells of a table hold instead of a class: nothing, an error, several classes, yes or no."""

from __future__ import annotations

import re
from collections.abc import Iterable

SEPARATOR = ";"
"""Of the classes of an image."""
JOINTS = ",|，、；｜،؛•"
"""What people write between classes, too; in no class name of the field but the comma."""
# nothing that a name holds: brackets of lists, ends of lines, wide spaces, paths
_STRANGE = "[]{}\\\t\n\u2028\u2029\u3000"
_QUOTES = "'\"“”„‟«»‘’‚`"
# how spreadsheets, databases and programs write an empty cell
_EMPTY = re.compile(
    r"(?:nan|nat|null|none|n/a|na|<na>|\(null\)|\(none\)|\(blank\)|\(empty\)|\\n|\?+|\.+|[-–—]+)?",
    re.IGNORECASE,
)
# how a spreadsheet writes what it could not work out, in some languages
_SHEET_FAULT = re.compile(
    r"#[^\s#]+[!?]|#N/[A-Z]{1,2}|#NV|#(?:CALC|FIELD|SPILL)|#{3,}|Err:\d+|Loading\.\.\.",
    re.IGNORECASE,
)
# `cat:0.9`, `dog=2`
_NUMBER_BEHIND = re.compile(r".+[:=]\s*\d*\.?\d+%?")
# `16 0`, `7_1_2`, but `20-29` is one range
_NUMBERS = re.compile(r"\d+(?:[ _/+&-]+\d+)+")
_RANGE = re.compile(r"(\d{1,9})-(\d{1,9})")
# `dog 0.93`, `cat (88 %)`, 0.93; `boeing 737`, `class 1` and `iphone 2.0` are names
_SCORE = re.compile(
    r".+[ _@~(:=-] ?(?:0?[.,]\d+|1[.,]0+|\d(?:\.\d+)?e-\d+|\d+(?:[.,]\d+)? ?%)\)?"
    r"|0?[.,](?=\d*[1-9])\d+|\d+(?:[.,]\d+)? ?%",
    re.IGNORECASE,
)
_ENDS = "the label {!r} ends with a number: write the class alone, or name it in classes.txt"
_FALSE = ("false", "falsch", "faux", "falso", "onwaar", "no", "nein", "non", "nee")
_TRUE = ("true", "wahr", "vrai", "vero", "verdadero", "verdadeiro", "waar")
_YES = ("yes", "ja", "oui", "si", "sí", "sì")
_CHECKS = "✓✔☑✅√"
_CROSSES = "✗✘✕✖❌☒☐"
# in a column of labels they name no class
_NO_CLASSES = {*_FALSE, *_TRUE, *_YES, *_CHECKS, *_CROSSES}
_MARKS = dict.fromkeys(("", "0", *_FALSE), False)
_MARKS |= dict.fromkeys(("1", "x", "y", *_TRUE, *_YES, *_CHECKS), True)
_WHOLE_MARK = re.compile(r"^(-?[01])[.,]0+$")
_INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff"


def visible(word: str) -> str:
    """A word without characters that show nothing at its ends."""
    return word.strip(_INVISIBLE + " \t")


def is_empty(word: str) -> bool:
    """Whether a cell says that it holds nothing."""
    return _EMPTY.fullmatch(visible(word)) is not None


def is_sheet_fault(word: str) -> bool:
    """Whether a cell holds an error of a spreadsheet."""
    return _SHEET_FAULT.fullmatch(word) is not None


def no_class(word: str) -> str:
    """Why a word is the name of no one class, where no list names it; empty where it may be one."""
    if word[:1] in _QUOTES and word[-1:] in _QUOTES:
        return f"the label {word!r} is in quotes: leave them out"
    used = next((char for char in word if char in JOINTS or char in _STRANGE), None)
    if used is not None:
        return (
            f"the label {word!r} holds {used!r}: separate the classes of an image by "
            f"{SEPARATOR!r}, or name this class in classes.txt"
        )
    if _NUMBER_BEHIND.fullmatch(word):
        return _ENDS.format(word)
    return ""


def is_several_numbers(word: str) -> bool:
    """Whether a word is a list of class numbers, and no range of numbers."""
    ends = _RANGE.fullmatch(word)
    return _NUMBERS.fullmatch(word) is not None and not (ends and int(ends[1]) < int(ends[2]))


def has_score(word: str) -> bool:
    """Whether a word is a class and its score, which differs from image to image."""
    return _SCORE.fullmatch(word) is not None


def no_class_in_cell(word: str) -> str:
    """As `no_class`, for a cell of many, where numbers are of the image; a folder has its own."""
    if is_several_numbers(word):
        return (
            f"the label {word!r} is several numbers: separate the classes of an image by "
            f"{SEPARATOR!r}, or name this class in classes.txt"
        )
    return no_class(word) or (_ENDS.format(word) if has_score(word) else "")


def marks_in(columns: Iterable[Iterable[str]]) -> dict[str, bool]:
    """What each cell says that is a mark, yes or no; without those that may mean either.

    Beside 1 alone -1 is no: beside 0 it is often "not known". Beside y, n is no, and so are crosses
    beside check marks.

    Args:
        columns: the cells of each.
    """
    plain = [{cell: _plain(cell) for cell in column} for column in columns]
    used = {word for words in plain for word in words.values()}
    marks = dict(_MARKS)
    if "y" in used:
        marks["n"] = False
    if not used.isdisjoint(_CHECKS):
        marks |= dict.fromkeys(_CROSSES, False)
        del marks["x"]
    signed = [set(words.values()) for words in plain if {*words.values()} <= {"1", "0", "-1", ""}]
    if set[str]().union(*(words for words in signed if words != {""})) == {"1", "-1"}:
        marks["-1"] = False
    return {cell: marks[word] for words in plain for cell, word in words.items() if word in marks}


def say_yes_or_no(words: Iterable[str]) -> bool:
    """Whether labels only say yes and no, and name no class; 0 and 1 may be class numbers."""
    plain = set(map(_plain, words))
    return bool(plain) and (plain <= _NO_CLASSES or plain in ({"y", "n"}, {"1", "-1"}))


def _plain(cell: str) -> str:
    """A mark in one spelling: 1 for `1,0`, without the sign that makes it a picture."""
    return _WHOLE_MARK.sub(r"\1", visible(cell).casefold().rstrip("\ufe0f"))
