"""The driver's side of a stage that maps images to rows of a table: resume, budget, summary."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pmm_ray.runtime import storage, tables
from pmm_ray.runtime.errors import (
    BudgetExceededError,
    ErrorRow,
    error_budget,
)
from pmm_ray.runtime.index import TableIndex, scan_parts, write_index
from pmm_ray.runtime.operators import stream
from pmm_ray.runtime.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.stream import Output, Pool, Producer, Worker, make_chunks

# Aimed-at chunks per worker, so that the last ones end together; and the most images in a chunk,
# which bounds what a dying process can lose and the size of a part.
_CHUNKS_PER_WORKER = 8
_MOST_IMAGES = 32
# What one driver hands out and takes back: measured by benchmarks/control_plane.py.
_CHUNKS_PER_SECOND = 30


def auto_batch(images: int, workers: int, image_seconds: float = 1.0) -> int:
    """Images per task.

    At most 32 and few enough for an even end; but more where the driver, which can hand out only
    so many chunks a second, would otherwise leave workers idle: as many as keep `workers` busy, or,
    where the images do not last that long, as many as make handing out take no longer than a chunk.

    Args:
        images: to be mapped.
        workers: at once.
        image_seconds: what one image takes a worker, roughly.

    Returns:
        At least 1.
    """
    even = min(_MOST_IMAGES, images // (workers * _CHUNKS_PER_WORKER))
    busy = workers / (_CHUNKS_PER_SECOND * image_seconds)
    short = math.sqrt(images / (_CHUNKS_PER_SECOND * image_seconds))
    return max(1, even, int(min(busy, short)))


def run_table_stage(
    context: RunContext,
    folder: StageFolder,
    *,
    inputs: Mapping[str, TableIndex],
    primary: str,
    factory: Callable[[], Worker],
    schema: pa.Schema,
    pool: Pool,
    batch_size: int,
    producer: Producer | None = None,
) -> Summary:
    """Map every image of the primary table to a row or an error row, resuming where it stopped.

    Args:
        context: the run.
        folder: the stage's output folder.
        inputs: the tables a row is joined from; each must know every id of the primary one.
        primary: the table whose ids are the work.
        factory: makes the worker inside a pool process.
        schema: of the output table.
        pool: how many workers and what each needs.
        batch_size: images per task.
        producer: a first pool whose rows `factory`'s workers take; error rows of both are rows of
            this stage's errors table.

    Returns:
        The summary, to which the stage may add metrics.

    Raises:
        BudgetExceededError: too many error rows.
        CannotRunError: see `stream`.
    """
    started = time.monotonic()
    expected = inputs[primary].image_ids
    todo = _uncommitted(context, folder, expected)
    earlier = len(expected) - len(todo)
    budget = error_budget(context.config.errors.budget, len(expected))
    failed = len(tables.read_errors(folder.errors_uri))
    output = Output(folder.uri, schema, folder.stage, context.run_dir, context.attempt)
    stall = context.config.runtime.stall_seconds
    context.events.write(
        "stage_start",
        stage=folder.stage,
        images=len(expected),
        done=earlier,
        workers=pool.size,
        cpus=pool.cpus,
        gpus=pool.gpus,
        producer_gpus=producer.pool.gpus if producer else None,
    )
    rate, sent, mapped = 0.0, 0, 0
    with context.progress.stage(folder.stage, len(expected), already_done=earlier) as progress:
        # Chunks first; then, one by one, the images of chunks whose process kept dying.
        for size in (batch_size, 1):
            if not todo:
                break
            for one in (pool, producer.pool) if producer else (pool,):
                context.cluster.require(
                    f"{folder.stage}: one worker", cpus=one.cpus, gpus=one.gpus, labels=one.labels
                )
            chunks = make_chunks(todo, inputs, size)
            for counts in stream(chunks, factory, output, pool, stall, producer):
                failed += counts["errors"]
                sent += counts["sent"]
                mapped += counts["images"] - counts["errors"]
                progress.advance(counts["images"], counts["errors"])
                context.events.write("chunk", stage=folder.stage, **_plain(counts))
                if failed > budget:
                    rows = tables.read_errors(folder.errors_uri)
                    raise BudgetExceededError(folder.stage, failed, budget, rows)
            todo = _uncommitted(context, folder, todo)
        if todo:
            _write_poison(folder, todo, inputs)
            progress.advance(len(todo), len(todo))
        rate = progress.rate
    summary = _finalize(context, folder, expected, budget, time.monotonic() - started, rate)
    if not sent or not mapped:
        return summary
    details = summary.details | {"sent_bytes_per_image": round(sent / mapped)}
    return summary.model_copy(update={"details": details})


def _plain(counts: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.item() if hasattr(v, "item") else v for k, v in counts.items() if k != "failure"}


def _uncommitted(context: RunContext, folder: StageFolder, image_ids: Sequence[str]) -> list[str]:
    """The ids that have neither a row nor an error row; unreadable parts are deleted first."""
    finished: set[str] = set()
    for place in (folder.uri, folder.errors_uri):
        index, broken = scan_parts(place)
        for uri in broken:
            context.events.write("broken_part", stage=folder.stage, uri=uri)
            context.progress.message(f"{folder.stage}: {uri} is not readable; its images run again")
            storage.delete_file(uri)
        finished.update(index.image_ids)
    return [i for i in image_ids if i not in finished]


def _write_poison(
    folder: StageFolder, image_ids: Sequence[str], inputs: Mapping[str, TableIndex]
) -> None:
    places = inputs["manifest"].locations()
    rows = []
    for image_id in image_ids:
        uri, row = places[image_id]
        image = tables.read_rows(uri, [row])[0]
        message = "the worker process died each time it took this image"
        rows.append(ErrorRow(image_id, folder.stage, "internal", message, image.get("uri") or ""))
    tables.write_errors(folder.errors_uri, tables.chunk_name(image_ids), rows)


def _finalize(
    context: RunContext,
    folder: StageFolder,
    expected: Sequence[str],
    budget: int,
    seconds: float,
    rate: float,
) -> Summary:
    """Check rows in = rows out + error rows, index the table, describe it."""
    index, _ = scan_parts(folder.uri)
    wanted = set(expected)
    # an earlier fused attempt may have left rows of images that now fail in the stage before
    errors = [
        row
        for row in tables.read_errors(folder.errors_uri)
        if row.stage == folder.stage or row.image_id in wanted
    ]
    got, bad = set(index.image_ids), {row.image_id for row in errors}
    assert got | bad == wanted, f"{folder.stage}: rows are missing or foreign"
    assert not got & bad, f"{folder.stage}: an image has both a row and an error row"
    if len(errors) > budget:
        raise BudgetExceededError(folder.stage, len(errors), budget, errors)
    write_index(folder.uri, index)
    if errors:
        context.progress.message(f"{folder.stage}: {len(errors)} images skipped, see errors/")
    context.events.write(
        "stage_end", stage=folder.stage, images=len(got), errors=len(bad), seconds=seconds
    )
    return Summary(
        stage=folder.stage,
        hash=folder.hash,
        images=len(got),
        errors=len(bad),
        images_per_second=round(rate, 3),
        details={"input_rows": len(expected)},
    )
