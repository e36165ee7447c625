"""A training and everything that its workers need to know."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pmm_ray.config import RuntimeConfig, TrainingConfig
from pmm_ray.runtime.core import lease
from pmm_ray.runtime.training.task import TrainingTask


@dataclass(frozen=True)
class TrainingJob:
    """A whole training, as the driver hands it to every worker."""

    task: TrainingTask[Any]
    run_dir: str
    attempt: str
    """Holds the lease of the run folder, see `lease`."""
    model_uri: str
    """The trained network's file."""
    checkpoints_uri: str
    """Folder of the intermediate checkpoints."""
    errors_uri: str
    error_budget: int
    fingerprint: str
    """Checkpoints of another one are not resumed from."""
    images: int
    """Images of an epoch; one of a rare class may count more than once."""
    steps: int
    workers: int
    passes: int
    """Of each worker, in a step: `accumulate`, or what an elastic training needs instead."""
    loader_processes: int
    runtime: RuntimeConfig
    """Each node works out its own scratch folder from it, see `scratch_folder`."""

    def require_folder(self) -> None:
        """Raise CannotRunError where another run has taken the folder over.

        The workers may outlive a driver that sleeps: they ask before they write what goes on.
        """
        lease.require(self.run_dir, self.attempt)

    @property
    def stage(self) -> str:
        return self.task.stage

    @property
    def config(self) -> TrainingConfig:
        config: TrainingConfig = self.task.config
        return config

    @property
    def cpus(self) -> int:
        """CPUs of a worker."""
        return self.config.threads_per_worker + self.loader_processes
