"""Where work may run: GPU stages where there are GPUs, the others on the remaining nodes.

Stages without a GPU keep away from GPU nodes, whose hour costs many times a CPU node's and whose
own cores feed the GPU. Nothing runs on a head that was started with `--num-cpus=0`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pmm_ray.config import RuntimeConfig

# Measured by benchmarks/crf_memory.py on 2026-11-25: the peak of a process that makes masks.
_PROCESS_BYTES = 330_000_000
_BYTES_PER_PIXEL = 300


@dataclass(frozen=True)
class Placement:
    """What a cluster can give to stages with and without a GPU."""

    cpus: float
    """CPUs in all, those that an autoscaler may add included."""
    gpus: float
    cpu_stage_cpus: float
    """CPUs of the nodes where stages without a GPU run."""
    cpu_stage_labels: Mapping[str, str]
    """Ray's label selector for these nodes; empty: any node."""


def place(nodes: Sequence[Mapping[str, Any]], config: RuntimeConfig) -> Placement:
    """Decide where stages run.

    Args:
        nodes: alive nodes as `ray.nodes()` lists them.
        config: `cpu_labels`, and what an autoscaler may add. Without labels, stages without a GPU
            run on the nodes without one; on all nodes if each has one.
    """
    labels = dict(config.cpu_labels)
    if labels:
        chosen = [n for n in nodes if labels.items() <= (n.get("Labels") or {}).items()]
    else:
        chosen = [node for node in nodes if _of(node, "CPU") and not _of(node, "GPU")]
        with_gpu = sorted(str(node["NodeID"]) for node in nodes if _of(node, "GPU"))
        if not chosen and not config.autoscaled_stage_cpus:
            chosen = list(nodes)
        elif with_gpu:
            labels = {"ray.io/node-id": f"!in({','.join(with_gpu)})"}
    cpus = max(sum(_of(node, "CPU") for node in chosen), config.autoscaled_stage_cpus or 0)
    gpus = max(sum(_of(node, "GPU") for node in nodes), config.autoscaled_gpus or 0)
    everywhere = sum(_of(node, "CPU") for node in nodes)
    return Placement(max(everywhere, cpus), gpus, cpus, labels)


def mask_memory(pixels: float, largest_node: float, more_per_pixel: float = 0) -> int:
    """Bytes that a task which makes masks reserves, so that a node takes no more than it can hold.

    Args:
        pixels: of a large image of the table, px.
        largest_node: memory of the largest node, bytes; a reservation beyond it would never be
            met, so it is the most that is asked for.
        more_per_pixel: what a task holds beside a mask, bytes per px.
    """
    wanted = _PROCESS_BYTES + (_BYTES_PER_PIXEL + more_per_pixel) * pixels
    return int(min(wanted, largest_node) if largest_node > 0 else wanted)


def largest_memory(nodes: Iterable[Mapping[str, Any]]) -> float:
    """Memory that the largest node offers to tasks, bytes; 0 if no node says."""
    return max((_of(node, "memory") for node in nodes), default=0.0)


def _of(node: Mapping[str, Any], resource: str) -> float:
    return float((node.get("Resources") or {}).get(resource, 0.0))
