"""The losses of a training: on the device until they are read, a few steps at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.training.log import log_every

# a training whose loss is not finite so many times in a row will not recover
_MAX_NOT_FINITE = 10


def step_if(finite: Tensor, optimizer: torch.optim.Optimizer, *, wait: bool) -> None:
    """Update the weights, but not where a loss is not finite.

    Args:
        finite: bool scalar.
        wait: for the device to tell; else the optimiser's kernel, a fused one, leaves it out.
    """
    # the first update makes the optimiser's state, and must not be left out by a kernel
    if wait or not optimizer.state:
        if not finite:
            return
    else:
        optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()


class Unread(NamedTuple):
    """A step whose loss is still on the device."""

    step: int
    rate: float
    waited: float
    sums: Tensor
    """Of the loss and of what is watched, over all workers, float32 [1 + what is watched]."""


class Readings:
    """What is known of the losses.

    Args:
        world: how many workers the sums are over.
        every: steps from one reading to the next: each makes the CPU wait for the device.
        told: hears of each step that was read, with its loss and what is watched.
    """

    def __init__(
        self,
        stage: str,
        steps: int,
        world: int,
        every: int,
        told: Callable[[Unread, float, Mapping[str, float]], None],
    ) -> None:
        self._stage = stage
        self._steps = steps
        self._world = world
        self._told = told
        self.every = every
        self.unread: list[Unread] = []
        self.loss = math.nan
        """The last finite one."""
        self.skipped = 0
        """Steps whose loss was not finite."""
        self._in_a_row = 0
        self.watched: dict[str, float] = {}
        """Sums over the steps so far."""

    def due(self, done: int) -> bool:
        """Whether losses are read after so many steps."""
        every, point = self.every, log_every(self._steps)
        return done == self._steps or not done % every or not done % point

    def read(self, names: Iterable[str]) -> CannotRunError | None:
        """Wait for the device and note the losses since the last time.

        Args:
            names: of what is watched.

        Returns:
            Why the training ends: too many were not finite.
        """
        unread, self.unread = self.unread, []
        values = torch.stack([each.sums for each in unread]).tolist()
        for each, sums in zip(unread, values, strict=True):
            loss, *others = (value / self._world for value in sums)
            watched = dict(zip(names, others, strict=True))
            for name, value in watched.items():
                self.watched[name] = self.watched.get(name, 0.0) + value
            if math.isfinite(loss):
                self.loss, self._in_a_row = loss, 0
            else:
                self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
            if self._in_a_row >= _MAX_NOT_FINITE:
                return CannotRunError(
                    f"{self._stage}: the loss was not finite for {self._in_a_row} steps up to "
                    f"step {each.step}: lower the learning rate"
                )
            self._told(each, loss, watched)
        return None
