"""The Ray Data plan every inference stage runs on: chunks of image ids through one pool or two.

Why it is shaped like this: docs/decisions/001-tasks-write-their-own-parts.md.
"""

from __future__ import annotations

import gc
import json
import threading
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pmm_ray.runtime.cluster.connect import inference_process
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError, MayPassError, cannot_run, last_line
from pmm_ray.runtime.core.machine import (
    END_SECONDS,
    MachineError,
    Place,
    end_process_soon,
    machine_fault,
)
from pmm_ray.runtime.core.resources import Pool
from pmm_ray.runtime.core.store_faults import of_the_store, refusal
from pmm_ray.runtime.mapping.stall import Limits, watchdog
from pmm_ray.runtime.mapping.tasks import (
    PASSES,
    PRODUCED,
    SOUND,
    Output,
    consume_chunk,
    failed_chunk,
    fault_of,
    files_of,
    is_here,
    produce_chunk,
    reason,
    run_chunk,
)
from pmm_ray.runtime.mapping.workers import Producer, Worker

if TYPE_CHECKING:
    from ray.data import Dataset

# A process that dies takes its chunk with it; Ray tries again this often before we isolate it.
_RETRIES = 2

Row = dict[str, Any]


class _Mapper:
    """Maps rows of a block with a worker that it makes at its first one.

    An exception (no weights, no memory, a GPU that does not answer) is a failure of the chunk:
    Ray Data would drop the chunk and its reason, see `max_errored_blocks` below.

    Args:
        gpus: of the process; of a part of one it takes no more memory than that.
    """

    def __init__(
        self,
        factory: Callable[[], Worker],
        function: Callable[[Row, Worker], Row],
        failed: Any,
        gpus: float = 0.0,
    ) -> None:
        self._factory = factory
        self._function = function
        self._failed = failed
        self._gpus = gpus
        self._worker: Worker | None = None
        self._cannot: Exception | None = None
        """Why no worker could be made."""
        self._making = threading.Lock()  # an actor is called by several threads, see `Pool.overlap`
        self._seconds = _Seconds()

    def __call__(self, batch: pa.Table) -> pa.Table:
        if _ending.is_set():
            _wait_for_the_end()
        rows = batch.to_pylist()
        try:
            worker = self._made()
            results = [self._timed(row, worker) for row in rows]
        except Exception as error:  # travels to the driver, which stops the stage or blames
            why = _whose(error, rows[0])
            untimed = _NO_TIME | Place.here().__dict__
            results = [self._failed(row, why) | untimed for row in rows]
        return _ended(results)

    def _made(self) -> Worker:
        """The worker, made once; raises each time what it could not be made for."""
        with self._making:
            if self._cannot is not None:
                raise self._cannot
            if self._worker is None:
                try:
                    inference_process(self._gpus)
                    self._worker = self._factory()
                except Exception as error:
                    self._cannot = error
                    raise
            return self._worker

    def _timed(self, row: Row, worker: Worker) -> Row:
        """What the function makes of a row, with the seconds that its process worked on it."""
        began = _now()
        result = self._function(row, worker)
        cpu, clock = self._seconds.since(began)
        counted: Row = getattr(worker, "counted", dict)()  # see `overlap.Together`
        seconds = {"cpu_seconds": cpu, "pool_seconds": clock}
        return result | PASSES | counted | seconds | Place.here().__dict__


def _whose(error: Exception, row: Row) -> Row:
    """Why a chunk failed: `reason` of a failure of the stage, or the `fault` of this machine."""
    fault = machine_fault(error)
    if fault is not None:
        return {"fault": fault_of(MachineError(fault))}
    refused = refusal(error)
    if refused is None:
        return reason(error)
    # such as the weights: where a store, which names no file, refuses them, it refuses all
    whole = files_of(json.loads(row["chunk"])) if of_the_store(refused) else []
    return reason(error, [refused.filename] if refused.filename else whole)


class _Seconds:
    """Counts each second of a process for one chunk, though it works on several at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counted = _now()

    def since(self, began: tuple[float, float]) -> tuple[float, float]:
        """CPU and clock seconds since then, without those that another chunk has counted."""
        with self._lock:
            now = _now()
            first = [max(pair) for pair in zip(began, self._counted, strict=True)]
            self._counted = now
            return now[0] - first[0], now[1] - first[1]


def _now() -> tuple[float, float]:
    return time.process_time(), time.monotonic()


_ending, _last_report = threading.Event(), threading.Lock()


def _wait_for_the_end() -> None:
    """Ray gives the chunk to another process when this one is gone."""
    time.sleep(10 * END_SECONDS)


def _ended(rows: Sequence[Row]) -> pa.Table:
    """The block of the rows; the last of this process if its device failed."""
    # the second of two pools passes on what failed in the first
    if any(row["fault"] and is_here(row["fault"]) for row in rows):
        # one failure is reported once, whatever else was under way
        if not _last_report.acquire(blocking=False):
            _wait_for_the_end()
        _ending.set()
        end_process_soon()
    schema = PRODUCED if "rows" in rows[0] else None
    return pa.Table.from_pylist(list(rows), schema=schema)


_NO_PLACE: Row = {"node": "", "host": "", "process": 0}
_NO_TIME: Row = {"cpu_seconds": 0.0, "pool_seconds": 0.0} | PASSES | _NO_PLACE


def _task(*arguments: Any) -> Callable[[pa.Table], pa.Table]:
    def task(batch: pa.Table) -> pa.Table:
        return _Mapper(*arguments)(batch)

    return task


def _mapped(dataset: Dataset, pool: Pool, blocks: int, *arguments: Any) -> Dataset:
    """The dataset through one pool; `arguments` are `_Mapper`'s."""
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    options: dict[str, Any] = {
        "batch_format": "pyarrow",
        "num_cpus": pool.cpus,
        "num_gpus": pool.gpus or None,
        "memory": pool.memory or None,
        "label_selector": dict(pool.labels) or None,
    }
    if pool.actors:
        return dataset.map_batches(
            _Mapper,
            compute=ActorPoolStrategy(
                size=min(pool.size, blocks),
                max_concurrent_calls_per_actor=pool.overlap,
                max_tasks_in_flight_per_actor=max(2, pool.overlap),
                enable_true_multi_threading=pool.overlap > 1,
            ),
            fn_constructor_args=(*arguments, pool.gpus),
            batch_size=1,
            **options,
            max_restarts=-1,
            max_task_retries=_RETRIES,
        )
    return dataset.map_batches(
        _task(*arguments),
        compute=TaskPoolStrategy(size=pool.size),
        batch_size=None,
        **options,
        max_retries=_RETRIES,
    )


