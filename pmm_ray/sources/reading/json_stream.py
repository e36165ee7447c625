"""JSON files that are larger than memory: their entries one after another, whatever wrote them."""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterator
from typing import Any

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.store_faults import unreadable
from pmm_ray.sources.reading.noted import note
from pmm_ray.sources.reading.text import encoding_of

_BUFFER_BYTES = 1 << 20
# a text, which may go on in the next piece of the file, or a word; `-Infinity` is the longest
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*(")?|-?[NI][A-Za-z]*', re.DOTALL)
_NO_NUMBERS = {b"NaN", b"Infinity", b"-Infinity"}
# the end of a piece where a word may go on
_UNFINISHED = re.compile(rb"-?[A-Za-z]{0,8}\Z")


class _Cleaned:
    """A stream of JSON in UTF-8, without byte order marks.

    Args:
        stream: of bytes.
        any_number: whether NaN and Infinity, which Python writes and JSON does not know, become
            null.
    """

    def __init__(self, stream: Any, any_number: bool) -> None:
        self._stream = stream
        self._any_number = any_number
        self._decoder: codecs.IncrementalDecoder | None = None
        self._rest = b""
        self._in_text = False
        self._begun = False

    def read(self, size: int = -1) -> bytes:
        if size == 0:
            return b""  # ijson asks for nothing to learn the type
        while True:
            data: bytes = self._stream.read(size)
            more = self._recoded(data)
            if self._any_number:
                more = self._with_nulls(more, last=not data)
            if more or not data:
                return more

    def _with_nulls(self, more: bytes, *, last: bool) -> bytes:
        """The next piece with null for what is no number; what is undecided waits for more."""
        # a text that goes on begins anew
        begin = b'"' if self._in_text else b""
        whole = begin + self._rest + more
        unfinished = None if last else _UNFINISHED.search(whole, max(0, len(whole) - 9))
        end = len(whole) if unfinished is None else max(unfinished.start(), len(begin))
        self._in_text = False
        self._rest = b""

        def null(found: re.Match[bytes]) -> bytes:
            token = found.group()
            if token.startswith(b'"') and found.group(1) is None:
                # behind it at most a backslash, which belongs to what follows
                self._in_text = True
                self._rest = whole[found.end() : end]
                return token
            return b"null" if token in _NO_NUMBERS else token

        cleaned = _TOKEN.sub(null, whole[:end])
        cleaned = cleaned[len(begin) : len(cleaned) - len(self._rest)]
        self._rest += whole[end:]
        return cleaned

    def _recoded(self, data: bytes) -> bytes:
        if not self._begun and data:
            self._begun = True
            encoding = encoding_of(data[:4])
            if encoding != "utf-8":
                self._decoder = codecs.getincrementaldecoder(encoding)()
        if self._decoder is None:
            return data
        return self._decoder.decode(data, final=not data).encode("utf-8", "surrogatepass")


def read_items(uri: str, prefix: str) -> Iterator[Any]:
    """The entries of a list, each as it stands; never more of the file is in memory than one.

    Args:
        uri: of the file, perhaps compressed.
        prefix: where they are, as ijson names it: `images.item`.

    Raises:
        CannotRunError: no such file, or no JSON.
    """
    import ijson

    note(uri)
    done, any_number, huge = 0, False, False
    try:
        while True:
            try:
                for item in itertools.islice(_parsed(uri, prefix, any_number, huge), done, None):
                    yield item
                    done += 1
                return
            except ijson.JSONError as error:
                # perhaps of numbers that JSON, or the parser in C, does not know
                overflow = "overflow" in _one_line(error)
                if huge or (any_number and not overflow):
                    raise
                any_number, huge = True, overflow
    except FileNotFoundError as error:
        raise CannotRunError(f"no annotation file at {uri}") from error
    except (ijson.JSONError, ValueError) as error:
        raise CannotRunError(f"{uri}: {_json_fault(uri, error)}") from error
    except OSError as error:
        raise unreadable(f"{uri} cannot be read", error) from error


def _parsed(uri: str, prefix: str, any_number: bool, huge: bool) -> Iterator[Any]:
    """The entries; with `any_number` NaN and Infinity are null, with `huge` integers have any size,
    at a tenth of the speed."""
    import ijson

    parser = ijson.get_backend("python") if huge else ijson
    filesystem, path = storage.resolve(uri)
    with filesystem.open_input_stream(path, compression="detect") as stream:
        cleaned = _Cleaned(stream, any_number)
        # floats, not decimals: COCO's coordinates have two places
        yield from parser.items(cleaned, prefix, buf_size=_BUFFER_BYTES, use_float=True)


def _json_fault(uri: str, error: Exception) -> str:
    """What is wrong with text at which the parser gave up: no JSON at all, cut off, or a fault."""
    head = storage.read_bytes(uri, 64)
    if not head:
        return "the file is empty (0 bytes)"
    if stand_in := storage.stand_in(head):
        return stand_in
    text = _one_line(error)
    if "UTF8" in text or isinstance(error, UnicodeError):
        return "not UTF-8 text: save it as UTF-8"
    at_end = any(word in text for word in ("premature EOF", "incomplete", "Incomplete"))
    return "the JSON is cut off: load the file again" if at_end else f"not valid JSON: {text}"


def _one_line(error: Exception) -> str:
    text = next((a.decode(errors="replace") for a in error.args if type(a) is bytes), str(error))
    # yajl quotes the place with an arrow over several lines
    return " ".join(text.split())[:200]
