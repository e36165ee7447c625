"""The driver's side of a stage that maps images to rows of a table: resume, budget, summary."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pyarrow as pa

from pmm_ray.runtime.core import lease
from pmm_ray.runtime.core.errors import error_budget
from pmm_ray.runtime.core.index import TableIndex, ids_hash, ids_without, index_file, write_index
from pmm_ray.runtime.core.resources import Pool
from pmm_ray.runtime.core.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.mapping.ledger import Ledger
from pmm_ray.runtime.mapping.overlap import OVERLAP
from pmm_ray.runtime.mapping.passes import Passes, check_budget, scan
from pmm_ray.runtime.mapping.tasks import Output
from pmm_ray.runtime.mapping.workers import Producer, Worker, side_by_side

# Chunks for each worker, so that the last ones end together.
_CHUNKS_PER_WORKER = 8
# A chunk's most images and seconds, as a rule: what a dying process can lose.
_MOST_IMAGES = 32
_MOST_SECONDS = 32.0
# Chunks of a stage: each costs the driver 12 KB until the stage ends (measured).
_MOST_CHUNKS = 50_000
# A chunk's most seconds where there would be more chunks than that; below `runtime.stall_seconds`.
_LONGEST_SECONDS = 300.0
# What one driver hands out and takes back: measured by benchmarks/control_plane.py.
_CHUNKS_PER_SECOND = 30


def auto_batch(images: int, workers: int, image_seconds: float = 1.0) -> int:
    """Images per task.

    At most 32, or half a minute's, and few enough that all workers end together. The driver can
    hand out only so many chunks a second, so that many workers need larger chunks: large enough to
    keep all of them busy, but not so large that a few workers get all images. Millions of images
    need larger ones, too, for the driver's memory.

    Args:
        image_seconds: what one image takes a worker, roughly.

    Returns:
        At least 1.
    """
    most = min(_MOST_IMAGES, int(_MOST_SECONDS / image_seconds))
    even = min(most, images // (workers * _CHUNKS_PER_WORKER))
    busy = workers / (_CHUNKS_PER_SECOND * image_seconds)
    short = math.sqrt(images / (_CHUNKS_PER_SECOND * image_seconds))
    fewer = min(images // _MOST_CHUNKS, int(_LONGEST_SECONDS / image_seconds))
    return max(1, even, fewer, int(min(busy, short)))


def network_batch(images: int, pool: Pool, on_gpu: float, on_cpu: float) -> int:
    """Images per task of actors that hold a network; at least 1.

    As `auto_batch`; but how long an image takes depends on the network and the device. So every
    worker gets two chunks, and on a GPU as slow as a CPU a chunk ends long before
    `runtime.stall_seconds`.

    Args:
        on_gpu: the least that an image takes on a GPU, s.
        on_cpu: what it may take on a CPU, s.
    """
    batch = auto_batch(images, pool.size, on_gpu if pool.gpus else on_cpu)
    return max(1, min(batch, images // (2 * pool.size), int(_LONGEST_SECONDS / on_cpu)))


class Actors(Protocol):
    """A section of a stage whose actors hold a network."""

    @property
    def actors(self) -> int | str: ...
    @property
    def gpus_per_actor(self) -> float: ...


def cpu_pool(context: RunContext, tasks: int | str = "auto", memory: int = 0) -> Pool:
    """Tasks on every CPU where stages without a GPU run, or so many `tasks`."""
    cluster = context.cluster
    follows = not isinstance(tasks, int)
    size = cluster.default_tasks() if isinstance(tasks, str) else tasks
    return Pool(size, memory=memory, labels=cluster.cpu_stage_labels, follows=follows)


def actor_pool(context: RunContext, config: Actors) -> Pool:
    """Actors that hold a network: so many, or (`auto`) as many as share the GPUs, else one per
    CPU."""
    cluster, gpus = context.cluster, config.gpus_per_actor
    follows = not isinstance(config.actors, int)
    size = config.actors if isinstance(config.actors, int) else cluster.default_actors(gpus)
    if cluster.gpus >= 1:
        return Pool(size, actors=True, cpus=0.0, gpus=gpus, follows=follows, overlap=OVERLAP)
    labels = cluster.cpu_stage_labels
    return Pool(size, actors=True, labels=labels, follows=follows, overlap=OVERLAP)


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
    measures: bool = False,
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
        measures: whether the rows serve nothing but scores: images that fail then cost their score
            and not the run, whatever `errors.budget` says.

    Returns:
        The summary, to which the stage may add metrics.

    Raises:
        BudgetExceededError: too many error rows.
        CannotRunError: see `stream`; and if no image finished for `runtime.stall_seconds`.
    """
    started = time.monotonic()
    expected = next(iter(inputs.values())).ids
    if "manifest" not in inputs:
        inputs = {**inputs, "manifest": index_file(context.manifest.uri)}
    pool = pool or cpu_pool(context)
    if producer is not None:
        pool, producer = side_by_side(pool, producer)
    batch_size = batch_size or auto_batch(len(expected), pool.size)
    ledger = Ledger(folder, schema)
    scan(context, folder, ledger)
    earlier = len(expected) - len(ledger.uncommitted(expected))
    allowed = len(expected) if measures else context.config.errors.budget
    budget = error_budget(allowed, len(expected))
    output = Output(folder.uri, schema, folder.stage, context.run_dir, context.attempt)
    context.events.write(
        "stage_start",
        stage=folder.stage,
        hash=folder.hash,
        images=len(expected),
        done=earlier,
        workers=pool.size,
        cpus=pool.cpus,
        gpus=pool.gpus,
        producer_gpus=producer.pool.gpus if producer else None,
    )
    with context.progress.stage(folder.stage, len(expected), already_done=earlier) as progress:
        passes = Passes(
            context,
            folder,
            ledger,
            inputs,
            expected,
            factory,
            output,
            pool,
            producer,
            budget,
            progress,
        )
        passes.run(batch_size)
        rate = progress.rate
    check_budget(folder, len(ledger.failed_of(expected)), budget)
    return _finalize(passes, time.monotonic() - started, rate)


def _finalize(passes: Passes, seconds: float, rate: float) -> Summary:
    """Check rows in = rows out + error rows, index the table, describe it."""
    context, folder = passes.context, passes.folder
    ledger, expected = passes.ledger, passes.expected
    lease.require(context.run_dir, context.attempt)
    ledger.settle()
    # an earlier fused attempt may have left rows of images that now fail in the stage before
    index = ledger.index(expected)
    got, bad = len(index), ledger.failed_of(expected)
    missing = ids_without(ids_without(expected, index.ids), bad)
    assert not len(missing), f"{folder.stage}: rows are missing"
    assert len(ids_without(bad, index.ids)) == len(bad), f"{folder.stage}: a row and an error row"
    write_index(folder.uri, index, passes.output.schema)
    ledger.journal.delete()
    if len(bad):
        context.progress.message(f"{folder.stage}: {len(bad)} images skipped, see errors/")
    context.events.write(
        "stage_end",
        stage=folder.stage,
        images=got,
        errors=len(bad),
        seconds=seconds,
        **passes.batches,
    )
    details: dict[str, Any] = {"took": ids_hash(expected)}
    if passes.sent and passes.mapped:
        details["sent_bytes_per_image"] = round(passes.sent / passes.mapped)
    return Summary(
        stage=folder.stage,
        hash=folder.hash,
        images=got,
        errors=len(bad),
        images_per_second=round(rate, 3),
        details=details,
    )