def stream(
    chunks: Sequence[str],
    factory: Callable[[], Worker],
    output: Output,
    pool: Pool,
    limits: Limits,
    producer: Producer | None = None,
) -> Generator[Mapping[str, Any], None, None]:
    """Send chunks through the pool, or the producer's and then the pool; yields committed counts.

    A chunk whose process dies again and again is missing from the counts: the caller finds its
    images uncommitted and isolates them.

    Args:
        chunks: from `make_chunks`.
        factory: makes the worker inside a pool process; its arguments must be small (paths, not
            weights), since Ray keeps them for restarts.
        pool: how many processes.
        limits: of waiting.
        producer: a first pool whose rows the workers take.

    Raises:
        CannotRunError: a task could not do its work at all (full disk, broken model). Where it is
            its node that does not see what the driver sees, that is in its counts: `failure`.
        StalledError: nothing finished for too long; says what each pool waited for.
    """
    try:
        yield from _counts(chunks, factory, output, pool, limits, producer)
    finally:
        # Ray Data ends an actor by dropping its last handle. Where a process died, its error holds
        # the pool in a reference cycle, and actors would keep their CPUs from the next stage.
        gc.collect()


def _counts(
    chunks: Sequence[str],
    factory: Callable[[], Worker],
    output: Output,
    pool: Pool,
    limits: Limits,
    producer: Producer | None,
) -> Generator[Mapping[str, Any], None, None]:
    import ray
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_no_progress_timeout_s = -1  # our own watchdog says more
    pools = [producer.pool, pool] if producer is not None else [pool]
    context.custom_execution_callback_classes = [watchdog(limits, pools)]
    context.max_errored_blocks = -1
    context.op_resource_reservation_enabled = False  # blocks are small: nothing to reserve

    items = [{"chunk": chunk} for chunk in chunks]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))

    if producer is not None:
        dataset = _produced(dataset, producer, len(items))

    def run(row: Row, worker: Worker) -> Row:
        if producer is None:
            return run_chunk(row["chunk"], worker, output) | _before(_NO_TIME)
        return consume_chunk(row, producer.table, worker, output) | _before(row)

    def not_run(row: Row, why: Row) -> Row:
        return failed_chunk(why) | _before(_NO_TIME)

    dataset = _mapped(dataset, pool, len(items), factory, run, not_run)
    try:
        for batch in dataset.iter_batches(
            batch_size=None, batch_format="pyarrow", prefetch_batches=0
        ):
            for counts in batch.to_pylist():
                if counts["failure"] and not _seen_here(json.loads(counts["unseen"])):
                    host = json.loads(counts["at"])["host"]
                    text = f"{output.stage}, on {host}: {counts['failure']}"
                    raise cannot_run(text, counts["may_pass"])
                yield counts
    except ray.exceptions.RayError as error:
        raise MayPassError(f"{output.stage}: {last_line(error)}") from error


def _seen_here(files: Sequence[str]) -> bool:
    """Whether the driver reads what a node did not: then it is that node's failure."""
    try:
        return bool(files) and all(len(storage.read_bytes(uri, 1)) for uri in files)
    except (OSError, CannotRunError):
        return False


def _produced(dataset: Dataset, producer: Producer, blocks: int) -> Dataset:
    """The dataset through the first of two pools."""

    def produce(row: Row, worker: Worker) -> Row:
        return produce_chunk(row["chunk"], worker, producer)

    def not_produced(row: Row, why: Row) -> Row:
        nothing = {"chunk": row["chunk"], "rows": b"", "errors": "[]", "in_a_row": 0}
        return nothing | SOUND | why

    return _mapped(dataset, producer.pool, blocks, producer.factory, produce, not_produced)


def _before(produced: Row) -> Row:
    """What the first of two pools took for a chunk; nothing where there is but one."""
    return {f"producer_{name}": produced[name] for name in _NO_TIME} | {
        "producer_in_a_row": produced.get("in_a_row", 0)
    }
