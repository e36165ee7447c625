"""What cells of a table hold instead of a class: nothing, an error, several classes."""

from __future__ import annotations

import re

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
        return (
            f"the label {word!r} ends with a number: write the class alone, or name it in "
            "classes.txt"
        )
    return ""
