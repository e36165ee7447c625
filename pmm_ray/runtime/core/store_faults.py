"""Our messages for a store or a system that fails or refuses."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from pmm_ray.runtime.core.errors import CannotRunError, MayPassError, cannot_run, system_failure

STORE_FAILS = "the store fails"

# how the libraries of both stores begin a failure that is theirs, and those that are one object's
_STORE_FAILED = ("AWS Error ", "google::cloud::Status(")
_REFUSED = ("ACCESS_DENIED", "PERMISSION_DENIED", "INVALID_OBJECT_STATE")
_OBJECT_REFUSED = (*_REFUSED, "NOT_FOUND")


def of_the_store(error: OSError) -> bool:
    """Whether the store reports it, and not a reader of a file's content."""
    return any(mark in str(error) for mark in _STORE_FAILED)


def store_failure(error: OSError, uri: str = "") -> str | None:
    """What to say if a store failed, after all retries, rather than one file; else None.

    A file that is missing, damaged or not ours to read is one image's error.
    """
    text = str(error)
    if not of_the_store(error) or any(mark in text for mark in _OBJECT_REFUSED):
        return None
    where = f" for {uri}" if uri else ""
    return (
        f"{STORE_FAILS}{where}: {text}. It was retried for about a minute. "
        "Run the same command again when that is fixed; what is finished stays."
    )


def store_refusal(error: OSError) -> str | None:
    """What to say if a store refused a file that is ours, such as a table's; else None."""
    text = str(error)
    if not of_the_store(error) or not any(mark in text for mark in _REFUSED):
        return None
    return (
        f"{STORE_FAILS}: {text}. Credentials may have expired or lack a right, or a file may be in "
        "an archive. "
        "Run the same command again when that is fixed; what is finished stays."
    )


def passing(error: BaseException) -> str | None:
    """What to say if an error that ends a run may pass; else None.

    Not for a file of one image: what a store refuses there is that image's error.
    """
    if isinstance(error, MayPassError):
        return str(error)
    if not isinstance(error, OSError):
        return None
    return system_failure(error) or store_failure(error) or store_refusal(error)


def refusal(error: BaseException | None) -> OSError | None:
    """The error, or its cause, that says of a file that it is not there or not for this process.

    Another machine, with another mount or other rights, may see it.
    """
    while error is not None:
        if isinstance(error, OSError) and (
            store_refusal(error) or (error.errno is not None and system_failure(error) is None)
        ):
            return error
        error = error.__cause__
    return None


def unreadable(text: str, error: Exception) -> CannotRunError:
    """The error of a file without which nothing can go on, with the reason."""
    return cannot_run(f"{text}: {error}", passing(error) is not None)


@contextlib.contextmanager
def naming_path(path: str) -> Iterator[None]:
    """Add the path to a system's error that lacks it, so that the message names the place."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None or of_the_store(error):
            raise
        raise OSError(error.errno, os.strerror(error.errno), path) from error


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn a failure of the store or the system into a `MayPassError` that names the uri.

    What a system refuses stays an OSError, and names the uri.
    """
    try:
        with naming_path(uri):
            yield
    except OSError as error:
        message = store_failure(error, uri) or system_failure(error)
        if message is None:
            raise
        raise MayPassError(message) from error
