"""The one place that turns errors of a command into a line and an exit code."""

from __future__ import annotations

import signal
from collections.abc import Callable

from pmm_ray.config import ConfigError
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import (
    EXIT_BUDGET,
    EXIT_CANNOT_RUN,
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_TRY_AGAIN,
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
    except (CannotRunError, ConfigError) as error:
        progress.message(f"pmm: {error}")
        # a recipe on a disk that fails
        disk = error.__cause__ is not None and system_failure(error.__cause__)
        return EXIT_TRY_AGAIN if isinstance(error, MayPassError) or disk else EXIT_CANNOT_RUN
    except BudgetExceededError as error:
        progress.message(f"pmm: {error}")
        return EXIT_BUDGET
    except OSError as error:
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


def _place_refused(error: OSError) -> str | None:
    """What to say of a file or folder that the user named and the system refuses; else None."""
    refused = (PermissionError, IsADirectoryError, NotADirectoryError, FileNotFoundError)
    if not isinstance(error, refused) or not error.filename:
        return None
    return f"{storage.printable(str(error.filename))}: {error.strerror}: choose another place"
