"""JSON files that are larger than memory: their entries one after another, whatever wrote them."""

from __future__ import annotations

import codecs
import itertools
import re
from collections.abc import Iterator
from typing import Any

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.text import encoding_of

_BUFFER_BYTES = 1 << 20
# what stands where a value may; `-Infinity` is the longest
_NO_NUMBER = re.compile(rb"([:\[,]\s*)(?:NaN|-?Infinity)(?=\s*[,\]}])")
# the end of a piece of the file where such a word may go on in the next
_UNFINISHED = re.compile(rb"[:\[,]\s*(?:-|-?[NI][A-Za-z]*\s*)?\Z")
_LONGEST = 64


class _Cleaned:
    """A stream of JSON in UTF-8, without byte order marks.

    Args:
        stream: of bytes.
        numbers: whether NaN and Infinity, which Python writes and JSON does not know, become null:
            also those in texts that look like a list.
    """

    def __init__(self, stream: Any, numbers: bool) -> None:
        self._stream = stream
        self._numbers = numbers
        self._decoder: codecs.IncrementalDecoder | None = None
        self._rest = b""
        self._begun = False

    def read(self, size: int = -1) -> bytes:
        if size == 0:
            return b""  # ijson asks for nothing to learn the type
        while True:
            data: bytes = self._stream.read(size)
            more = self._recoded(data)
            if not self._numbers and (more or not data):
                return more
            whole = self._rest + more if self._rest else more
            self._rest = b""
            # one byte is sought ten times as fast as a word
            if (b"N" in whole or b"I" in whole) and (b"NaN" in whole or b"Infinity" in whole):
                whole = _NO_NUMBER.sub(rb"\1null", whole)
            unfinished = _UNFINISHED.search(whole, max(0, len(whole) - _LONGEST)) if data else None
            if unfinished:
                whole, self._rest = whole[: unfinished.start()], whole[unfinished.start() :]
            if whole or not data:
                return whole

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

    done = 0
    try:
        try:
            for item in _parsed(uri, prefix, numbers=False):
                yield item
                done += 1
        except ijson.JSONError:
            # perhaps of numbers that JSON does not know
            yield from itertools.islice(_parsed(uri, prefix, numbers=True), done, None)
    except FileNotFoundError as error:
        raise CannotRunError(f"no annotation file at {uri}") from error
    except (ijson.JSONError, UnicodeError) as error:
        raise CannotRunError(f"{uri}: {_json_fault(uri, error)}") from error
    except OSError as error:
        raise CannotRunError(f"{uri} cannot be read: {_one_line(error)}") from error


def _parsed(uri: str, prefix: str, *, numbers: bool) -> Iterator[Any]:
    import ijson

    filesystem, path = storage.resolve(uri)
    with filesystem.open_input_stream(path, compression="detect") as stream:
        cleaned = _Cleaned(stream, numbers)
        # floats, not decimals: COCO's coordinates have two places
        yield from ijson.items(cleaned, prefix, buf_size=_BUFFER_BYTES, use_float=True)


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
