"""Windows relabelled by base masks -> the second classifier (multi-crop training, paper 3.5)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

from pmm_ray.config import MulticropConfig, RunConfig
from pmm_ray.config.backbones import Triple
from pmm_ray.method.multicrop import random_window
from pmm_ray.nets.cam_network import present_classes
from pmm_ray.nets.segmenter_source import classifier_source
from pmm_ray.nets.views import crop_windows, cut_windows
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.training.augment import augment
from pmm_ray.runtime.training.loader import Sample, TrainingRow
from pmm_ray.runtime.training.mask_file import MaskFile
from pmm_ray.runtime.training.train import masks_identity, train
from pmm_ray.stages.train_classifier import (
    AnyClassifierTask,
    model_identity,
    validation_of,
)

STAGE = "train_multicrop"
CODE_VERSION = 2
"""Part of the stage's hash: raised by hand when the code gives another result."""


@dataclass(frozen=True)
class WindowSample:
    """A window of one image and what its base mask shows there, as 0/1 float32 [C]."""

    config: MulticropConfig
    num_foreground: int
    statistics: tuple[Triple, Triple]
    masks: MaskFile

    def __call__(self, row: TrainingRow, image_HW3: NDArray[np.uint8], seed: int) -> Sample:
        height, width = image_HW3.shape[:2]
        base_HW = self.masks.mask(row.image_id, (height, width))
        config, crops = self.config, self.config.crops
        rng = np.random.default_rng(seed)
        choices = crop_windows(height, width, crops)
        window, labels = random_window(choices, base_HW, rng, config.relabel_share)
        image_13HW = torch.from_numpy(image_HW3).permute(2, 0, 1)[None]
        (piece,) = cut_windows(image_13HW, [window], crops.geometry, crops.size)
        mean, std = self.statistics
        view_3SS = augment(
            piece[0].permute(1, 2, 0).numpy(),
            rng,
            crop_size=crops.size,
            color_jitter=config.color_jitter,
            mean=mean,
            std=std,
        )
        return torch.from_numpy(view_3SS), present_classes(labels, self.num_foreground)


@dataclass(kw_only=True)
class MulticropTask(AnyClassifierTask[MulticropConfig]):
    """The second classifier's part of a training."""

    def sample(self) -> WindowSample:
        assert self.masks is not None, "prepare comes first"
        return WindowSample(self.config, self.space.num_foreground, self.statistics, self.masks)

    @property
    def crop_size(self) -> int:
        return self.config.crops.size


def run(
    config: MulticropConfig, context: RunContext, folder: StageFolder, *, masks_uri: str
) -> Summary:
    """Train the second classifier on the training split's images that have a base mask.

    Args:
        folder: as for the first classifier, see `train_classifier.run`.
        masks_uri: folder of the base masks.

    Raises:
        CannotRunError, BudgetExceededError: see `train`; also where no image has a mask, or a
            mask holds a value outside the label space.
    """
    validation = validation_of(config, context, config.validation_long)
    task = MulticropTask.of(
        config,
        context,
        folder,
        masks_uri=masks_uri,
        model=classifier_source(config),
        validation=validation,
    )
    return train(task, context, folder)


def stage(
    config: MulticropConfig, recipe: RunConfig, base_masks: StageFolder, name: str = STAGE
) -> Stage:
    """The training of the second classifier on windows relabelled by finished base masks.

    Args:
        recipe: for the seed and the training split.
        base_masks: which know the data set.

    Raises:
        CannotRunError: see `model_identity`.
    """
    # whoever asks for this training has it enabled: a table, or the recipe
    own = (config.model_copy(update={"enabled": True}), *model_identity(config))
    identity = (*own, *masks_identity(recipe, base_masks), CODE_VERSION)
    return Stage(name, identity, partial(run, config, masks_uri=base_masks.uri))
