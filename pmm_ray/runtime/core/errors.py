"""What goes wrong, as data: error rows, the error budget, and the process's exit codes."""

from __future__ import annotations

import errno
import math
import os
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

ErrorKind = Literal["decode", "missing", "label", "nonfinite", "too_large", "internal"]
ERROR_KINDS: tuple[str, ...] = get_args(ErrorKind)

EXIT_DONE = 0
EXIT_CANNOT_RUN = 1
EXIT_USAGE = 2
EXIT_BUDGET = 3
EXIT_TRY_AGAIN = 75
"""As of sysexits.h: the same command may succeed later, or on other machines."""
EXIT_INTERRUPTED = 130
EXIT_NOT_READ = 141
"""Who read our output ended first, as `head` does. What a shell gives for SIGPIPE."""


@dataclass(frozen=True)
class ErrorRow:
    """One image that one stage could not process; a row of the errors table.

    `host` and `process` are those that made the row; tables of older versions have neither.
    """

    image_id: str
    stage: str
    kind: ErrorKind
    message: str
    uri: str = ""
    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)

    def as_dict(self) -> dict[str, Any]:
        return dict(self.__dict__)


class RowError(Exception):
    """Raised inside a worker for one image; becomes an `ErrorRow`, never a crash.

    Args:
        kind: one of `ErrorKind`.
        message: what was wrong and how to fix it, one line.
        uri: the file it was found in, if any.
    """

    def __init__(self, kind: ErrorKind, message: str, uri: str = "") -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind
        self.message = message
        self.uri = uri

    def __reduce__(self) -> tuple[type[RowError], tuple[str, str, str]]:
        return (RowError, (self.kind, self.message, self.uri))


class CannotRunError(Exception):
    """The run cannot start or go on, and the message says what to do. Exit code 1."""


class MayPassError(CannotRunError):
    """The cause may be temporary: a store, a machine, nodes that did not come. Exit code 75."""


def cannot_run(text: str, may_pass: bool) -> CannotRunError:
    """The error of a reason that another process gave."""
    return MayPassError(text) if may_pass else CannotRunError(text)


class BudgetExceededError(Exception):
    """More images failed than `errors.budget` allows. Exit code 3."""

    def __init__(self, stage: str, failed: int, budget: int, first: Iterable[ErrorRow]) -> None:
        reasons = "\n".join(
            f"  {row.image_id}: {row.kind}: {row.message}" for row in list(first)[:10]
        )
        super().__init__(
            f"{stage}: {failed} images failed, the budget is {budget}. The first reasons:\n"
            f"{reasons}\nFix the images or raise errors.budget, then run the same command again "
            "(pmm run, pmm ablate: with --retry-errors if images were fixed)."
        )


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
OF_A_NAME = (
    *(errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EINVAL, errno.EEXIST, errno.ENOTEMPTY, errno.EROFS),
)
"""What a system says of one name, place or right: asked again, it says the same."""


def system_failure(error: BaseException) -> str | None:
    """What to say if a disk, or this machine, failed rather than one file; else None.

    Such an error has a number: a full disk, an input/output error, a mount that does not answer,
    too many open files.
    """
    if not isinstance(error, OSError) or error.errno is None or error.errno in OF_A_NAME:
        return None
    place = error.filename or ""
    if error.errno in _FULL:
        where = f": cannot write {place}" if place else ""
        return (
            f"the disk is full{where}. Free some space and run the same command again; what is "
            "finished stays."
        )
    return (
        f"the system fails{f' at {place}' if place else ''}: {error.strerror}. "
        "Run the same command again when that is fixed; what is finished stays."
    )


def named(error: BaseException) -> str:
    """The error's type and the first line of what it says."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def last_line(error: BaseException) -> str:
    """The last line of what an error says; where that is nothing, its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def error_budget(configured: int | None, images: int) -> int:
    """How many images of a stage may fail: `configured`, else the larger of 10 and 1 %."""
    return configured if configured is not None else max(10, math.floor(images * 0.01))


def require_budget(
    stage: str, errors: Sequence[ErrorRow], configured: int | None, images: int
) -> None:
    """Raise BudgetExceededError where more images failed than may, see `error_budget`."""
    budget = error_budget(configured, images)
    if len(errors) > budget:
        raise BudgetExceededError(stage, len(errors), budget, errors)
