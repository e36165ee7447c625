"""A worker that overlaps: rows and error rows as one image after the other gives them, sooner."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import pytest

from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow, RowError
from pmm_ray.runtime.core.machine import MachineError
from pmm_ray.runtime.mapping import overlap
from pmm_ray.runtime.mapping.overlap import Overlapped, one_by_one
from pmm_ray.runtime.mapping.workers import InputRow

LONG = 20.0


def rows(count: int, first: int = 0) -> list[InputRow]:
    return [{"manifest": {"image_id": f"i{n}", "uri": "", "n": n}} for n in range(first, count)]


def number(row: InputRow) -> int:
    return int(row["manifest"]["n"])


def plus_one(image: int) -> int:
    return image + 1


def to_row(row: InputRow, seen: int) -> dict[str, Any]:
    return {"image_id": row["manifest"]["image_id"], "seen": seen}


def made(results: Sequence[dict[str, Any] | ErrorRow]) -> list[Any]:
    """Of each result its number, or kind and message."""
    return [(r.kind, r.message) if isinstance(r, ErrorRow) else r["seen"] for r in results]


def failing(at: int, error: Exception, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which fails at one image."""

    def wrapped(*given: Any) -> Any:
        first = given[0]
        if (number(first) if isinstance(first, dict) else first) == at:
            raise error
        return function(*given)

    return wrapped


def test_rows_and_error_rows_are_in_the_order_of_the_images() -> None:
    worker = Overlapped(
        "stage",
        failing(2, RowError("decode", "broken"), number),
        one_by_one(failing(4, ZeroDivisionError("a bug"), plus_one)),
        failing(6, MemoryError("large"), to_row),
    )
    results = list(worker(rows(9)))
    wrong = {2: ("decode", "broken"), 4: ("internal", "ZeroDivisionError: a bug")}
    wrong[6] = ("too_large", "out of memory: large")
    assert made(results) == [wrong.get(n, n + 1) for n in range(9)]
    assert results[4] == ErrorRow("i4", "stage", "internal", "ZeroDivisionError: a bug", "")


def test_images_of_a_batch_that_fails_are_tried_alone() -> None:
    batches: list[list[int]] = []

    def together(images: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        batch = dict(images)
        batches.append(list(batch))
        if 3 in batch:
            raise RuntimeError("three is too much")
        yield from ((n, image + 1) for n, image in batch.items())

    worker = Overlapped("stage", number, together, to_row)
    results = made(list(worker(rows(6))))
    assert results == [1, 2, 3, ("internal", "RuntimeError: three is too much"), 5, 6]
    assert batches == [[0, 1, 2, 3, 4, 5], [0], [1], [2], [3], [4], [5]]


def test_an_image_is_tried_alone_once_all_that_was_seen_is_finished() -> None:
    finished: list[int] = []
    alone: list[list[int]] = []

    def see(images: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        for tried, (n, image) in enumerate(images):
            if n == 3 and tried:
                raise MemoryError("with others")
            if n == 3:
                alone.append(sorted(finished))
            yield n, image

    def finish(row: InputRow, seen: int) -> dict[str, Any]:
        time.sleep(0.2)
        finished.append(seen)
        return to_row(row, seen)

    assert made(list(Overlapped("stage", number, see, finish)(rows(5)))) == [0, 1, 2, 3, 4]
    assert alone == [[0, 1, 2]]


def test_a_network_that_leaves_an_image_out_keeps_nobody_waiting() -> None:
    def forgetful(images: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        yield from ((n, image) for n, image in images if n != 1)

    results = made(list(Overlapped("stage", number, forgetful, to_row)(rows(3))))
    assert results[::2] == [0, 2]
    assert results[1] == ("internal", "AssertionError: the network left 1 images out")


def test_the_next_is_prepared_and_the_last_finished_while_the_network_works() -> None:
    prepared = [threading.Event() for _ in range(4)]
    finishing = [threading.Event() for _ in range(4)]

    def prepare(row: InputRow) -> int:
        prepared[number(row)].set()
        return number(row)

    def see(image: int) -> int:
        # one step after the other would wait here for good
        assert image == 3 or prepared[image + 1].wait(LONG)
        assert image == 0 or finishing[image - 1].wait(LONG)
        return image

    def finish(row: InputRow, seen: int) -> dict[str, Any]:
        finishing[seen].set()
        return to_row(row, seen)

    assert made(list(Overlapped("stage", prepare, one_by_one(see), finish)(rows(4)))) == [
        0,
        1,
        2,
        3,
    ]


@pytest.mark.parametrize("slow", ["network", "finish"])
def test_only_a_few_images_are_under_way(slow: str) -> None:
    counts = {"prepare": 0, "network": 0}
    go_on = threading.Event()

    def prepare(row: InputRow) -> int:
        counts["prepare"] += 1
        return number(row)

    def see(image: int) -> int:
        if slow == "network":
            go_on.wait(LONG)
        counts["network"] += 1
        return image

    def finish(row: InputRow, seen: int) -> dict[str, Any]:
        if slow == "finish":
            go_on.wait(LONG)
        return to_row(row, seen)

    worker = Overlapped("stage", prepare, one_by_one(see), finish)
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(worker(rows(40))))
    thread.start()
    time.sleep(0.3)
    most = {"network": 1 + overlap._AHEAD, "finish": 1 + overlap._BEHIND + 1 + overlap._AHEAD}
    assert counts["prepare"] <= most[slow]
    assert counts["network"] <= 1 + overlap._BEHIND
    go_on.set()
    thread.join(LONG)
    assert made(results) == list(range(40))


def test_chunks_share_the_network_and_keep_their_own_rows() -> None:
    inside, most, seen = 0, 0, []

    def see(image: int) -> int:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.002)
        seen.append(image)
        inside -= 1
        return image

    worker = Overlapped("stage", number, one_by_one(see), to_row)
    results: dict[int, list[Any]] = {}

    def take(first: int) -> None:
        results[first] = made(list(worker(rows(first + 8, first))))

    threads = [threading.Thread(target=take, args=(first,)) for first in (0, 8, 16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LONG)
    assert results == {first: list(range(first, first + 8)) for first in (0, 8, 16)}
    assert most == 1
    # one chunk after the other
    assert [first // 8 for first in seen[::8]] == [last // 8 for last in seen[7::8]]


@pytest.mark.parametrize("where", ["network", "finish"])
def test_a_device_that_fails_ends_the_chunk_and_sees_no_other(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlap, "END_SECONDS", 0.01)
    fault = RuntimeError("CUDA error: an illegal memory access was encountered")
    seen = []

    def see(image: int) -> int:
        seen.append(image)
        return image

    worker = Overlapped(
        "stage",
        number,
        one_by_one(failing(3, fault, see) if where == "network" else see),
        failing(3, fault, to_row) if where == "finish" else to_row,
    )
    results = worker(rows(8))
    assert [next(results)["seen"] for _ in range(3)] == [0, 1, 2]  # type: ignore[index]
    with pytest.raises(MachineError, match="illegal memory access"):
        next(results)
    # the process ends; what else was under way does not touch the device
    with pytest.raises(MachineError):
        next(worker(rows(108, 100)))
    assert not [image for image in seen if image >= 100]


def test_a_store_that_does_not_answer_is_no_image_s_fault() -> None:
    worker = Overlapped(
        "stage",
        failing(1, CannotRunError("the bucket throttles"), number),
        one_by_one(plus_one),
        to_row,
    )
    results = worker(rows(3))
    assert made([next(results)]) == [1]
    with pytest.raises(CannotRunError, match="throttles"):
        next(results)
