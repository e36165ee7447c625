"""Pools that follow the cluster while a stage runs: nodes that join get work.

Ray Data fixes the number of a plan's tasks when it starts, and an actor pool with room to grow
starts all actors at once, whether nodes for them are there or not. So the sizes are set anew.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pmm_ray.runtime.core.resources import ClusterResources, Pool

if TYPE_CHECKING:
    from ray.data._internal.execution.streaming_executor import StreamingExecutor


class Sizes:
    """The sizes of a plan's pools, as the cluster is at each call.

    Args:
        cluster: that is read again.
        pools: in the order of the plan, as they were asked for.
        chunks: no pool has more workers.
        changed: hears how many workers of each pool the nodes that are there hold: at once, and
            when a call finds other numbers. Nodes that an autoscaler may add have a size, too.
    """

    def __init__(
        self,
        cluster: ClusterResources,
        pools: Sequence[Pool],
        chunks: int,
        changed: Callable[[Sequence[int]], None],
    ) -> None:
        self._cluster = cluster
        self._pools = pools
        self._chunks = chunks
        self._changed = changed
        self._there: list[int] = []
        self._on(cluster)

    def _on(self, cluster: ClusterResources) -> list[int]:
        placed = [cluster.placed(pool) for pool in self._pools]
        pools = [replace(pool, size=min(pool.size, self._chunks)) for pool in placed]
        there = [cluster.held(pool) for pool in pools]
        if there != self._there:
            self._there = there
            self._changed(there)
        return [pool.size for pool in pools]

    def __call__(self) -> Sequence[int]:
        return self._on(self._cluster.now())


def resize_pools(executor: StreamingExecutor, sizes: Sequence[int]) -> None:
    """Set how many workers each pool of a running plan has, in the order of the plan.

    Actors beyond the size end when they have nothing to do, tasks when they are done.
    """
    operators: list[Any] = [op for op in executor._topology if op.input_dependencies]
    for operator, size in zip(operators, sizes, strict=True):
        actor_pools = operator.get_autoscaling_actor_pools()
        for pool in actor_pools:
            if pool.max_size() != size:
                pool._config = replace(
                    pool._config, min_size=size, max_size=size, initial_size=size
                )
        if not actor_pools:
            for policy in executor._backpressure_policies:
                if operator in getattr(policy, "_concurrency_caps", ()):
                    policy._concurrency_caps[operator] = size
