"""What happens to a chunk of images inside a worker process; `operators` sends the chunks.

The driver sends ids and the places of their rows, never an image; a task reads the rows, maps them,
and commits its output and its error rows as files that appear whole or not at all. What flows back
are counts and ids. `ledger.Ledger` finds finished ids again from the files, so any process may die
at any moment. See docs/decisions/001-tasks-write-their-own-parts.md.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmm_ray.runtime.core import lease, storage, tables
from pmm_ray.runtime.core.errors import (
    CannotRunError,
    ErrorKind,
    ErrorRow,
    RowError,
    full_disk,
)
from pmm_ray.runtime.core.index import Ids, TableIndex, id_column, part_uri
from pmm_ray.runtime.core.machine import MachineError, Place, machine_fault, out_of_memory
from pmm_ray.runtime.core.tables import BYTES, DOUBLE, INT64, TEXT, columns

InputRow = dict[str, dict[str, Any]]  # table name -> row of that table
Worker = Callable[[Sequence[InputRow]], Iterator[dict[str, Any] | ErrorRow]]


@dataclass(frozen=True)
class Pool:
    """How many workers, and what each asks of the cluster."""

    size: int
    actors: bool = False
    """Actors keep a model between chunks."""
    cpus: float = 1.0
    gpus: float = 0.0
    memory: int = 0
    """Bytes that a worker reserves; 0: none."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Ray's label selector for the nodes it may run on; empty: any."""
    overlap: int = 1
    """Chunks that an actor works on at once, each in a thread, see `overlap.OVERLAP`."""
    follows: bool = False
    """Whether the size follows the cluster, see `ClusterResources.placed`."""


@dataclass(frozen=True)
class Producer:
    """The first of two pools: its rows reach the second one's workers without touching disk.

    Attributes:
        table: the name under which a row reaches the second worker, `row[table]`.
        factory: makes the first worker inside a pool process.
        schema: of its rows; encoded bytes are `large_binary`.
        pool: actors, since a producer keeps a model; see `side_by_side`.
    """

    table: str
    factory: Callable[[], Worker]
    schema: pa.Schema
    pool: Pool


def side_by_side(pool: Pool, producer: Producer) -> tuple[Pool, Producer]:
    """Two pools that may share CPUs.

    Actors never give theirs back: after a node is lost, restarted ones could fill the survivors,
    and the tasks on which they wait would never run again. So actors without a GPU ask for next to
    nothing (not zero: a head without CPUs must get none) on the tasks' nodes, and tasks for a
    little less than a CPU, so that as many fit as there are CPUs.
    """
    first = producer.pool
    if not first.gpus:
        first = replace(first, cpus=0.05, labels=pool.labels)
    return replace(pool, cpus=0.9), replace(producer, pool=first)


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

    `RowError` keeps its kind; any other exception becomes `internal`, with its type and text,
    except what is no image's fault: a full disk, a store that does not answer, a device that fails.
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
                not_an_images(error)
                kind, text = failure_of(error)
                yield ErrorRow(image_id, stage, kind, text, uri)

    return worker


def not_an_images(error: Exception) -> None:
    """Raise anew what is no image's fault: a store, a full disk, a device.

    Raises:
        MachineError: a device or a driver failed.
    """
    if isinstance(error, CannotRunError) or full_disk(error):
        raise error
    if fault := machine_fault(error):
        raise MachineError(fault) from error


def failure_of(error: Exception) -> tuple[ErrorKind, str]:
    """Kind and text of the error row of an unforeseen exception."""
    if out_of_memory(error):
        return "too_large", f"out of memory on the GPU, for this image alone: {error}"
    return "internal", f"{type(error).__name__}: {error}"


def make_chunks(image_ids: Ids, inputs: Mapping[str, TableIndex], size: int) -> list[str]:
    """Chunks of at most `size` images, as JSON.

    `{"ids": [...], "rows": {table: [[uri, [row, ...]], ...]}}`: the rows of an image are found at
    its position, counted over the files of a table.
    """
    ids = id_column(image_ids)
    places = {name: index.places(ids) for name, index in inputs.items()}
    return [
        json.dumps(
            {
                "ids": ids.slice(start, size).to_pylist(),
                "rows": {
                    name: _runs(
                        inputs[name].parts, parts[start : start + size], rows[start : start + size]
                    )
                    for name, (parts, rows) in places.items()
                },
            },
            separators=(",", ":"),
        )
        for start in range(0, len(ids), size)
    ]


