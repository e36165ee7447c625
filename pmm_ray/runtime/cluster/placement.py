"""Where work may run: GPU stages where there are GPUs, the others on the remaining nodes.

Stages without a GPU keep away from GPU nodes, whose hour costs many times a CPU node's and whose
own cores feed the GPU. Nothing runs on a head that was started with `--num-cpus=0`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pmm_ray.config import RuntimeConfig
from pmm_ray.config.sections import NodeType
from pmm_ray.runtime.core.resources import ClusterResources, Node

# Measured by benchmarks/crf_memory.py on 2026-11-25: the peak of a process that makes masks.
_PROCESS_BYTES = 330_000_000
_BYTES_PER_PIXEL = 300


def place(
    rows: Sequence[Mapping[str, Any]], config: RuntimeConfig, *, local: bool = False
) -> ClusterResources:
    """Decide where stages run.

    Args:
        rows: alive nodes as `ray.nodes()` lists them.
        config: `cpu_labels`, and what an autoscaler may add. Without labels, stages without a GPU
            run on the nodes without one; on all nodes if each has one.
        local: whether this process started the Ray it uses, to which no node comes.
    """
    there = [Node.of(row) for row in rows]
    nodes = [*there, *([] if local else _may_come(there, config.autoscaled_nodes))]
    return ClusterResources(
        cpus=sum(node.cpus for node in nodes),
        gpus=sum(node.gpus for node in nodes),
        nodes=len(there),
        local=local,
        cpu_labels=config.cpu_labels,
        spares_gpus=any(node.cpus and not node.gpus for node in nodes),
        offered=tuple(nodes),
    )


def _may_come(there: Sequence[Node], types: Sequence[NodeType]) -> list[Node]:
    """The nodes that an autoscaler may still add; a present node counts for one type only."""
    left, more = list(there), []
    for kind in types:
        present = [
            n for n in left if (n.cpus, n.gpus) == (kind.cpus, kind.gpus) and n.accepts(kind.labels)
        ][: kind.count]
        left = [n for n in left if n not in present]
        absent = kind.count - len(present)
        more += [Node(kind.cpus, kind.gpus, kind.memory, kind.labels)] * absent
    return more


def mask_memory(pixels: float, largest_node: float, more_per_pixel: float = 0) -> int:
    """Bytes that a task which makes masks reserves, so that a node takes no more than it can hold.

    Args:
        pixels: of a large image of the table, px.
        largest_node: memory of the largest node where they run, bytes; a reservation beyond it
            would never be met, so it is the most that is asked for.
        more_per_pixel: what a task holds beside a mask, bytes per px.
    """
    wanted = _PROCESS_BYTES + (_BYTES_PER_PIXEL + more_per_pixel) * pixels
    return int(min(wanted, largest_node) if largest_node > 0 else wanted)
