"""The one reader of text that people and other programs wrote: its encoding, its lines, its table.

UTF-8 and UTF-16 or UTF-32 with their byte order marks are read; anything else is refused by a
sentence that names the file. A guessed encoding would turn names into other names.
"""

from __future__ import annotations

import codecs
import csv
import io
import re
from dataclasses import dataclass

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


def _check_quotes(uri: str, text: str, delimiter: str) -> None:
    """Refuse a quote that is open at the end: it would swallow the lines behind it."""
    try:
        for _ in csv.reader(
            io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True
        ):
            pass
    except csv.Error as error:
        # a quote within a cell is none: `12" screen`
        if "end of data" in str(error):
            raise CannotRunError(f'{uri}: a quote (") begins a cell and never ends') from error


def read_table_text(uri: str, what: str) -> TextTable:
    """A CSV file whose first line names the columns, separated by `,`, `;`, tabs or as `sep=` says.

    Raises:
        CannotRunError: see `read_text`; or quotes that never end.
    """
    text = read_text(uri, what)
    told = _SEPARATOR_LINE.match(text)
    text = text[told.end() :] if told else text
    first = _QUOTED.sub("", _LINE_END.split(text.lstrip(), 1)[0])
    # spreadsheets of half of Europe separate by ';': what the first line holds most of
    delimiter = told[1] if told else max(_DELIMITERS, key=first.count)
    _check_quotes(uri, text, delimiter)
    try:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        columns: tuple[str, ...] = ()
        nameless: list[int] = []
        lines: list[TableLine] = []
        for row in rows:
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
                lines.append(TableLine(known, rows.line_num, surplus))
    except csv.Error as error:
        raise CannotRunError(f"{uri} is not a CSV file: {error}") from error
    return TextTable(columns, tuple(lines))
