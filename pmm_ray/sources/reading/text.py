"""The one reader of text that people and other programs wrote: its encoding, its lines, its table.

UTF-8 and UTF-16 or UTF-32 with their byte order marks are read; anything else is refused by a
sentence that names the file. A guessed encoding would turn names into other names.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.store_faults import unreadable
from pmm_ray.sources.reading.noted import note

# the marks of UTF-32 begin like those of UTF-16
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
# Lists, tables and annotations of one image stay far below; COCO's JSON is streamed, not read here.
MOST_BYTES = 512 << 20
_DELIMITERS = ",;\t"
_LINE_END = re.compile(r"\r\n?|\n")
_QUOTED = re.compile(r'"[^"]*"')
_NEVER_ENDS = "end of data"
# a column without a name, for pandas, too, which numbers the lines in the first one
_NAMELESS = re.compile(r"(?:unnamed: \d+(?:\.\d+)*)?", re.IGNORECASE)
_INDEX = re.compile(r"unnamed: 0(?:\.\d+)*", re.IGNORECASE)
# a first line by which Excel is told the separator
_SEPARATOR_LINE = re.compile(r"\A\s*\"?sep=(.)\"?[ \t]*(?:\r\n?|\n)")


def encoding_of(head: bytes) -> str:
    """The encoding that a file's first bytes declare, else `utf-8`."""
    return next((name for mark, name in _MARKS if head.startswith(mark)), "utf-8")


def read_text(uri: str, what: str = "file") -> str:
    """The text of a file.

    Args:
        what: it is called where there is none.

    Raises:
        CannotRunError: no such file, one that cannot be read, is too large, or is no such text.
    """
    note(uri)
    try:
        data = storage.read_bytes(uri, MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise CannotRunError(f"no {what} at {uri}") from error
    except OSError as error:
        raise unreadable(f"the {what} {uri} cannot be read", error) from error
    if len(data) > MOST_BYTES:
        raise CannotRunError(f"the {what} {uri} has more than {MOST_BYTES >> 20} MB: is it text?")
    if stand_in := storage.stand_in(data):
        raise CannotRunError(f"{uri} is {stand_in}")
    if data.startswith(b"PK\x03\x04"):
        raise CannotRunError(
            f"{uri} is a zip archive or a spreadsheet's own file, no text: unpack it, or save the "
            "table as CSV (UTF-8)"
        )
    try:
        text = data.decode(encoding_of(data[:4])).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        raise CannotRunError(
            f"{uri} is not UTF-8 text: save it as UTF-8 (in a spreadsheet: CSV UTF-8)"
        ) from error
    if "\0" in text:
        raise CannotRunError(f"{uri} is not text: it holds bytes of zero; save it as UTF-8")
    return text


def read_lines(uri: str, what: str = "file") -> list[str]:
    """The lines of a file that hold something, without the space around them; `#` begins a comment.

    Raises:
        CannotRunError: see `read_text`.
    """
    lines = (line.strip() for line in read_text(uri, what).splitlines())
    return [line for line in lines if line and not line.startswith("#")]


@dataclass(frozen=True)
class TableLine:
    """A line of a table: its cells by column, its number, and what stands below no name."""

    cells: dict[str, str]
    number: int
    surplus: tuple[str, ...] = ()


@dataclass(frozen=True)
class TextTable:
    """A CSV file. Lines of which every cell is empty are left out."""

    columns: tuple[str, ...]
    lines: tuple[TableLine, ...]


def _rows(uri: str, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """The number of the last line of each row, and its cells.

    Raises:
        CannotRunError: a quote that may not be meant as one makes one row of several lines.
    """
    read = partial(csv.reader, delimiter=delimiter, skipinitialspace=True)
    lines: list[str] = []

    def kept() -> Iterator[str]:
        for line in io.StringIO(text, newline=""):
            lines.append(line)
            yield line

    rows = read(kept())
    try:
        for row in rows:
            fault = _fault(read(lines, strict=True))
            # within one line they swallow nothing: `12" screen`, `"The" cat`
            if fault and (len(lines) > 1 or _NEVER_ENDS in fault):
                first = rows.line_num - len(lines) + 1
                why = (
                    "never ends"
                    if _NEVER_ENDS in fault
                    else "the one that ends it has text behind it, which makes lines "
                    f"{first} to {rows.line_num} one row: put such a cell into quotes as a whole, "
                    "and double those within it"
                )
                raise CannotRunError(f'{uri}, line {first}: a quote (") begins a cell and {why}')
            yield rows.line_num, row
            lines.clear()
    except csv.Error as error:
        first = rows.line_num - len(lines) + 1
        raise CannotRunError(f"{uri} is not a CSV file: {error} (line {first})") from error


def _fault(rows: Iterable[list[str]]) -> str:
    """What a strict reader finds wrong; empty if nothing."""
    try:
        for _ in rows:
            pass
    except csv.Error as error:
        return str(error)
    return ""


def read_table_text(uri: str, what: str) -> TextTable:
    """A CSV file whose first line names the columns, separated by `,`, `;`, tabs or as `sep=` says.

    Raises:
        CannotRunError: see `read_text`; or quotes that make one row of several.
    """
    text = read_text(uri, what)
    told = _SEPARATOR_LINE.match(text)
    text = text[told.end() :] if told else text
    first = _QUOTED.sub("", _LINE_END.split(text.lstrip(), 1)[0])
    # spreadsheets of half of Europe separate by ';': what the first line holds most of
    delimiter = told[1] if told else max(_DELIMITERS, key=first.count)
    columns: tuple[str, ...] = ()
    nameless: list[int] = []
    lines: list[TableLine] = []
    for number, row in _rows(uri, text, delimiter):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        if not columns:
            columns = tuple("" if _NAMELESS.fullmatch(cell) else cell for cell in cells)
            nameless = [
                place
                for place, column in enumerate(cells)
                if place and not columns[place] and not _INDEX.fullmatch(column)
            ]
        else:
            # a shorter line lacks its last cells, as spreadsheets write it
            filled = cells + [""] * (len(columns) - len(cells))
            known = dict(zip(reversed(columns), reversed(filled[: len(columns)]), strict=True))
            beyond = [filled[place] for place in nameless] + cells[len(columns) :]
            surplus = tuple(cell for cell in beyond if cell)
            lines.append(TableLine(known, number, surplus))
    return TextTable(columns, tuple(lines))
