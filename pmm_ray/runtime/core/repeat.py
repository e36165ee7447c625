"""What is done every few seconds beside other work."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def repeated(
    name: str, seconds: float, call: Callable[[], bool | None], patience: float | None = None
) -> Iterator[None]:
    """Call something again and again in a thread, for the length of a `with` block.

    Args:
        name: of the thread.
        seconds: before each call.
        call: returns False where it is not to be called again.
        patience: how long a call under way is waited for at the end, s; None: until it is over.
    """
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            if call() is False:
                return

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(patience)
