"""One module on every worker: its gradients are averaged over all of them."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pmm_ray.config import TrainingConfig


def distributed(
    module: nn.Module, config: TrainingConfig, world: int, device: torch.device
) -> nn.Module:
    """The module whose gradients are averaged over `world` workers."""
    if world > 1 and device.type == "cuda":
        # a frozen norm has nothing to share, and stays what its network holds on to
        if any(isinstance(m, nn.BatchNorm2d) and m.training for m in module.modules()):
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        module = DistributedDataParallel(module, device_ids=[device])
    elif world > 1:
        module = DistributedDataParallel(module)
    if config.compile:
        module.compile()
    return module


def gradients_stay(module: nn.Module, more_passes: bool) -> contextlib.AbstractContextManager[Any]:
    """Gradients are exchanged between workers at a step's last pass only."""
    if more_passes and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return contextlib.nullcontext()
