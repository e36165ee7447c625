"""A segmenter's training in this process: the job, and what its events say."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch import nn

from pmm_ray.config import RunConfig
from pmm_ray.nets.segmenter_validation import MIOU, SegmenterValidation
from pmm_ray.runtime.core import lease
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.training.job import TrainingJob
from pmm_ray.stages.train_segmenter import SegmenterTask

from ..training import photographs_of, task_fields, train, training_job

STEPS = 6
SECTION: dict[str, Any] = {"weights": "none", "channels": 8, "output_stride": 32, "crop_size": 48}
SECTION |= {"resize_base": [96, 48], "iterations": STEPS, "batch_size": 4, "dropout": 0.3}


def section(**more: Any) -> Any:
    return RunConfig.model_validate({"segmenter": {**SECTION, **more}}).segmenter


@dataclasses.dataclass(kw_only=True)
class WatchedTask(SegmenterTask):
    """Stops before a step."""

    stop_at: int = -1

    def learning_rate(self, step: int, steps: int) -> float:
        if step == self.stop_at:
            raise RuntimeError("told to stop here")
        return super().learning_rate(step, steps)


@dataclasses.dataclass
class Told:
    """A validation that scores what it is told to, in turn."""

    scores: tuple[float, ...]

    def measure(self, *_: Any) -> None:
        return None

    def metrics(self, shares: list[None]) -> dict[str, float]:
        first, *rest = self.scores
        self.scores = (*rest, first)
        return {MIOU: first}


def validation(manifest: Manifest, split: str = "val") -> SegmenterValidation:
    return SegmenterValidation(manifest.uri, split, photographs_of(manifest), None, (96, 48), 0)


def job(
    manifest: Manifest, masks_uri: str, run_dir: Path, config: Any, **changes: Any
) -> TrainingJob:
    names = ("stop_at", "validation", "model")
    options = {name: changes.pop(name) for name in names if name in changes}
    task = WatchedTask(**task_fields(manifest, config, masks_uri=masks_uri, **options), round=0)
    values = {"images": manifest.splits["train"], "steps": STEPS}
    return training_job(task, run_dir, **values | changes)


def validated(run_dir: Path) -> list[tuple[int, float]]:
    return [(event["step"], event[MIOU]) for event in read_events(str(run_dir), "validation")]


def statistics(manifest_uri: str, masks_uri: str, folder: str, rank: str) -> list[float]:
    """Sums of the norms' running means of one of two workers, each time that it scores."""
    seen: list[float] = []

    class Sums(Told):
        def measure(self, network: nn.Module, *_: Any) -> None:
            norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
            seen.append(sum(float(norm.running_mean.double().sum()) for norm in norms))  # type: ignore[union-attr]

    this = job(
        open_manifest(manifest_uri),
        masks_uri,
        Path(folder),
        section(),
        workers=2,
        validate_every=2,
        checkpoint_seconds=1e9,
        validation=Sums((0.5,)),
    )
    store = f"file://{folder}/store"
    # one of them holds the folder before the other looks, and until both are done
    hold = lease.hold(folder, this.attempt) if rank == "0" else contextlib.nullcontext()
    with hold:
        dist.init_process_group("gloo", init_method=store, rank=int(rank), world_size=2)
        train(this, int(rank))
        dist.barrier()
    dist.destroy_process_group()
    return seen