def sizes_together(image_ids: Ids, manifest: TableIndex) -> pa.ChunkedArray:
    """The images in an order in which a chunk has few sizes: their views share passes on a GPU.

    Args:
        manifest: index of a manifest's file, which knows the images.
    """
    ids = id_column(image_ids)
    [uri] = manifest.parts
    _, rows = manifest.places(ids)
    sizes = tables.read_table(uri, ["height", "width"])
    height, width = (sizes.column(name).to_numpy()[rows] for name in ("height", "width"))
    return ids.take(pa.array(largest_first(height, width)))


def largest_first(height: NDArray[np.int32], width: NDArray[np.int32]) -> NDArray[np.intp]:
    """Positions by size, equal ones together; the last chunks, for which others wait, are short."""
    return np.lexsort((width, height, -height.astype(np.int64) * width))


def _runs(
    files: Sequence[str], parts: NDArray[np.int32], rows: NDArray[np.int32]
) -> list[tuple[str, list[int]]]:
    """Rows that follow each other in one file, with its uri."""
    cuts = np.flatnonzero(np.diff(parts)) + 1
    pieces = zip(np.split(parts, cuts), np.split(rows, cuts), strict=True)
    return [(files[part[0]], piece.tolist()) for part, piece in pieces]


def read_chunk(chunk: Mapping[str, Any]) -> list[InputRow]:
    """The rows of a chunk, joined over its tables; every file is opened once."""
    rows: list[InputRow] = [{} for _ in chunk["ids"]]
    for name, runs in chunk["rows"].items():
        places = ((uri, row) for uri, numbers in runs for row in numbers)
        by_file: dict[str, list[tuple[int, int]]] = {}
        for position, (uri, row) in enumerate(places):
            by_file.setdefault(uri, []).append((position, row))
        for uri, wanted in by_file.items():
            found = tables.read_rows(uri, [row for _, row in wanted])
            for (position, _), row in zip(wanted, found, strict=True):
                rows[position][name] = row
    return rows


class _Results:
    """What a worker made of a chunk, as far as it came."""

    def __init__(self, earlier: Sequence[ErrorRow] = ()) -> None:
        self.done: list[dict[str, Any]] = []
        self.errors = list(earlier)
        self.in_a_row = 0
        """Error rows since the last image that succeeded."""
        self.fault = ""
        """A failure of the machine, as JSON of `fault_of`; empty: none."""

    def take(self, worker: Worker, rows: Sequence[InputRow], ids: Sequence[str]) -> None:
        """Map rows; a device that fails ends it, and what was made so far stays.

        Args:
            worker: maps them.
            rows: to be mapped.
            ids: of the chunk, to name the image at which a device failed.
        """
        try:
            for result in worker(rows):
                if isinstance(result, ErrorRow):
                    self.errors.append(result)
                    self.in_a_row += 1
                else:
                    self.done.append(result)
                    self.in_a_row = 0
        except MachineError as error:
            finished = {*(r["image_id"] for r in self.done), *(e.image_id for e in self.errors)}
            self.fault = fault_of(error, next((i for i in ids if i not in finished), ""))
            return
        if len(self.done) + len(self.errors) != len(ids):
            raise AssertionError(f"{len(ids)} rows in, {len(self.done) + len(self.errors)} out")


def fault_of(error: MachineError, image_id: str = "") -> str:
    """A failure of the machine as JSON: `text`, `image` at which it happened, `node`, `host`,
    `process`."""
    return json.dumps({"text": str(error), "image": image_id, **Place.here().__dict__})


def produce_chunk(payload: str, worker: Worker, producer: Producer) -> dict[str, Any]:
    """Map one chunk in the first pool; returns a row of `PRODUCED`."""
    sink = pa.BufferOutputStream()
    results, failure = _Results(), ""
    try:
        chunk = json.loads(payload)
        results.take(worker, read_chunk(chunk), chunk["ids"])
        with pa.ipc.new_stream(sink, producer.schema) as writer:
            writer.write_table(pa.Table.from_pylist(results.done, schema=producer.schema))
    except Exception as error:  # travels to the driver, which stops the stage with this text
        failure = reason(error)
    return {
        "chunk": payload,
        "rows": sink.getvalue().to_pybytes(),
        "errors": json.dumps([row.as_dict() for row in results.errors]),
        "failure": failure,
        "fault": results.fault,
        "in_a_row": results.in_a_row,
    }


