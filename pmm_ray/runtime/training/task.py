"""What a stage trains: the part that all trainings share, and what each adds."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar, cast

import pyarrow as pa
import torch
from torch import Tensor, nn

from pmm_ray.config import TrainingConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.nets.weight_files import worker_files
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.training.loader import SampleFunction, TrainingSet, training_rows
from pmm_ray.runtime.training.mask_file import MaskFile, Told, build_mask_file, mask_index

if TYPE_CHECKING:
    from pmm_ray.runtime.core.stage import RunContext, StageFolder

Config = TypeVar("Config", bound=TrainingConfig)


class LossModule(nn.Module, ABC):
    """A network with its loss: the unit that workers train together."""

    network: nn.Module

    @abstractmethod
    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """The scalar loss of one worker's share of a batch, a mean over its images."""

    def watched(self) -> dict[str, Tensor]:
        """What is worth watching beside the loss: scalars of the last pass, means over its images.

        The same names after every pass, on every worker.
        """
        return {}


class Validation(Protocol):
    """Scores a network on held-out images while it is trained."""

    def measure(
        self, network: Any, device: torch.device, rank: int, world: int, told: Told | None = None
    ) -> Any:
        """One worker's share of the measurement; small, it is sent to the first worker.

        Args:
            told: called before each image with how many of the share are done and its size: a
                scoring may take longer than a step ever does.
        """

    def metrics(self, shares: list[Any]) -> dict[str, float]:
        """The numbers by name, from every worker's share; may be empty."""


@dataclass(kw_only=True)
class TrainingTask(ABC, Generic[Config]):
    """What a stage trains. Pickled to the workers: plain values only, files opened there."""

    config: Config
    """The stage's section, its files as every worker can open them: see `worker_files`."""
    stage: str
    """Name with its round, for events and error rows."""
    seed: int
    split: str
    manifest_uri: str
    photographs: Photographs
    """How images are read, and their label space."""
    masks_uri: str | None = None
    """Folder of the masks table that is learnt from; None: image-level labels alone."""
    validation: Validation | None = None
    masks: MaskFile | None = field(default=None, init=False)

    @classmethod
    def of(
        cls,
        config: Config,
        context: RunContext,
        folder: StageFolder,
        *,
        masks_uri: str | None = None,
        **own: Any,
    ) -> Self:
        """The task of a stage.

        Args:
            masks_uri: folder of the masks that are learnt from, if any.
            own: the other fields.

        Raises:
            CannotRunError: see `worker_files`.
        """
        return cls(
            config=config.model_copy(update=worker_files(config)),
            stage=folder.stage,
            seed=context.config.seed,
            split=context.config.data.train_split,
            manifest_uri=context.manifest.uri,
            photographs=Photographs.of(context),
            masks_uri=None if masks_uri is None else storage.absolute(masks_uri),
            **own,
        )

    @property
    def space(self) -> LabelSpace:
        return self.photographs.label_space

    def rows(self) -> pa.Table:
        """The images to train on, see `training_rows`.

        Raises:
            CannotRunError: the folder of masks holds none.
        """
        if self.masks_uri is None:
            return training_rows(self.manifest_uri, self.split, labelled=True)
        among = mask_index(self.masks_uri).image_ids
        return training_rows(self.manifest_uri, self.split, among=among)

    def check(self) -> None:
        """Find out on the driver, before workers are asked for, what cannot be trained.

        Raises:
            CannotRunError: with the reason.
        """

    @property
    def notice(self) -> str | None:
        """The message to the user when the training begins."""
        return None

    def prepare(self, scratch: Path, told: Told | None = None) -> None:
        """Make what this node's loader needs, once for all its workers.

        Args:
            scratch: folder on this node's disk.
            told: is called with what is done, and how much there is.

        Raises:
            CannotRunError: the data cannot be trained on.
        """
        if self.masks_uri is not None:
            self.masks = build_mask_file(self.masks_uri, self.space, scratch, told)

    def dataset(self) -> TrainingSet:
        """The samples, after `prepare`."""
        return TrainingSet(self.rows(), self.photographs, self.sample(), self.seed, self.stage)

    @abstractmethod
    def sample(self) -> SampleFunction:
        """What makes the training sample of an image, after `prepare`."""

    @abstractmethod
    def build(self) -> LossModule:
        """The network and its loss; torch's generator is seeded alike on every worker."""

    def parameter_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Groups of the optimiser: `params`, `rate` (times the learning rate), `weight_decay`."""
        return head_groups(
            network,
            cast("Sequence[str]", network.head_layers),
            weight_decay=self.config.weight_decay,
            multiplier=self.config.head_multiplier,
        )

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of these groups; the learning rate is set at every step."""
        groups = self.parameter_groups(network)
        # one kernel, which can leave an update out by itself
        fused = any(p.is_cuda for group in groups for p in group["params"]) or None
        if self.config.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=0.0, fused=fused)
        return torch.optim.SGD(groups, lr=0.0, momentum=self.config.momentum, fused=fused)

    @property
    def last_rate(self) -> float:
        """Where the learning rate ends."""
        return 0.0

    def learning_rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, 0-based."""
        config = self.config
        rising = round(config.warmup * steps)
        if step < rising:
            return config.learning_rate * (step + 1) / (rising + 1)
        power = None if config.schedule == "cosine" else config.poly_power
        step, steps = step - rising, steps - rising
        return decayed(step, steps, config.learning_rate, self.last_rate, power)

    def validates(self, step: int, steps: int, steps_per_epoch: int) -> bool:
        """Whether held-out images are scored after a step, 1-based."""
        return step % steps_per_epoch == 0

    @property
    def choose_by(self) -> str | None:
        """The weights with this metric's greatest value are kept; None, or not measured: the
        last."""
        return None

    @abstractmethod
    def save(self, uri: str, network: nn.Module, training: dict[str, float]) -> None:
        """Write the trained network, and what is known of its training."""

    def save_untrained(self, uri: str) -> None:
        """Write the network as it begins, where no step is asked for."""
        torch.manual_seed(self.seed)
        zero = dict.fromkeys(("seconds", "images_per_second", "loader_wait", "skipped"), 0.0)
        self.save(uri, self.build().network, zero)

    @abstractmethod
    def trained(self, uri: str) -> dict[str, float]:
        """What `save` got about the training."""


def head_groups(
    network: nn.Module, heads: Sequence[str], *, weight_decay: float, multiplier: float
) -> list[dict[str, Any]]:
    """SGD groups: backbone x 1, heads x `multiplier`; weight decay on weights, not on norms.

    Args:
        network: only what requires a gradient is trained.
        heads: names of the layers that start from random values.
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


def decayed(step: int, steps: int, first: float, last: float, power: float | None) -> float:
    """The learning rate of a step, from `first` down towards `last`.

    With a power `(first - last) * (1 - step / steps) ** power + last` (released code;
    mmsegmentation), without one half a cosine.
    """
    left = 1 - step / steps
    share = (1 - math.cos(math.pi * left)) / 2 if power is None else left**power
    return (first - last) * share + last
