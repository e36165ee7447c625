"""The loop that Ray Train runs on every worker, here alone: a process group of one, no Ray."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from pmm_ray.config import RuntimeConfig
from pmm_ray.runtime.core import lease
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.training.job import TrainingJob
from pmm_ray.runtime.training.reporter import Phase
from pmm_ray.runtime.training.task import TrainingTask
from pmm_ray.runtime.training.worker import _Worker


def train_alone(
    task: TrainingTask[Any],
    run_dir: Path,
    *,
    images: int,
    steps: int,
    device: torch.device,
    loader_processes: int = 0,
) -> dict[str, Any]:
    """What the worker reports at its end.

    Args:
        run_dir: an empty folder; the model and its checkpoint go below it.
        images: of the training split.
    """
    folder = StageFolder.below(str(run_dir), "train", "0")
    job = TrainingJob(
        task=task,
        run_dir=str(run_dir),
        attempt="a",
        model_uri=folder.path("model.pt"),
        checkpoints_uri=folder.path("train"),
        errors_uri=folder.errors_uri,
        error_budget=0,
        fingerprint="",
        images=images,
        steps=steps,
        workers=1,
        passes=task.config.accumulate,
        loader_processes=loader_processes,
        runtime=RuntimeConfig(scratch=str(run_dir)),
    )
    nobody = SimpleNamespace(remote=lambda *_: None)
    reporter = SimpleNamespace(update=nobody, failed=nobody, saved=nobody)
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    try:
        with lease.hold(job.run_dir, job.attempt):
            return _Worker(job, reporter, 0, 1, device, Phase(reporter, 0)).run()
    finally:
        dist.destroy_process_group()
