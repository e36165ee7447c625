"""What happens to a chunk of images inside a worker process; `operators` sends the chunks.

A task reads the rows of a chunk, maps them, and commits its output and its error rows as files that
appear whole or not at all. What flows back are counts and ids. `ledger.Ledger` finds finished ids
again from the files, so any process may die at any moment. See
docs/decisions/001-tasks-write-their-own-parts.md.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from pmm_ray.runtime.core import lease, storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow
from pmm_ray.runtime.core.machine import MachineError, Place
from pmm_ray.runtime.core.store_faults import passing, refusal
from pmm_ray.runtime.core.tables import BYTES, DOUBLE, INT64, TEXT, columns
from pmm_ray.runtime.mapping.chunks import read_chunk
from pmm_ray.runtime.mapping.workers import InputRow, Producer, Worker


@dataclass(frozen=True)
class Output:
    """Where a task commits its rows."""

    folder: str
    schema: pa.Schema
    stage: str
    run_dir: str
    attempt: str


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


def is_here(fault: str) -> bool:
    """Whether a fault, from `fault_of`, is one of this process."""
    return Place.here().__dict__.items() <= json.loads(fault).items()


def produce_chunk(payload: str, worker: Worker, producer: Producer) -> dict[str, Any]:
    """Map one chunk in the first pool; returns a row of `PRODUCED`."""
    sink = pa.BufferOutputStream()
    results, failure = _Results(), SOUND
    chunk = json.loads(payload)
    try:
        results.take(worker, read_chunk(chunk), chunk["ids"])
        with pa.ipc.new_stream(sink, producer.schema) as writer:
            writer.write_table(pa.Table.from_pylist(results.done, schema=producer.schema))
    except Exception as error:  # travels to the driver, which stops the stage with this text
        failure = reason(error, files_of(chunk))
    return {
        "chunk": payload,
        "rows": sink.getvalue().to_pybytes(),
        "errors": json.dumps([row.as_dict() for row in results.errors]),
        "in_a_row": results.in_a_row,
        **failure,
        "fault": results.fault,
    }


SOUND = {"failure": "", "may_pass": False, "at": "", "unseen": "[]", "fault": ""}
"""What a chunk without a failure reports, see `reason` and `fault_of`."""

PASSES = {"passes": 0, "views": 0, "pixels": 0, "room": 0}
"""What a process tells of its network since its last chunk: the passes, their views and px, and the
px that would have fitted into them, see `nets/batches.py`; 0: not known."""

PRODUCED = columns(
    chunk=TEXT,
    rows=BYTES,
    errors=TEXT,
    failure=TEXT,
    may_pass=pa.bool_(),
    at=TEXT,
    unseen=TEXT,
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
        return failed_chunk({name: produced[name] for name in SOUND})
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
        lease.require(output.run_dir, output.attempt)
        done = [row["image_id"] for row in results.done]
        failed = [row.image_id for row in results.errors]
        # all of the chunk, unless a device failed in the midst of it
        name = tables.chunk_name(done + failed)
        size = error_size = 0
        if failed:
            errors_folder = storage.join(output.folder, "errors")
            error_size = tables.write_errors(errors_folder, name, results.errors)
        if done:
            size = tables.write_rows(
                tables.part_uri(output.folder, name), results.done, output.schema
            )
    except Exception as error:  # reported to the driver, which stops the stage with this text
        return failed_chunk(reason(error, [*files_of(chunk), lease.lease_uri(output.run_dir)]))
    return _NOTHING | {
        "images": len(done) + len(failed),
        "errors": len(failed),
        "part": name,
        "done": json.dumps(done),
        "failed": json.dumps(failed),
        "earlier": len(earlier),
        "in_a_row": results.in_a_row,
        "bytes": size,
        "error_bytes": error_size,
        "seconds": time.monotonic() - started,
        "fault": results.fault,
        "kinds": json.dumps(Counter(f"{row.kind}@{row.host}" for row in results.errors)),
    }


_NOTHING: dict[str, Any] = {
    "images": 0,
    "errors": 0,
    "part": "",
    "done": "[]",
    "failed": "[]",
    "earlier": 0,  # of the failed: how many the first pool failed on; they come first
    "in_a_row": 0,
    "bytes": 0,
    "error_bytes": 0,
    "sent": 0,  # from the first pool to the second
    "seconds": 0.0,
    **SOUND,
    "kinds": "{}",  # error rows by kind and host
}
"""The counts of a task that did nothing."""


def failed_chunk(why: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of a chunk that could not be done: `reason`, or a `fault` of the machine."""
    return {**_NOTHING, **why}


def reason(error: Exception, files: Sequence[str] = ()) -> dict[str, Any]:
    """Why a chunk could not be done.

    Args:
        files: uris that it needed of the run.

    Returns:
        `failure`, for the driver to print; if it `may_pass`; `at`, the `Place` as JSON; and
        `unseen`: the files, as JSON, if one was missing or refused. Where the driver reads them,
        it is that node's failure.
    """
    again = passing(error)
    kind = "" if isinstance(error, CannotRunError) else f"{type(error).__name__}: "
    return {
        "failure": again or f"{kind}{error}",
        "may_pass": again is not None,
        "at": json.dumps(Place.here().__dict__),
        "unseen": json.dumps(list(files) if refusal(error) else []),
    }


def files_of(chunk: Mapping[str, Any]) -> list[str]:
    """Uris of the tables that a chunk's rows are in."""
    return list(dict.fromkeys(uri for runs in chunk["rows"].values() for uri, _ in runs))
