"""What Prometheus sees of a stage, through the metrics agent of the driver's node.

cluster/monitoring/ has the file for Prometheus and the dashboard.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from pmm_ray.runtime.core.resources import ClusterResources

_SECONDS = [0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0]


@cache
def _metrics() -> dict[str, Any]:
    """One of each for a process: Ray keeps them by name."""
    from ray.util.metrics import Counter, Gauge, Histogram

    stage, host = ("stage",), ("stage", "host")
    return {
        "images": Counter("pmm_images", "images that have a row or an error row", host),
        "errors": Counter("pmm_errors", "error rows", ("stage", "host", "kind")),
        "queue": Gauge("pmm_queue_images", "images that wait or are in work", stage),
        "seconds": Histogram("pmm_image_seconds", "seconds of a worker an image", _SECONDS, stage),
        "busy": Gauge("pmm_busy_share", "share of their time in which workers work", stage),
    }


class Meters:
    """The metrics of one stage.

    Args:
        cluster: a Ray of this process has no agent, and nobody who asks it.
        two: whether there are two pools. The busy share is of the first, which holds the GPUs.
    """

    def __init__(self, stage: str, cluster: ClusterResources, two: bool) -> None:
        self._stage = stage
        self._on = not cluster.local
        self._prefix = "producer_" if two else ""
        self._size = 0
        self._since = time.monotonic()
        self._offered = 0.0  # worker seconds before the size changed
        self._busy = 0.0

    def resize(self, size: int) -> None:
        """Note how many workers the pool whose share is measured has from now on."""
        self._offered = self._worker_seconds()
        self._since, self._size = time.monotonic(), size

    def _worker_seconds(self) -> float:
        return self._offered + (time.monotonic() - self._since) * self._size

    def chunk(self, counts: Mapping[str, Any], kinds: Mapping[str, int], queue: int) -> None:
        """Note what a task reported, its error rows by kind and host, and what is left."""
        if not self._on or not counts["images"]:
            return
        metrics, stage = _metrics(), {"stage": self._stage}
        metrics["images"].inc(counts["images"], stage | {"host": counts["host"]})
        for name, number in kinds.items():
            kind, _, host = name.partition("@")
            metrics["errors"].inc(number, stage | {"host": host, "kind": kind})
        metrics["queue"].set(max(0, queue), stage)
        seconds = counts["pool_seconds"] + counts["producer_pool_seconds"]
        metrics["seconds"].observe(seconds / counts["images"], stage)
        self._busy += counts[f"{self._prefix}pool_seconds"]
        metrics["busy"].set(min(1.0, self._busy / max(self._worker_seconds(), 1e-9)), stage)

    def end(self) -> None:
        """Note that the stage is over: the last values would stay until the driver ends."""
        if self._on:
            _metrics()["queue"].set(0, {"stage": self._stage})
            _metrics()["busy"].set(1.0, {"stage": self._stage})
