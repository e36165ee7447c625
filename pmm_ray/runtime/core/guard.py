"""The one place that turns errors of a command into a line and an exit code."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from pmm_ray.config import ConfigError
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import (
    EXIT_BUDGET,
    EXIT_CANNOT_RUN,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_NOT_READ,
    EXIT_TRY_AGAIN,
    OF_A_NAME,
    BudgetExceededError,
    CannotRunError,
    MayPassError,
    system_failure,
)
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.store_faults import passing


def guarded(body: Callable[[Progress], None]) -> int:
    """Run something, turning what may go wrong into a line on the console and an exit code."""
    progress = Progress()
    previous = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code, text = _end(body, progress)
        if text:
            with contextlib.suppress(BrokenPipeError):
                progress.message(f"pmm: {text}")
        return code
    finally:
        _let_go()
        signal.signal(signal.SIGTERM, previous)


def _end(body: Callable[[Progress], None], progress: Progress) -> tuple[int, str]:
    """Run something: its exit code, and what to say of that."""
    try:
        _require_working_folder()
        body(progress)
        sys.stdout.flush()
    except (CannotRunError, ConfigError) as error:
        # a recipe on a disk that fails
        disk = error.__cause__ is not None and system_failure(error.__cause__)
        may_pass = isinstance(error, MayPassError) or disk
        return EXIT_TRY_AGAIN if may_pass else EXIT_CANNOT_RUN, str(error)
    except BudgetExceededError as error:
        return EXIT_BUDGET, str(error)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _let_go():
            return EXIT_NOT_READ, ""
        if again := passing(error):
            return EXIT_TRY_AGAIN, again
        if refused := _place_refused(error):
            return EXIT_CANNOT_RUN, refused
        raise
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED, "interrupted; run the same command again to go on"
    return EXIT_DONE, ""


def _require_working_folder() -> None:
    """Raises CannotRunError where it was deleted: no relative path works, nor do some libraries."""
    try:
        Path.cwd()
    except FileNotFoundError as error:
        raise CannotRunError(
            "the working folder was deleted: change to another one and run the command again"
        ) from error


def _let_go() -> bool:
    """Whether the reader of stdout or stderr has ended; what that still gets then goes nowhere."""
    asked = select.poll()
    for output in (1, 2):
        asked.register(output, 0)
    closed = [output for output, events in asked.poll(0) if events & select.POLLERR]
    for output in closed:
        # Python flushes once more at its end, and would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)
    return bool(closed)


def _place_refused(error: OSError) -> str | None:
    """What to say of a file or folder that the user named and the system refuses; else None."""
    if error.errno not in OF_A_NAME or not error.filename:
        return None
    return f"{storage.printable(str(error.filename))}: {error.strerror}: choose another place"
