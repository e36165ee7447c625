"""Workers that hold a network: while it sees one image, the next are prepared, the last is packed.

An actor works on some chunks at once (`Pool.overlap`). They share this worker, and its network
takes them one after the other: it waits neither for files nor for the commit of a part.
See docs/decisions/012-a-worker-that-overlaps.md.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Semaphore
from typing import Any, Generic, Protocol, TypeVar

from pmm_ray.runtime.core.errors import ErrorRow
from pmm_ray.runtime.core.machine import END_SECONDS, MachineError
from pmm_ray.runtime.mapping.workers import InputRow, not_an_images, row_by_row

OVERLAP = 3
"""Chunks that an actor with a network works on at once: one is begun, one seen, one committed."""

# Images of a chunk that are prepared before the network asks for them, by as many threads: a bucket
# answers in tens of milliseconds. And how many the network may be ahead of what follows. Both are
# more where the network takes more images at once.
_AHEAD = 4
_BEHIND = 4
_FINISHERS = 2

P = TypeVar("P")
S = TypeVar("S")
Network = Callable[[Iterable[tuple[int, P]]], Iterator[tuple[int, S]]]
"""Takes what was prepared of some images, by number, and yields its output for each."""


class Together(Protocol):
    """What a network tells that sees several images together."""

    @property
    def together(self) -> int:
        """Images that it may take before it gives the first one back."""

    def counted(self) -> dict[str, int]:
        """Its passes since the last call, see `tasks.PASSES`."""


def one_by_one(function: Callable[[P], S]) -> Network[P, S]:
    """A network that sees one image after the other."""

    def network(images: Iterable[tuple[int, P]]) -> Iterator[tuple[int, S]]:
        for number, image in images:
            yield number, function(image)

    return network


class Overlapped(Generic[P, S]):
    """A worker of three steps, each in threads of its own; rows and error rows keep their order.

    Where the network fails, the images that it left are tried again one by one, and each gets its
    own error row. Where a device fails, the chunk that met it reports it, and others wait
    for the end of the process.

    Args:
        stage: named in error rows.
        prepare: reads an image and makes what the network takes; called by several threads.
        network: called by one thread.
        finish: makes the row of what the network saw; called by several threads.
        batches: of a network that sees several images together.
    """

    def __init__(
        self,
        stage: str,
        prepare: Callable[[InputRow], P],
        network: Network[P, S],
        finish: Callable[[InputRow, S], dict[str, Any]],
        batches: Together | None = None,
    ) -> None:
        self._stage = stage
        self._prepare, self._network, self._finish = prepare, network, finish
        self._readers = ThreadPoolExecutor(_AHEAD, "prepare")
        self._seeing = ThreadPoolExecutor(1, "network")
        self._finishers = ThreadPoolExecutor(_FINISHERS, "finish")
        self._batches = batches
        at_once = 1 if batches is None else batches.together
        self._ahead, self._behind = max(_AHEAD, at_once), max(_BEHIND, at_once)
        self._room = Semaphore(self._behind)
        self._broken: Exception | None = None

    def counted(self) -> dict[str, int]:
        """See `Together`; empty: not known."""
        return {} if self._batches is None else self._batches.counted()

    def __call__(self, rows: Sequence[InputRow]) -> Iterator[dict[str, Any] | ErrorRow]:
        """Maps the rows of a chunk; see `workers.row_by_row` for what becomes an error row."""
        chunk = _Chunk(rows, self._prepare, self._readers, self._ahead)
        self._seeing.submit(self._see, chunk)
        outcomes = iter(chunk.outcomes)
        try:
            yield from row_by_row(self._stage, lambda _: next(outcomes).result())(rows)
        finally:
            chunk.over = True

    def _see(self, chunk: _Chunk[P]) -> None:
        """The network's part of a chunk."""
        if self._broken is not None:
            time.sleep(10 * END_SECONDS)
            chunk.end(0, self._broken)
            return
        try:
            self._attempt(chunk, range(len(chunk.rows)))
        except BaseException as error:  # of this file: whoever waits for the chunk must hear of it
            for outcome in chunk.outcomes:
                if not outcome.done():
                    outcome.set_exception(error)

    def _attempt(self, chunk: _Chunk[P], numbers: Sequence[int]) -> None:
        left = dict.fromkeys(numbers)
        try:
            for number, seen in self._network(chunk.readable(left)):
                del left[number]
                self._room.acquire()
                self._finishers.submit(self._finish_one, chunk, number, seen)
            if left and not chunk.over:
                raise AssertionError(f"the network left {len(left)} images out")
        except Exception as error:
            if fatal := self._not_an_images(error):
                chunk.end(min(left), fatal)
            elif len(numbers) == 1:
                # a traceback holds the tensors of the pass that failed
                chunk.outcomes[numbers[0]].set_exception(error.with_traceback(None))
        # after the handler, for the same reason
        for number in list(left) if len(numbers) > 1 else ():
            if not chunk.over:
                self._finish_all()  # what is seen and not finished takes the device's memory
                self._attempt(chunk, [number])

    def _finish_all(self) -> None:
        """Wait for the rows of all that was seen."""
        for _ in range(self._behind):
            self._room.acquire()
        self._room.release(self._behind)

    def _finish_one(self, chunk: _Chunk[P], number: int, seen: S) -> None:
        try:
            row = self._finish(chunk.rows[number], seen)
        except BaseException as error:  # goes to whoever waits for the row
            chunk.outcomes[number].set_exception(self._not_an_images(error) or error)
        else:
            chunk.outcomes[number].set_result(row)
        finally:
            self._room.release()

    def _not_an_images(self, error: BaseException) -> Exception | None:
        """What ends the chunk; None where only an image failed."""
        try:
            if isinstance(error, Exception):
                not_an_images(error)
        except MachineError as fault:
            self._broken = fault
            return fault
        except Exception as fatal:
            return fatal
        return None


class _Chunk(Generic[P]):
    """The rows of a chunk on their way."""

    def __init__(
        self,
        rows: Sequence[InputRow],
        prepare: Callable[[InputRow], P],
        readers: ThreadPoolExecutor,
        ahead: int,
    ) -> None:
        self.rows = rows
        self.outcomes: list[Future[dict[str, Any]]] = [Future() for _ in rows]
        self.over = False
        """Nobody waits for the rows any more."""
        self._prepare, self._readers, self._ahead = prepare, readers, ahead
        self._prepared: dict[int, Future[P]] = {}
        self._begun = 0
        self._begin(_AHEAD)

    def readable(self, numbers: dict[int, None]) -> Iterator[tuple[int, P]]:
        """What was prepared of images; those that failed are taken out of `numbers`."""
        for number in list(numbers):
            if self.over:
                return
            self._begin(number + 1 + self._ahead)
            try:
                # an image that is tried again is prepared again: only a few are kept
                future = self._prepared.pop(number, None)
                image = self._prepare(self.rows[number]) if future is None else future.result()
            except Exception as error:
                del numbers[number]
                self.outcomes[number].set_exception(error)
            else:
                yield number, image

    def end(self, number: int, error: Exception) -> None:
        """Let the caller hear of what is no image's fault, in the place of a row."""
        self.over = True
        self.outcomes[number].set_exception(error)

    def _begin(self, until: int) -> None:
        """Prepare the images before a number."""
        for number in range(self._begun, min(until, len(self.rows))):
            self._prepared[number] = self._readers.submit(self._prepare, self.rows[number])
            self._begun = number + 1
