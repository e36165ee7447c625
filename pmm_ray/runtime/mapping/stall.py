"""The watchdog of a stream: when no image finishes, it says what each pool waits for."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor

# Ray's executor passes its state to callbacks many times a second.
_LOOK_EVERY_SECONDS = 0.5


class StalledError(Exception):
    """No image finished for too long; the message says what each pool waited for."""


def watchdog(stall_seconds: float) -> type[Any]:
    """A callback class for Ray Data's executor that ends an execution in which nothing finishes.

    Args:
        stall_seconds: without an output of the last operator for this long, `StalledError` is
            raised where the output is awaited.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Watchdog(ExecutionCallback):
        def before_execution_starts(self, executor: StreamingExecutor) -> None:
            self._outputs = 0
            self._changed = self._looked = time.monotonic()

        def on_execution_step(self, executor: StreamingExecutor) -> None:
            now = time.monotonic()
            if now - self._looked < _LOOK_EVERY_SECONDS:
                return
            self._looked = now
            operator = executor._output_node[0]
            outputs = operator.metrics.num_outputs_taken
            if outputs != self._outputs or operator.has_completed():
                self._outputs, self._changed = outputs, now
            elif now - self._changed > stall_seconds:
                raise StalledError(describe(executor, stall_seconds))

    return Watchdog


def describe(executor: StreamingExecutor, stall_seconds: float) -> str:
    """What each operator of a running plan waits for, and what to do about it."""
    import ray

    from pmm_ray.runtime.core.progress import format_seconds

    lines = [f"no image finished for {format_seconds(stall_seconds)}."]
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
