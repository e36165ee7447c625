"""Which image is seen when: functions of (seed, epoch, image id) and nothing else.

So one, two or four workers see the same global batches, and a resumed training goes on at the
very next image without replaying the earlier ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.training.mask_file import Told


def sample_seed(seed: int, epoch: int, image_id: str, purpose: str = "") -> int:
    """The seed of one sample's random choices, 0..2**64 - 1: the same on every machine."""
    text = f"{seed}\x00{epoch}\x00{image_id}\x00{purpose}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def validation_rows(
    manifest_uri: str, split: str, wanted: str, images: int | None, seed: int
) -> list[dict[str, Any]]:
    """The rows of a manifest that a training scores: the same on every worker, every time.

    Args:
        split: the held-out one.
        wanted: the column in which a row must hold something.
        images: at most so many, which the seed chooses; None: all.
    """
    rows = [
        row
        for row in tables.read_table(manifest_uri).to_pylist()
        if row["split"] == split and row[wanted]
    ]
    rows.sort(key=lambda row: sample_seed(seed, 0, row["image_id"], "validation"))
    return rows[:images]


def telling(rows: Sequence[dict[str, Any]], told: Told | None) -> Iterator[dict[str, Any]]:
    """The rows, one after another; tells before each how many are done, and of how many."""
    for done, row in enumerate(rows):
        if told is not None:
            told(done, len(rows))
        yield row


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, images: int) -> NDArray[np.int64]:
    """The order of one epoch: a permutation, read-only int64 [images]."""
    order = np.random.default_rng([seed, epoch]).permutation(images)
    order.setflags(write=False)
    return order


@dataclass(frozen=True)
class BatchPlan:
    """The global batches of a training.

    Step s is batch `s % steps_per_epoch` of epoch `s // steps_per_epoch`. What is left over at an
    epoch's end is dropped, as in the released code; with fewer images than a batch holds, the
    epoch is one batch in which images repeat.

    Args:
        images: number of training images, > 0.
        batch_size: images per step over all workers.
        workers: each takes an equal slice of every batch.
    """

    seed: int
    images: int
    batch_size: int
    workers: int

    @property
    def steps_per_epoch(self) -> int:
        return max(1, self.images // self.batch_size)

    def batch(self, step: int) -> tuple[int, NDArray[np.int64]]:
        """(epoch, image indices int64 [batch_size]) of a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = epoch_order(self.seed, epoch, self.images)
        if self.images < self.batch_size:
            order = np.resize(order, self.batch_size)
        return epoch, order[position * self.batch_size : (position + 1) * self.batch_size]


class StepSampler:
    """A DataLoader batch sampler: the keys of one worker's slice of each step, see `TrainingSet`.

    Args:
        rank: of this worker, 0..workers - 1.
        first, last: steps `first` .. `last - 1` are made.
    """

    def __init__(self, plan: BatchPlan, rank: int, first: int, last: int) -> None:
        self._plan = plan
        self._rank = rank
        self._steps = range(first, last)

    def __len__(self) -> int:
        return len(self._steps)

    def __iter__(self) -> Iterator[Any]:
        share = self._plan.batch_size // self._plan.workers
        for step in self._steps:
            epoch, indices = self._plan.batch(step)
            first = self._rank * share
            mine = enumerate(indices[first : first + share], first)
            # beyond the last image: one of an epoch that is smaller than a batch, again
            yield [(epoch, int(i) + n // self._plan.images * self._plan.images) for n, i in mine]
