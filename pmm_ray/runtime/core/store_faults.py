"""What a store that fails or refuses says, in words of ours."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pmm_ray.runtime.core.errors import STORE_FAILS, MayPassError

# how the libraries of both stores begin a failure that is theirs, and those that are one object's
_STORE_FAILED = ("AWS Error ", "google::cloud::Status(")
_REFUSED = ("ACCESS_DENIED", "PERMISSION_DENIED", "INVALID_OBJECT_STATE")
_OBJECT_REFUSED = (*_REFUSED, "NOT_FOUND")


def of_the_store(error: OSError) -> bool:
    """Whether it is the store that says so, and not the content of a file."""
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
        f"{STORE_FAILS}{where}: {text}. What may pass was tried for about a minute. "
        "Run the same command again when it is mended; what is finished stays."
    )


def store_refusal(error: OSError) -> str | None:
    """What to say if a store refused a file that is ours, such as a table's; else None."""
    text = str(error)
    if not of_the_store(error) or not any(mark in text for mark in _REFUSED):
        return None
    return (
        f"{STORE_FAILS}: {text}. Credentials may have expired or lack a right, or a file may be in "
        "an archive. "
        "Run the same command again when that is mended; what is finished stays."
    )


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn a store's failure into a `MayPassError` that names the uri."""
    try:
        yield
    except OSError as error:
        message = store_failure(error, uri)
        if message is None:
            raise
        raise MayPassError(message) from error
