"""Windows relabelled by base masks -> the second classifier (multi-crop training, paper 3.5)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pmm_ray.config import MulticropConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.method.multicrop import draw_window, windows
from pmm_ray.nets.checkpoints import load_model
from pmm_ray.nets.views import cut_windows
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.core.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.runtime.training.augment import crop_view
from pmm_ray.runtime.training.launch import run_training, summarize, training_job
from pmm_ray.runtime.training.loader import TrainingRow, TrainingSet, training_rows
from pmm_ray.runtime.training.mask_file import MaskFile, build_mask_file, mask_ids
from pmm_ray.stages.train_classifier import ClassifierTask, target_vector, task_fields

CODE_VERSION = 1
"""Part of the stage's hash: raised by hand when the code gives another result."""


class WindowSample:
    """A window of one image and what its base mask shows there, as 0/1 float32 [C].

    Opens the mask file in the process that uses it.
    """

    def __init__(self, config: MulticropConfig, num_foreground: int, masks: Path) -> None:
        self._config = config
        self._num_foreground = num_foreground
        self._path = masks

    def __call__(
        self, row: TrainingRow, image_HW3: NDArray[np.uint8], seed: int
    ) -> tuple[Tensor, Tensor]:
        base_HW = decode_mask(self._masks.png(row.image_id))
        height, width = image_HW3.shape[:2]
        if base_HW.shape != (height, width):
            raise RowError(
                "label", f"the base mask is {base_HW.shape}, the image {(height, width)} (h, w)"
            )
        config, crops = self._config, self._config.crops
        rng = np.random.default_rng(seed)
        choices = windows(
            height,
            width,
            crops.scales,
            geometry=crops.geometry,
            size=crops.size,
            stride=crops.stride,
        )
        window, labels = draw_window(choices, base_HW, rng, config.relabel_share)
        image_13HW = torch.from_numpy(image_HW3).permute(2, 0, 1)[None]
        (piece,) = cut_windows(image_13HW, [window], crops.geometry, crops.size)
        mean, std = config.input_statistics
        view_3SS = crop_view(
            piece[0].permute(1, 2, 0).numpy(),
            rng,
            crop_size=crops.size,
            color_jitter=config.color_jitter,
            mean=mean,
            std=std,
        )
        return torch.from_numpy(view_3SS), target_vector(labels, self._num_foreground)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_config", "_num_foreground", "_path")
        return {name: value for name, value in self.__dict__.items() if name in kept}

    @cached_property
    def _masks(self) -> MaskFile:
        return MaskFile(self._path)


@dataclass
class MulticropTask(ClassifierTask):
    """The second classifier's part of a training."""

    masks_uri: str = ""
    """Folder of the base masks."""
    mask_file: Path | None = field(default=None, init=False)

    def prepare(self, scratch: Path) -> None:
        """Check the base masks and map them once per node."""
        space = LabelSpace.from_json(self.label_space)
        self.mask_file = build_mask_file(self.masks_uri, space, scratch)

    def dataset(self) -> TrainingSet:
        assert isinstance(self.config, MulticropConfig)
        assert self.mask_file is not None, "prepare comes first"
        rows = training_rows(self.manifest_uri, self.split, among=mask_ids(self.masks_uri))
        sample = WindowSample(self.config, self.source.num_foreground, self.mask_file)
        return TrainingSet(rows, self.source, sample, self.seed, self.stage)


def run(
    config: MulticropConfig, context: RunContext, folder: StageFolder, *, masks_uri: str
) -> Summary:
    """Train the second classifier on the training split's images that have a base mask.

    Args:
        config: the section.
        context: of the run.
        folder: as for the first classifier, see `train_classifier.run`.
        masks_uri: folder of the base masks.

    Raises:
        CannotRunError, BudgetExceededError: see `run_training`; also where no image has a mask,
            or a mask holds a value outside the label space.
    """
    split, uri = context.config.data.train_split, context.manifest.uri
    images = training_rows(uri, split, among=mask_ids(masks_uri)).num_rows
    task = MulticropTask(
        **task_fields(config, context, folder), masks_uri=storage.absolute(masks_uri)
    )
    job = training_job(config, context, folder, task, images=images, epochs=config.epochs)
    run_training(job, context, max_failures=config.max_failures)
    _, meta = load_model(job.model_uri, "classifier")
    return summarize(folder, job, meta["training"])
