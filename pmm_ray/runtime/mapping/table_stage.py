"""The driver's side of a stage that maps images to rows of a table: resume, budget, summary."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence

import pyarrow as pa

from pmm_ray.runtime.core import lease, tables
from pmm_ray.runtime.core.errors import BudgetExceededError, CannotRunError, ErrorRow, error_budget
from pmm_ray.runtime.core.index import TableIndex, index_file, write_index
from pmm_ray.runtime.core.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.mapping.chunks import Output, Pool, Producer, Worker, make_chunks, side_by_side
from pmm_ray.runtime.mapping.ledger import Ledger
from pmm_ray.runtime.mapping.operators import stream
from pmm_ray.runtime.mapping.stall import StalledError

# Aimed-at chunks per worker, so that the last ones end together; and the most images in a chunk for
# that sake, which bounds what a dying process can lose. `auto_batch` says when there are more.
_CHUNKS_PER_WORKER = 8
_MOST_IMAGES = 32
# What one driver hands out and takes back: measured by benchmarks/control_plane.py.
_CHUNKS_PER_SECOND = 30
# of what a task says: what the log of events keeps
_IN_EVENTS = (
    *("images", "errors", "bytes", "sent", "seconds", "cpu_seconds", "pool_seconds"),
    *("producer_cpu_seconds", "producer_pool_seconds"),
)
_MOST_NAMED = 10


def auto_batch(images: int, workers: int, image_seconds: float = 1.0) -> int:
    """Images per task.

    At most 32, and few enough that all workers end together. The driver can hand out only so many
    chunks a second, so that many workers need larger chunks: large enough to keep all of them busy,
    but not so large that a few workers get all images.

    Args:
        image_seconds: what one image takes a worker, roughly.

    Returns:
        At least 1.
    """
    even = min(_MOST_IMAGES, images // (workers * _CHUNKS_PER_WORKER))
    busy = workers / (_CHUNKS_PER_SECOND * image_seconds)
    short = math.sqrt(images / (_CHUNKS_PER_SECOND * image_seconds))
    return max(1, even, int(min(busy, short)))


def cpu_pool(context: RunContext, tasks: int | str = "auto", memory: int = 0) -> Pool:
    """Tasks on every CPU where stages without a GPU run, or so many `tasks`."""
    cluster = context.cluster
    size = tasks if isinstance(tasks, int) else cluster.default_tasks()
    return Pool(size, memory=memory, labels=cluster.cpu_stage_labels)


def run_table_stage(
    context: RunContext,
    folder: StageFolder,
    *,
    inputs: Mapping[str, TableIndex],
    factory: Callable[[], Worker],
    schema: pa.Schema,
    pool: Pool | None = None,
    batch_size: int | None = None,
    producer: Producer | None = None,
) -> Summary:
    """Map every image of the first table to a row or an error row, resuming where it stopped.

    Args:
        inputs: the tables a row is joined from, by name; the ids of the first are the work, each
            other must know them. The context's `manifest` is joined unless it is among them.
        factory: makes the worker inside a pool process.
        schema: of the output table.
        pool: how many workers and what each needs; None: see `cpu_pool`.
        batch_size: images per task; None: some seconds of work, see `auto_batch`.
        producer: a first pool whose rows `factory`'s workers take, see `side_by_side`; error rows
            of both are rows of this stage's errors table.

    Returns:
        The summary, to which the stage may add metrics.

    Raises:
        BudgetExceededError: too many error rows.
        CannotRunError: see `stream`; and if no image finished for `runtime.stall_seconds`.
    """
    started = time.monotonic()
    expected = next(iter(inputs.values())).image_ids
    if "manifest" not in inputs:
        inputs = {**inputs, "manifest": index_file(context.manifest.uri)}
    pool = pool or cpu_pool(context)
    if producer is not None:
        pool, producer = side_by_side(pool, producer)
    batch_size = batch_size or auto_batch(len(expected), pool.size)
    ledger = Ledger(folder, schema)
    _scan(context, folder, ledger)
    todo = ledger.uncommitted(expected)
    earlier = len(expected) - len(todo)
    budget = error_budget(context.config.errors.budget, len(expected))
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
            try:
                results = stream(chunks, factory, output, pool, stall, producer)
                with contextlib.closing(results):  # frees the pools' CPUs, whatever happens
                    for counts in results:
                        ledger.add(counts)
                        sent += counts["sent"]
                        mapped += counts["images"] - counts["errors"]
                        progress.advance(counts["images"], counts["errors"])
                        said = {name: counts[name] for name in _IN_EVENTS}
                        context.events.write("chunk", stage=folder.stage, **said)
                        _check_budget(folder, len(ledger.failed), budget)
            except StalledError as error:
                left = _named(ledger.uncommitted(todo))
                raise CannotRunError(f"{folder.stage}: {error}\n  not finished: {left}") from error
            todo = ledger.uncommitted(todo)
            if todo:  # a process may have died between its commit and its word
                _scan(context, folder, ledger)
                silent, todo = len(todo), ledger.uncommitted(todo)
                progress.advance(silent - len(todo))
        if todo:
            _write_poison(folder, todo, inputs)
            ledger.failed.update(todo)
            progress.advance(len(todo), len(todo))
        rate = progress.rate
    _check_budget(folder, len(ledger.failed.intersection(expected)), budget)
    seconds = time.monotonic() - started
    summary = _finalize(context, folder, expected, ledger, schema, seconds, rate)
    if not sent or not mapped:
        return summary
    return summary.extended({"sent_bytes_per_image": round(sent / mapped)})


def _named(image_ids: Sequence[str]) -> str:
    more = len(image_ids) - _MOST_NAMED
    return ", ".join(image_ids[:_MOST_NAMED]) + (f" and {more} more images" if more > 0 else "")


def _check_budget(folder: StageFolder, failed: int, budget: int) -> None:
    if failed > budget:
        rows = tables.read_errors(folder.errors_uri)
        raise BudgetExceededError(folder.stage, failed, budget, rows)


def _scan(context: RunContext, folder: StageFolder, ledger: Ledger) -> None:
    """Read the folder; damaged parts are deleted and named."""
    for uri in ledger.scan():
        context.events.write("broken_part", stage=folder.stage, uri=uri)
        context.progress.message(f"{folder.stage}: {uri} is damaged; its images run again")


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
    ledger: Ledger,
    schema: pa.Schema,
    seconds: float,
    rate: float,
) -> Summary:
    """Check rows in = rows out + error rows, index the table, describe it."""
    if not lease.holds(context.run_dir, context.attempt):
        raise CannotRunError(f"{context.run_dir} was taken over by another run")
    ledger.settle()
    # an earlier fused attempt may have left rows of images that now fail in the stage before
    index = ledger.index(expected)
    got, bad = set(index.image_ids), ledger.failed.intersection(expected)
    assert got | bad == set(expected), f"{folder.stage}: rows are missing"
    assert not got & bad, f"{folder.stage}: an image has both a row and an error row"
    write_index(folder.uri, index, schema)
    if bad:
        context.progress.message(f"{folder.stage}: {len(bad)} images skipped, see errors/")
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
