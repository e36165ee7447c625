"""The workers of a stage: what maps the rows of a chunk, and how many of them share a cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from pmm_ray.runtime.core.errors import (
    CannotRunError,
    ErrorKind,
    ErrorRow,
    RowError,
    system_failure,
)
from pmm_ray.runtime.core.machine import MachineError, machine_fault, out_of_memory
from pmm_ray.runtime.core.resources import Pool

InputRow = dict[str, dict[str, Any]]  # table name -> row of that table
Worker = Callable[[Sequence[InputRow]], Iterator[dict[str, Any] | ErrorRow]]


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


def row_by_row(stage: str, function: Callable[[InputRow], dict[str, Any]]) -> Worker:
    """Turn a function of one image into a worker whose failures are error rows.

    `RowError` keeps its kind; any other exception becomes `internal`, with its type and text,
    except what is no image's fault: a disk, a store or a device that fails.
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
    """Raise anew what is no image's fault: a store, a disk, a device, a missing package.

    Raises:
        MachineError: a device or a driver failed.
    """
    if isinstance(error, CannotRunError) or system_failure(error):
        raise error
    if isinstance(error, ImportError):
        raise CannotRunError(f"{error}: install the same packages on every node") from error
    if fault := machine_fault(error):
        raise MachineError(fault) from error


def failure_of(error: Exception) -> tuple[ErrorKind, str]:
    """Kind and text of the error row of an unforeseen exception."""
    if out_of_memory(error):
        return "too_large", f"out of memory on the GPU, for this image alone: {error}"
    return "internal", f"{type(error).__name__}: {error}"
