"""Progress on the driver: a live line on a terminal, a heartbeat line in a log file."""

from __future__ import annotations

import io
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TextIO

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pmm_ray.runtime.core.repeat import repeated


def format_seconds(seconds: float) -> str:
    """`42 s`, `3:07` or `2:03:04`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    hours, rest = divmod(whole, 3600)
    minutes, secs = divmod(rest, 60)
    return f"{hours}:{minutes:02d}:{secs:02d}" if hours else f"{minutes}:{secs:02d}"


class PipedConsole(Console):
    """A console that raises BrokenPipeError where the program that reads it has ended.

    rich itself would end the process with exit code 1; `guarded` gives such an end its own.
    """

    def on_broken_pipe(self) -> None:
        raise  # the error that rich is handling


class StageProgress:
    """Counts of one stage. Thread-safe; made by `Progress.stage`."""

    def __init__(self, stage: str, total: int, already_done: int, unit: str) -> None:
        self.stage = stage
        self.total = total
        self.done = already_done
        self.errors = 0
        self.note = ""
        self._unit = unit
        self._already_done = already_done
        self._lock = threading.Lock()
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None

    def advance(self, done: int, errors: int = 0) -> None:
        """Count finished units; `errors` of them became error rows."""
        with self._lock:
            self.done += done
            self.errors += errors
            if self._first is None and done:
                self._first = (time.monotonic(), self.done)

    def set_done(self, done: int, note: str = "") -> None:
        """Set the absolute count, for stages that report a position (training)."""
        with self._lock:
            self.done = done
            self.note = note
            if self._first is None and done > self._already_done:
                self._first = (time.monotonic(), done)

    def set_note(self, note: str) -> None:
        """Say what is waited for; empty: nothing."""
        self.note = note

    @property
    def rate(self) -> float:
        """Units per second since the first ones finished, so that start-up does not count."""
        with self._lock:
            if self._first is not None:
                since, at = self._first
                elapsed = time.monotonic() - since
                if self.done > at and elapsed > 0.2:
                    return (self.done - at) / elapsed
            elapsed = time.monotonic() - self._started
            return (self.done - self._already_done) / elapsed if elapsed > 0 else 0.0

    def line(self) -> str:
        rate = self.rate
        left = self.total - self.done
        eta = format_seconds(left / rate) if rate > 0 and left > 0 else ("-" if left > 0 else "0 s")
        errors = f", {self.errors} errors" if self.errors else ""
        note = f", {self.note}" if self.note else ""
        return (
            f"{self.stage}: {self.done}/{self.total} {self._unit}, {rate:.1f}/s, "
            f"ETA {eta}{errors}{note}"
        )


def console_text(descriptor: int) -> TextIO:
    """Lines to a descriptor, closed with it; letters that its encoding lacks are `\\u043a`."""
    return os.fdopen(descriptor, "w", buffering=1, errors="backslashreplace")


def lenient_stdout() -> None:
    """Let `print` write letters that the console's encoding lacks as `\\u043a`."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class Progress:
    """Where a run's human-readable lines go.

    Args:
        heartbeat_seconds: how often a line is printed where the output is no terminal, or one that
            cannot write over a line.
        stream: output; default standard error.
    """

    def __init__(self, heartbeat_seconds: float = 10.0, stream: TextIO | None = None) -> None:
        # a copy of the descriptor: Ray's own lines are sent elsewhere while it runs
        self._stream = stream or console_text(os.dup(sys.stderr.fileno()))
        self.heartbeat_seconds = heartbeat_seconds
        self._console = PipedConsole(file=self._stream, highlight=False, soft_wrap=True)
        self._live = self._stream.isatty() and not self._console.is_dumb_terminal

    def message(self, text: str) -> None:
        """Print one line (it scrolls past a live line)."""
        self._console.print(Text(text))
        self._stream.flush()

    @contextmanager
    def stage(
        self, name: str, total: int, *, already_done: int = 0, unit: str = "images"
    ) -> Iterator[StageProgress]:
        """Show a stage while it runs."""
        progress = StageProgress(name, total, already_done, unit)
        live = (
            Live(console=self._console, transient=True, auto_refresh=False) if self._live else None
        )

        def beat() -> bool:
            try:
                if live:
                    # over as many lines as it needs
                    text = Text(progress.line(), no_wrap=False, overflow="fold")
                    live.update(text, refresh=True)
                else:
                    self.message(progress.line())
            except BrokenPipeError:  # the next line of the run itself says so
                return False
            return True

        seconds = 0.25 if live else self.heartbeat_seconds
        try:
            with live or nullcontext(), repeated("progress", seconds, beat):
                yield progress
        finally:
            self.message(progress.line())
