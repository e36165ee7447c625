"""Training samples: decoded where they are needed, seeded by image, bad images substituted.

Legend: B = images of one worker's share of a batch.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pmm_ray.runtime.cluster.connect import one_thread
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import (
    CannotRunError,
    ErrorRow,
    MayPassError,
    RowError,
    system_failure,
)
from pmm_ray.runtime.rows.images import read_image
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.training.sampling import BatchPlan, StepSampler, sample_seed

# so many substitutes in a row that cannot be read mean that the data set is broken
_ATTEMPTS = 20


class TrainingRow(NamedTuple):
    """A row of the manifest, as far as training needs it."""

    image_id: str
    uri: str
    labels: tuple[int, ...]


Sample = tuple[Tensor, Tensor]
"""Input and target of one image."""


class SampleFunction(Protocol):
    """Makes a training sample; pickled into loader processes, so it opens files lazily."""

    def __call__(self, row: TrainingRow, image_HW3: NDArray[np.uint8], seed: int) -> Sample:
        """(input, target) of one image; all randomness comes from `seed` (0..2**64 - 1).

        Raises:
            RowError: the row cannot be used.
        """


class Batch(NamedTuple):
    """One worker's share of a step."""

    images: Tensor
    targets: Tensor
    errors: tuple[ErrorRow, ...]
    """Images that could not be used; the batch holds a substitute for each."""


def training_rows(
    manifest_uri: str,
    split: str,
    *,
    labelled: bool = False,
    among: Sequence[str] | None = None,
) -> pa.Table:
    """The rows to train on, ordered by id: the manifest's own order carries no meaning.

    Args:
        labelled: leave out images without labels.
        among: rows with these ids only.

    Returns:
        A table with columns image_id, uri, labels.
    """
    table = tables.read_table(manifest_uri, ["image_id", "uri", "labels", "split"])
    keep = pc.equal(table.column("split"), split)
    if labelled:
        keep = pc.and_(keep, pc.greater(pc.list_value_length(table.column("labels")), 0))
    table = table.filter(keep)
    if among is not None:
        ids = pa.array(list(among), pa.string())
        table = table.filter(pc.is_in(table.column("image_id"), value_set=ids))
    return table.select(["image_id", "uri", "labels"]).sort_by("image_id").combine_chunks()


def with_repeats(rows: pa.Table, below: float) -> pa.Table:
    """The rows with those of rare classes more than once.

    Args:
        rows: from `training_rows`.
        below: classes that less than this share of the images has are rare.

    An image is there round(max over its classes of sqrt(below / share)) times, at least once.
    Source: repeat factor sampling (Gupta et al., LVIS, 2019), rounded instead of by chance.
    """
    labels = rows.column("labels").to_pylist()
    count = Counter(label for of_image in labels for label in set(of_image or ()))
    factor = {label: math.sqrt(below * len(labels) / n) for label, n in count.items()}
    times = [max(1, *(round(factor[label]) for label in of_image or ()), 1) for of_image in labels]
    return rows.take(pa.array(np.repeat(np.arange(len(labels)), times)))


class TrainingSet(Dataset[tuple[Tensor, Tensor, list[ErrorRow]]]):
    """Samples by key (epoch, index): a pure function of the key, the rows and the seed.

    An image that comes several times in an epoch looks different each time: as one of several equal
    rows (`with_repeats`), or by an index of so many more than there are rows.

    Args:
        rows: from `training_rows`.
        photographs: how images are found and decoded, and which labels there are.
        sample: makes the input and the target of one image.
    """

    def __init__(
        self,
        rows: pa.Table,
        photographs: Photographs,
        sample: SampleFunction,
        seed: int,
        stage: str,
    ) -> None:
        self._rows = rows
        self._photographs = photographs
        self._sample = sample
        self._seed = seed
        self._stage = stage

    def __len__(self) -> int:
        return int(self._rows.num_rows)

    def row(self, index: int) -> TrainingRow:
        """The row at a position of the table."""
        values = self._rows.slice(index, 1).to_pylist()[0]
        return TrainingRow(values["image_id"], values["uri"], tuple(values["labels"] or ()))

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, list[ErrorRow]]:
        """(input, target, errors): its seed chooses another image in place of a bad one.

        Raises:
            CannotRunError: twenty images in a row cannot be used, or a store or a disk fails.
        """
        epoch, index = key
        again, index = divmod(index, len(self))
        first = self.row(index).image_id
        while index and self.row(index - 1).image_id == first:
            again, index = again + 1, index - 1
        turn = f"again {again}" if again else ""
        errors: list[ErrorRow] = []
        for attempt in range(_ATTEMPTS):
            row = self.row(index)
            try:
                image, target = self._load(row, sample_seed(self._seed, epoch, row.image_id, turn))
            except RowError as error:
                errors.append(
                    ErrorRow(row.image_id, self._stage, error.kind, error.message, row.uri)
                )
                purpose = f"substitute {attempt}"
                index = sample_seed(self._seed, epoch, first, purpose) % len(self)
            else:
                return image, target, errors
        raise CannotRunError(
            f"{self._stage}: {_ATTEMPTS} images in a row cannot be used; the first is "
            f"{first}: {errors[0].kind}: {errors[0].message} ({errors[0].uri})"
        )

    def _load(self, row: TrainingRow, seed: int) -> tuple[Tensor, Tensor]:
        source = self._photographs
        source.check_labels(row.labels)
        try:
            uri = storage.anchor(row.uri, source.root)
            image_HW3 = read_image(uri, apply_exif=source.apply_exif, max_pixels=source.max_pixels)
            return self._sample(row, image_HW3, seed)
        except (RowError, CannotRunError):
            raise
        # one image never ends a training: the error budget does, with the reasons
        except Exception as error:
            if text := system_failure(error):
                raise MayPassError(text) from error
            raise RowError("internal", f"{type(error).__name__}: {error}", row.uri) from error


def _collate(samples: list[tuple[Tensor, Tensor, list[ErrorRow]]]) -> Batch:
    images, targets, errors = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.stack(targets), tuple(e for es in errors for e in es))


def _start_process(_: int) -> None:
    one_thread()
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_worker, name="worker", daemon=True).start()


def _end_with_worker() -> None:
    """End this decoding process as soon as the worker that it decodes for is gone.

    torch waits for the parent to end: here the fork server, which ends after what it has started.
    """
    worker = multiprocessing.parent_process()
    assert worker is not None
    worker.join()
    os._exit(1)


def batches(
    dataset: TrainingSet,
    plan: BatchPlan,
    rank: int,
    *,
    first: int,
    last: int,
    processes: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """This worker's shares of steps `first` .. `last - 1`, in order.

    Args:
        processes: decoding processes; 0 decodes in this one. They are started by a fork server,
            never forked from this process, whose threads would leave their locks behind.
        pin_memory: put batches into page-locked memory, for GPUs.

    Raises:
        CannotRunError: the images cannot be trained on.
    """
    context: Any = multiprocessing.get_context("forkserver") if processes else None
    loader = DataLoader(
        dataset,
        batch_sampler=StepSampler(plan, rank, first, last),
        num_workers=processes,
        collate_fn=_collate,
        multiprocessing_context=context,
        worker_init_fn=_start_process,
        pin_memory=pin_memory,
    )
    try:
        yield from loader
    except CannotRunError as error:
        # from a decoding process it comes wrapped into that process's traceback
        kind = type(error)
        raise kind(str(error).rsplit(f"{kind.__name__}: ", 1)[-1].strip()) from error
