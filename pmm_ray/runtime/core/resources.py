"""What the connected cluster has, and what may be asked of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pmm_ray.runtime.core.errors import CannotRunError


@dataclass(frozen=True)
class ClusterResources:
    """What the connected cluster has in all."""

    cpus: float
    gpus: float
    nodes: int
    local: bool
    """Whether this process started the Ray it uses."""
    cpu_stage_cpus: float | None = None
    """CPUs of the nodes where stages without a GPU run; None: all."""
    cpu_stage_labels: Mapping[str, str] = field(default_factory=dict)
    """Ray's label selector for these nodes; empty: any node."""
    node_memory: float = 0.0
    """Memory that the largest node offers to tasks, bytes; 0: unknown."""

    def default_train_workers(self) -> int:
        """One per GPU; on CPUs 2, or 1 on a single core."""
        if self.gpus >= 1:
            return int(self.gpus)
        return 2 if self.cpus >= 2 else 1

    def default_actors(self) -> int:
        """Model copies for inference: one per GPU, else one per CPU."""
        return max(1, int(self.gpus) if self.gpus >= 1 else int(self.cpus))

    def default_tasks(self) -> int:
        """Tasks at once of a stage without a GPU: one per CPU where it runs."""
        return max(1, int(self.cpus if self.cpu_stage_cpus is None else self.cpu_stage_cpus))

    def require(
        self,
        what: str,
        *,
        cpus: float = 0,
        gpus: float = 0,
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """Raise CannotRunError at once if the cluster can never give this much."""
        missing = []
        if labels and cpus > (self.cpu_stage_cpus or 0):
            selected = ", ".join(f"{key}={value}" for key, value in labels.items())
            missing.append(f"{cpus:g} CPUs on nodes with {selected}, of which there are none")
        if cpus > self.cpus:
            missing.append(f"{cpus:g} CPUs (the cluster has {self.cpus:g})")
        if gpus > self.gpus:
            missing.append(f"{gpus:g} GPUs (the cluster has {self.gpus:g})")
        if missing:
            raise CannotRunError(
                f"{what} needs {' and '.join(missing)}. Ask for less or add nodes."
            )
