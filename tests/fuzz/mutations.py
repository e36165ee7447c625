"""What a file looks like after an accident: hypothesis draws one or more of them.

`PMM_FUZZ_EXAMPLES=N` tries N files of each test, by chance; without it the same few every time.
"""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from pmm_ray.runtime.core.errors import CannotRunError, RowError

T = TypeVar("T")
_WORDS = (
    *(
        b"NaN",
        b"Infinity",
        b"null",
        b"[]",
        b"{}",
        b'"',
        b"\\",
        b"\x00",
        b"\xff\xfe",
        b"\xef\xbb\xbf",
    ),
    *(b"-1", b"1e999", b"9" * 40, b"../", b"\\u0000", b"\xed\xa0\x80", b"\r", b"\n\n", b",", b";"),
    *(b"background", b"255", b"[" * 200, b"%2e%2e%2f", b"\x89PNG", b"PAR1", b"\x80\x04"),
)
MOST_SECONDS = 10
_MOST_BYTES = 700 << 20

_examples = os.environ.get("PMM_FUZZ_EXAMPLES")
fuzz = settings(
    max_examples=int(_examples or 25),
    deadline=MOST_SECONDS * 1000,
    derandomize=_examples is None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
"""Of every test here."""

commands = settings(fuzz, max_examples=int(_examples or 8), deadline=None)
"""Of tests that run whole commands."""


@contextmanager
def alone(name: str, data: bytes) -> Iterator[Path]:
    """A file in a folder of its own, which is deleted in the end."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        yield path


@contextmanager
def bounded_memory() -> Iterator[None]:
    """Fails where the process grew by more than a small file can justify."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    yield
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < _MOST_BYTES, f"the process grew by {grown >> 20} MB"


OURS = (CannotRunError, RowError)


def ours(read: Callable[[], T], *errors: type[Exception]) -> T | None:
    """What a call returns, None where it refuses; only our own errors, in words, may come out."""
    allowed = errors or OURS
    said = "nothing"
    result = None
    with bounded_memory():
        try:
            result = read()
        except allowed as error:
            said = str(error)
    assert said.strip().encode()  # a console takes it
    return result


@st.composite
def damaged(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """One of the seeds, or what one to four accidents leave of it."""
    data = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        stop = min(len(data), start + draw(st.integers(0, 40)))
        kind = draw(st.sampled_from(("cut", "drop", "twice", "bytes", "word", "flip")))
        if kind == "cut":
            data = data[:start]
        elif kind == "drop":
            data = data[:start] + data[stop:]
        elif kind == "twice":
            data = data[:stop] + data[start:]
        elif kind == "bytes":
            data = data[:start] + draw(st.binary(max_size=12)) + data[stop:]
        elif kind == "word":
            data = data[:start] + draw(st.sampled_from(_WORDS)) + data[start:]
        elif start < len(data):
            flipped = data[start] ^ (1 << draw(st.integers(0, 7)))
            data = data[:start] + bytes([flipped]) + data[start + 1 :]
    return data
