"""The watchdog of a stream: when no image finishes, it says what each pool waits for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pmm_ray.runtime.core.progress import format_seconds
from pmm_ray.runtime.core.resources import Node, Pool, amounts
from pmm_ray.runtime.mapping.follow import resize_pools

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

# Ray's executor passes its state to callbacks many times a second.
_LOOK_EVERY_SECONDS = 0.5
# so long without an image before nodes are counted
_QUIET_SECONDS = 2.0
# so often pools are made as large as the cluster is
_FOLLOW_EVERY_SECONDS = 5.0


class StalledError(Exception):
    """No image finished for too long; the message says what each pool waited for."""


@dataclass(frozen=True)
class Limits:
    """How long a stream may wait.

    Attributes:
        stall_seconds: without an output of the last operator, while nodes are there to work.
        nodes_seconds: without nodes that can hold a worker of each pool.
        note: takes what is waited for, for the line of progress; '' when it is over.
        sizes: of the pools, as the cluster is now; asked every few seconds. None: they stay.
    """

    stall_seconds: float
    nodes_seconds: float
    note: Callable[[str], None]
    sizes: Callable[[], Sequence[int]] | None = None

    def __reduce__(self) -> tuple[type[Limits], tuple[float, float, Callable[[str], None]]]:
        # Ray sends the driver's settings to every task; only the driver has a line of progress
        return Limits, (self.stall_seconds, self.nodes_seconds, _nobody)


def _nobody(note: str) -> None:
    """Hears no note."""


def watchdog(limits: Limits, pools: Sequence[Pool]) -> type[Any]:
    """A callback class for Ray Data's executor that ends an execution in which nothing finishes.

    `StalledError` is raised where the output is awaited. The clock of `stall_seconds` stands still
    while nodes are missing.

    Args:
        pools: each needs a node for one worker.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Watchdog(ExecutionCallback):
        def before_execution_starts(self, executor: StreamingExecutor) -> None:
            self._outputs = 0
            self._waited = 0.0  # for nodes, in all since the last output
            self._alone: float | None = None  # since when nodes have been missing
            self._changed = self._looked = self._followed = time.monotonic()

        def on_execution_step(self, executor: StreamingExecutor) -> None:
            now = time.monotonic()
            passed = now - self._looked
            if passed < _LOOK_EVERY_SECONDS:
                return
            self._looked = now
            if limits.sizes is not None and now - self._followed > _FOLLOW_EVERY_SECONDS:
                self._followed = now
                resize_pools(executor, limits.sizes())
            operator = executor._output_node[0]
            outputs = operator.metrics.num_outputs_taken
            if outputs != self._outputs or operator.has_completed():
                self._outputs, self._changed, self._waited = outputs, now, 0.0
                self._found()
            elif now - self._changed > _QUIET_SECONDS:
                self._quiet(executor, now, passed)

        def _found(self) -> None:
            if self._alone is not None:
                self._alone = None
                limits.note("")

        def _quiet(self, executor: StreamingExecutor, now: float, passed: float) -> None:
            """Nothing has finished for some seconds."""
            missing = missing_nodes(pools)
            if missing:
                self._alone = self._alone or now
                self._waited += passed
                limits.note(f"waits for nodes: {missing}")
                if now - self._alone > limits.nodes_seconds:
                    first = f"no node came for {format_seconds(limits.nodes_seconds)}: {missing}."
                    raise StalledError(f"{first}\n{describe_operators(executor)}")
                return
            self._found()
            if now - self._changed - self._waited > limits.stall_seconds:
                first = f"no image finished for {format_seconds(limits.stall_seconds)}."
                raise StalledError(f"{first}\n{describe_operators(executor)}")

    return Watchdog


def missing_nodes(pools: Sequence[Pool]) -> str:
    """What no alive node can hold; empty where each pool could have a worker."""
    import ray

    nodes = [Node.of(row) for row in ray.nodes() if row["Alive"]]
    for one in pools:
        asked = (one.cpus, one.gpus, one.memory)
        if not any(n.accepts(one.labels) and n.room(*asked) for n in nodes):
            asks = amounts(*asked)
            labels = "".join(f" {key}={value}" for key, value in one.labels.items())
            return f"none of the {len(nodes)} nodes has {asks}{labels}"
    return ""


def describe_operators(executor: StreamingExecutor) -> str:
    """What each operator of a running plan waits for, and what to do about it."""
    import ray

    lines = []
    computing = waiting = False
    operators = [item for item in executor._topology.items() if item[0].input_dependencies]
    for number, (operator, state) in enumerate(operators, 1):
        running, queued = operator.num_active_tasks(), state.total_enqueued_input_blocks()
        finished = operator.metrics.num_tasks_finished
        actors = operator.get_actor_info()
        text = f"  pool {number} of {len(operators)} ({operator.name}): "
        text += f"{finished} chunks finished, {running} handed to workers, {queued} queued"
        if actors.pending or actors.restarting:
            text += f"; {actors.pending} workers wait to be placed, {actors.restarting} restart"
            waiting = True
        limits = (
            operator._task_submission_backpressure_policy,
            operator._task_output_backpressure_policy,
        )
        if operator._in_task_submission_backpressure or operator._in_task_output_backpressure:
            text += f"; held back by {' and '.join(name for name in limits if name)}"
        if not running and not queued and not operator.has_completed():
            text += "; waits for the pool before it"
        computing |= running > 0
        lines.append(text)
    total, free = ray.cluster_resources(), ray.available_resources()
    shown = [
        f"{free.get(name, 0):g} of {total[name]:g} {name}s free"
        for name in ("CPU", "GPU")
        if total.get(name)
    ]
    nodes = sum(node["Alive"] for node in ray.nodes())
    lines.append(f"  cluster: {nodes} nodes, {', '.join(shown) or 'no CPU left'}")
    if waiting or not computing:
        lines.append(
            "What to do: add nodes or free CPUs, or ask for fewer workers; then run again."
        )
    else:
        lines.append(
            "What to do: if images are simply slow, raise runtime.stall_seconds or lower the"
            " stage's batch_size; if a worker hangs, `ray stack` on its node shows where."
            " Run the same command again: what is finished stays."
        )
    return "\n".join(lines)
