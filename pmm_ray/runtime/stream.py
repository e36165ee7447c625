"""The stream every inference stage runs on: chunks of image ids through Ray Data, exactly once.

The driver sends chunks (ids and the places of their rows, never an image); a task reads the rows,
maps them, and commits its output and its error rows as files that appear whole or not at all. What
flows back is a count. Finished ids are found again from the files, so any process may die at any
moment. See docs/decisions/001-tasks-write-their-own-parts.md.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pmm_ray.runtime import lease, storage, tables
from pmm_ray.runtime.cluster import inference_process
from pmm_ray.runtime.errors import CannotRunError, ErrorRow, RowError
from pmm_ray.runtime.index import TableIndex

InputRow = dict[str, dict[str, Any]]  # table name -> row of that table
Worker = Callable[[Sequence[InputRow]], Iterator[dict[str, Any] | ErrorRow]]

# A process that dies takes its chunk with it; Ray tries again this often before we isolate it.
_RETRIES = 2


@dataclass(frozen=True)
class Pool:
    """How many workers, and what each asks of the cluster."""

    size: int
    actors: bool = False
    """Actors keep a model between chunks; tasks scale with the cluster by themselves."""
    cpus: float = 1.0
    gpus: float = 0.0


@dataclass(frozen=True)
class Output:
    """Where a task commits its rows."""

    folder: str
    schema: pa.Schema
    stage: str
    run_dir: str
    attempt: str


def row_by_row(stage: str, function: Callable[[InputRow], dict[str, Any]]) -> Worker:
    """Turn a function of one image into a worker whose failures are error rows.

    `RowError` keeps its kind; any other exception becomes `internal`, with its type and text.
    """

    def worker(rows: Sequence[InputRow]) -> Iterator[dict[str, Any] | ErrorRow]:
        for row in rows:
            image_id, uri = row["manifest"]["image_id"], row["manifest"].get("uri") or ""
            try:
                yield function(row)
            except RowError as error:
                yield ErrorRow(image_id, stage, error.kind, error.message, error.uri or uri)
            except MemoryError as error:
                yield ErrorRow(image_id, stage, "too_large", f"out of memory: {error}", uri)
            except Exception as error:  # one image must not end the run; the row tells
                text = f"{type(error).__name__}: {error}"
                yield ErrorRow(image_id, stage, "internal", text, uri)

    return worker


def make_chunks(image_ids: Sequence[str], inputs: Mapping[str, TableIndex], size: int) -> list[str]:
    """Chunks of at most `size` images, as JSON: `{"ids": [...], "rows": {table: [[uri, row]]}}`."""
    places = {name: index.locations() for name, index in inputs.items()}
    return [
        json.dumps(
            {
                "ids": list(image_ids[start : start + size]),
                "rows": {
                    name: [place[i] for i in image_ids[start : start + size]]
                    for name, place in places.items()
                },
            }
        )
        for start in range(0, len(image_ids), size)
    ]


def read_chunk(chunk: Mapping[str, Any]) -> list[InputRow]:
    """The rows of a chunk, joined over its tables; every file is opened once."""
    rows: list[InputRow] = [{} for _ in chunk["ids"]]
    for name, places in chunk["rows"].items():
        by_file: dict[str, list[int]] = {}
        for position, (uri, _) in enumerate(places):
            by_file.setdefault(uri, []).append(position)
        for uri, positions in by_file.items():
            found = tables.read_rows(uri, [places[p][1] for p in positions])
            for position, row in zip(positions, found, strict=True):
                rows[position][name] = row
    return rows


def run_chunk(payload: str, worker: Worker, output: Output) -> dict[str, Any]:
    """Map one chunk and commit its part; returns counts, or the reason why it could not."""
    chunk = json.loads(payload)
    started = time.monotonic()
    done: list[dict[str, Any]] = []
    errors: list[ErrorRow] = []
    try:
        for result in worker(read_chunk(chunk)):
            if isinstance(result, ErrorRow):
                errors.append(result)
            else:
                done.append(result)
        if len(done) + len(errors) != len(chunk["ids"]):
            raise AssertionError(f"{len(chunk['ids'])} rows in, {len(done) + len(errors)} out")
        if not lease.holds(output.run_dir, output.attempt):
            raise CannotRunError(f"{output.run_dir} was taken over by another run")
        name = tables.chunk_name(chunk["ids"])
        size = 0
        if errors:
            tables.write_errors(storage.join(output.folder, "errors"), name, errors)
        if done:
            size = tables.write_rows(
                storage.join(output.folder, f"part-{name}.parquet"), done, output.schema
            )
    except Exception as error:  # reported to the driver, which stops the stage with this text
        return _result(failure=f"{type(error).__name__}: {error}")
    return _result(
        images=len(chunk["ids"]),
        errors=len(errors),
        size=size,
        seconds=time.monotonic() - started,
    )


def _result(
    images: int = 0, errors: int = 0, size: int = 0, seconds: float = 0.0, failure: str = ""
) -> dict[str, Any]:
    return {
        "images": images,
        "errors": errors,
        "bytes": size,
        "seconds": seconds,
        "failure": failure,
    }


class _ChunkMapper:
    """Maps chunks with a worker that it makes at its first chunk.

    A worker that cannot be made (no weights, no memory) is a failure of the chunk, so that its
    reason reaches the driver instead of ending in Ray's retries.
    """

    def __init__(self, factory: Callable[[], Worker], output: Output) -> None:
        self._factory = factory
        self._output = output
        self._worker: Worker | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        if self._worker is None:
            inference_process()
            try:
                self._worker = self._factory()
            except Exception as error:  # reported to the driver
                return _columns([_result(failure=f"{type(error).__name__}: {error}")])
        worker = self._worker
        return _columns(run_chunk(str(p), worker, self._output) for p in batch["chunk"])


def _chunk_task(factory: Callable[[], Worker], output: Output) -> Callable[[Any], Any]:
    def task(batch: dict[str, Any]) -> dict[str, Any]:
        return _ChunkMapper(factory, output)(batch)

    return task


def _columns(results: Iterable[dict[str, Any]]) -> dict[str, Any]:
    rows = list(results)
    return {name: [row[name] for row in rows] for name in rows[0]}


def stream(
    chunks: Sequence[str],
    factory: Callable[[], Worker],
    output: Output,
    pool: Pool,
    stall_seconds: float,
) -> Iterator[dict[str, Any]]:
    """Send chunks through the pool; yields each chunk's counts as it is committed.

    A chunk whose process dies again and again is missing from the counts: the caller finds its
    images uncommitted and isolates them.

    Args:
        chunks: from `make_chunks`.
        factory: makes the worker inside a pool process; its arguments must be small (paths, not
            weights), since Ray keeps them for restarts.
        output: the table to commit to.
        pool: how many processes.
        stall_seconds: with no chunk finished for this long the stream fails.

    Raises:
        CannotRunError: a task could not do its work at all (full disk, broken model), or nothing
            moved for `stall_seconds`.
    """
    import ray
    from ray.data import ActorPoolStrategy, DataContext, TaskPoolStrategy
    from ray.data.exceptions import ExecutionTimeoutError

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = stall_seconds
    context.max_errored_blocks = -1
    context.op_resource_reservation_enabled = False  # blocks hold counts: nothing to reserve

    items = [{"chunk": chunk} for chunk in chunks]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    options: dict[str, Any] = {
        "batch_size": None,
        "num_cpus": pool.cpus,
        "num_gpus": pool.gpus or None,
    }
    if pool.actors:
        dataset = dataset.map_batches(
            _ChunkMapper,
            compute=ActorPoolStrategy(size=min(pool.size, len(items))),
            fn_constructor_args=(factory, output),
            **(options | {"batch_size": 1}),
            max_restarts=-1,
            max_task_retries=_RETRIES,
        )
    else:
        dataset = dataset.map_batches(
            _chunk_task(factory, output),
            compute=TaskPoolStrategy(size=pool.size),
            **options,
            max_retries=_RETRIES,
        )
    try:
        for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
            for position in range(len(batch["images"])):
                counts = {name: column[position] for name, column in batch.items()}
                if counts["failure"]:
                    raise CannotRunError(f"{output.stage}: {counts['failure']}")
                yield counts
    except ray.exceptions.RayError as error:
        raise CannotRunError(f"{output.stage}: {_first_line(error)}") from error
    except ExecutionTimeoutError as error:
        raise CannotRunError(
            f"{output.stage}: nothing finished for {stall_seconds:g} s: {_first_line(error)}. "
            "Look at logs/ray.log in the run folder; raise runtime.stall_seconds if images are "
            "simply slow."
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
