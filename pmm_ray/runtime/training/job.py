"""What a training is: the part that stages define, and the part that is the same for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pmm_ray.runtime.training.loader import TrainingSet


class LossModule(nn.Module):
    """A network with its loss: the unit that workers train together."""

    network: nn.Module

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The scalar loss of one worker's share of a batch, a mean over its images."""
        raise NotImplementedError

    def watched(self) -> dict[str, Tensor]:
        """What is worth watching beside the loss: scalars of the last pass, means over its images.

        The same names after every pass, on every worker.
        """
        return {}


class TrainingTask(Protocol):
    """What a stage trains. Pickled to the workers: plain values only, files opened there."""

    def prepare(self, scratch: Path) -> None:
        """Make what this node's loader needs, once for all its workers.

        Raises:
            CannotRunError: the data cannot be trained on.
        """

    def dataset(self) -> TrainingSet:
        """The samples, after `prepare`."""

    def build(self) -> LossModule:
        """The network and its loss; torch's generator is seeded alike on every worker."""

    def parameter_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Groups of the optimiser: `params`, `rate` (times the learning rate), `weight_decay`."""

    def learning_rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, 0-based."""

    def save(self, uri: str, network: nn.Module, training: dict[str, float]) -> None:
        """Write the trained network."""


@runtime_checkable
class Validated(Protocol):
    """A task whose network is also scored on held-out images while it is trained."""

    def measure(self, network: nn.Module, device: torch.device, rank: int, world: int) -> Any:
        """One worker's share of the measurement; small, it is sent to the first worker."""

    def metrics(self, shares: list[Any]) -> dict[str, float]:
        """The numbers by name, from every worker's share; may be empty."""


@dataclass(frozen=True)
class TrainingJob:
    """A whole training, as the driver hands it to every worker."""

    stage: str
    """Name with its round, for events and error rows."""
    task: TrainingTask
    run_dir: str
    model_uri: str
    """The trained network's file."""
    checkpoints_uri: str
    """Folder of the intermediate checkpoints."""
    errors_uri: str
    error_budget: int
    fingerprint: str
    """Checkpoints of another one are not resumed from."""
    seed: int
    images: int
    """Images of the training split."""
    steps: int
    batch_size: int
    momentum: float
    amp: bool
    """bfloat16 autocast, on GPUs only."""
    workers: int
    threads: int
    """Torch threads of a worker."""
    loader_processes: int
    checkpoint_seconds: float
    scratch: Path
    accumulate: int = 1
    """Forward and backward passes per step; each takes an equal part of a worker's share."""
    clip_norm: float | None = None
    """Gradients are scaled down to this norm."""
    channels_last: bool = False
    """Memory layout of images and features."""
    compile: bool = False
    """Compile the network with its loss."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    validate_every: int | None = None
    """Held-out images are scored every so many steps and after the last; None: every epoch."""
    choose_by: str | None = None
    """The weights with this metric's greatest value are kept; None, or not measured: the last."""

    def validates(self, step: int, steps_per_epoch: int) -> bool:
        """Whether held-out images are scored after a step, 1-based."""
        if self.validate_every is None:
            return step % steps_per_epoch == 0
        return step % self.validate_every == 0 or step == self.steps


def head_groups(
    network: nn.Module, heads: Sequence[str], *, weight_decay: float, multiplier: float
) -> list[dict[str, Any]]:
    """SGD groups: backbone x 1, heads x `multiplier`; weight decay on weights, not on norms.

    Args:
        network: only what requires a gradient is trained.
        heads: names of the layers that start from random values.
        weight_decay: L2 penalty.
        multiplier: the heads' learning rate over the backbone's.

    Source: released code (its two further groups, for biases, are empty).
    """
    names = tuple(f"{layer}." for layer in heads)
    trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
    head = {n: p for n, p in trained.items() if n.startswith(names)}
    weights = [p for n, p in trained.items() if n not in head and p.ndim > 1]
    others = [p for n, p in trained.items() if n not in head and p.ndim <= 1]
    groups = [
        {"params": weights, "rate": 1.0, "weight_decay": weight_decay},
        {"params": others, "rate": 1.0, "weight_decay": 0.0},
        {"params": list(head.values()), "rate": multiplier, "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]


def poly(step: int, steps: int, first: float, last: float, power: float) -> float:
    """`(first - last) * (1 - step / steps) ** power + last` (released code; mmsegmentation)."""
    return (first - last) * (1 - step / steps) ** power + last
