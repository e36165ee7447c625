"""The one place that turns errors of a command into a line and an exit code."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable

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
        body(progress)
        sys.stdout.flush()
    except (CannotRunError, ConfigError) as error:
        progress.message(f"pmm: {error}")
        # a recipe on a disk that fails
        disk = error.__cause__ is not None and system_failure(error.__cause__)
        return EXIT_TRY_AGAIN if isinstance(error, MayPassError) or disk else EXIT_CANNOT_RUN
    except BudgetExceededError as error:
        progress.message(f"pmm: {error}")
        return EXIT_BUDGET
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            return EXIT_NOT_READ
        again = passing(error)
        message = again or _place_refused(error)
        if message is None:
            raise
        progress.message(f"pmm: {message}")
        return EXIT_TRY_AGAIN if again else EXIT_CANNOT_RUN
    except KeyboardInterrupt:
        progress.message("pmm: interrupted; run the same command again to go on")
        return EXIT_INTERRUPTED
    finally:
        signal.signal(signal.SIGTERM, previous)
    return EXIT_DONE


def _nobody_reads() -> bool:
    """Whether stdout is a pipe that its reader closed; then what is still printed goes nowhere."""
    stdout = 1
    asked = select.poll()
    asked.register(stdout, 0)
    closed = any(events & select.POLLERR for _, events in asked.poll(0))
    if closed:
        # Python flushes once more at its end, and would complain
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout)
    return closed


def _place_refused(error: OSError) -> str | None:
    """What to say of a file or folder that the user named and the system refuses; else None."""
    if error.errno not in OF_A_NAME or not error.filename:
        return None
    return f"{storage.printable(str(error.filename))}: {error.strerror}: choose another place"