PASSES = {"passes": 0, "views": 0, "pixels": 0, "room": 0}
"""What a process tells of its network since its last chunk: the passes, their views and px, and the
px that would have fitted into them, see `nets/batches.py`; 0: not known."""

PRODUCED = columns(
    chunk=TEXT,
    rows=BYTES,
    errors=TEXT,
    failure=TEXT,
    fault=TEXT,
    in_a_row=INT64,
    cpu_seconds=DOUBLE,
    pool_seconds=DOUBLE,
    **dict.fromkeys(PASSES, INT64),
    node=TEXT,
    host=TEXT,
    process=INT64,
)


def consume_chunk(
    produced: Mapping[str, Any], table: str, worker: Worker, output: Output
) -> dict[str, Any]:
    """Map what the first pool made of a chunk, and commit it with the error rows of both."""
    if produced["failure"] or produced["fault"]:
        return _result(failure=produced["failure"], fault=produced["fault"])
    with pa.ipc.open_stream(produced["rows"]) as reader:
        made = {row["image_id"]: row for row in reader.read_all().to_pylist()}
    errors = [ErrorRow(**row) for row in json.loads(produced["errors"])]
    counts = run_chunk(produced["chunk"], worker, output, (table, made), errors)
    return counts | {"sent": len(produced["rows"])}


def run_chunk(
    payload: str,
    worker: Worker,
    output: Output,
    made: tuple[str, Mapping[str, dict[str, Any]]] | None = None,
    earlier: Sequence[ErrorRow] = (),
) -> dict[str, Any]:
    """Map one chunk and commit its part; returns counts and ids, or why it could not.

    Args:
        payload: from `make_chunks`.
        made: name and rows of a table that a first pool made of this chunk.
        earlier: error rows of the first pool, for the images that it made no row of.
    """
    chunk = json.loads(payload)
    started = time.monotonic()
    results = _Results(earlier)
    try:
        rows = read_chunk(chunk)
        if made is not None:
            table, row_of = made
            joined = zip(chunk["ids"], rows, strict=True)
            rows = [row | {table: row_of[i]} for i, row in joined if i in row_of]
        results.take(worker, rows, chunk["ids"])
        if not lease.holds(output.run_dir, output.attempt):
            raise CannotRunError(f"{output.run_dir} was taken over by another run")
        done = [row["image_id"] for row in results.done]
        failed = [row.image_id for row in results.errors]
        # all of the chunk, unless a device failed in the midst of it
        name = tables.chunk_name(done + failed)
        size = error_size = 0
        if failed:
            errors_folder = storage.join(output.folder, "errors")
            error_size = tables.write_errors(errors_folder, name, results.errors)
        if done:
            size = tables.write_rows(part_uri(output.folder, name), results.done, output.schema)
    except Exception as error:  # reported to the driver, which stops the stage with this text
        return _result(failure=reason(error))
    return _result(
        part=name,
        done=done,
        failed=failed,
        earlier=len(earlier),
        in_a_row=results.in_a_row,
        fault=results.fault,
        kinds=Counter(f"{row.kind}@{row.host}" for row in results.errors),
        size=size,
        error_size=error_size,
        seconds=time.monotonic() - started,
    )


def failed_chunk(failure: str = "", fault: str = "") -> dict[str, Any]:
    """The counts of a chunk whose worker could not be made."""
    return _result(failure=failure, fault=fault)


def reason(error: Exception) -> str:
    """Why a chunk could not be done, for the driver to print."""
    if isinstance(error, CannotRunError):
        return str(error)
    return full_disk(error) or f"{type(error).__name__}: {error}"


def _result(
    part: str = "",
    done: Sequence[str] = (),
    failed: Sequence[str] = (),
    earlier: int = 0,
    in_a_row: int = 0,
    size: int = 0,
    error_size: int = 0,
    seconds: float = 0.0,
    failure: str = "",
    fault: str = "",
    kinds: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    return {
        "images": len(done) + len(failed),
        "errors": len(failed),
        "part": part,
        "done": json.dumps(done),
        "failed": json.dumps(failed),
        "earlier": earlier,  # of the failed: those of the first pool, which stand first
        "in_a_row": in_a_row,
        "bytes": size,
        "error_bytes": error_size,
        "sent": 0,  # from the first pool to the second
        "seconds": seconds,
        "failure": failure,
        "fault": fault,
        "kinds": json.dumps(kinds or {}),  # error rows by kind and host
    }
