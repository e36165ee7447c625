"""What the workers of a training share: gradients, statistics, what one of them finds out."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.training.job import TrainingJob


def total(value: Tensor) -> Tensor:
    """The sum over all workers, which replaces the value on each of them."""
    dist.all_reduce(value)
    return value


def largest(value: Tensor) -> Tensor:
    """The largest over all workers, element by element, which replaces the value on each."""
    dist.all_reduce(value, op=dist.ReduceOp.MAX)
    return value


def first_problem(
    problem: CannotRunError | None, world: int, device: torch.device
) -> CannotRunError | None:
    """The first worker's problem, known to all of them; None if nobody has one."""
    if not float(total(torch.tensor(float(problem is not None)).to(device))):
        return None
    problems: list[CannotRunError | None] = [None] * world
    dist.all_gather_object(problems, problem)
    return next(problem for problem in problems if problem is not None)


def distributed(module: nn.Module, job: TrainingJob, world: int, device: torch.device) -> nn.Module:
    """The module whose gradients are averaged over `world` workers."""
    if world > 1:
        gpu = device.type == "cuda"
        if gpu:
            synchronise_norms(module)
        module = DistributedDataParallel(
            module,
            device_ids=[device] if gpu else None,
            broadcast_buffers=bool(drifting_buffers(module)),
            gradient_as_bucket_view=True,
            # torch has no static graph for passes without an exchange
            static_graph=job.passes == 1,
        )
    if job.config.compile:
        module.compile()
    return module


def synchronise_norms(module: nn.Module) -> None:
    """Let the workers share the statistics of each norm that learns them; frozen ones stay."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, _BatchNorm) and child.training:
                shared = nn.SyncBatchNorm.convert_sync_batchnorm(child)  # type: ignore[no-untyped-call]
                # a part whose layers the parent took over (SEAM, affinity) calls its own names
                parts = [p for p in vars(parent).values() if isinstance(p, nn.Module)]
                for holder in (parent, *parts):
                    if getattr(holder, name, None) is child:
                        setattr(holder, name, shared)


def drifting_buffers(module: nn.Module) -> list[Tensor]:
    """The buffers that a step may change on each worker in its own way.

    Not those of frozen or synchronised norms, and not those that no checkpoint holds: constants.
    """
    return [
        buffer
        for child in module.modules()
        if not isinstance(child, nn.SyncBatchNorm)
        if child.training or not isinstance(child, _BatchNorm)
        for name, buffer in child.named_buffers(recurse=False)
        if name not in child._non_persistent_buffers_set
    ]


def gradients_stay(module: nn.Module, more_passes: bool) -> contextlib.AbstractContextManager[Any]:
    """Gradients are exchanged between workers at a step's last pass only."""
    if more_passes and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()
