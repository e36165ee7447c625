"""Photographs and confident labels -> a network that knows which neighbours belong together."""

# B: batch; S: side of a crop, px; h, w: feature px.

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pmm_ray.config import AffinityConfig, RunConfig, WalkConfig
from pmm_ray.config.backbones import backbone_row
from pmm_ray.method.affinity import affinity_loss, pair_affinities, pair_labels
from pmm_ray.method.affinity_labels import CELL
from pmm_ray.nets.affinity import KIND, AffinityNetwork, build_affinity
from pmm_ray.nets.checkpoints import load_model, save_model
from pmm_ray.nets.weight_files import weights_identity
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.training.augment import jitter
from pmm_ray.runtime.training.loader import Sample, TrainingRow
from pmm_ray.runtime.training.mask_file import MaskFile
from pmm_ray.runtime.training.task import LossModule, TrainingTask
from pmm_ray.runtime.training.train import masks_identity, train

STAGE = "train_affinity"
CODE_VERSION = 2


@dataclass(frozen=True)
class PairSample:
    """A crop of one image with its labels.

    Attributes:
        config: side of the crop, colour jitter, backbone.
        ignore: label of unknown pixels, and of what is outside the image.
        labels: of the images.
    """

    config: AffinityConfig
    ignore: int
    labels: MaskFile

    def __call__(self, row: TrainingRow, image_HW3: NDArray[np.uint8], seed: int) -> Sample:
        """(float32 [3, S, S], int32 [S, S]): cut at a random place, mirrored or not.

        Source: released code of AffinityNet: crops of the image as it is, jitter, mirror images.
        Here crops begin where cells of the labels do, so that a feature px sees one cell.
        """
        height, width = image_HW3.shape[:2]
        label_HW = self.labels.mask(row.image_id, (height, width))
        size, rng = self.config.crop_size, np.random.default_rng(seed)
        mirrored = rng.random() < 0.5
        rows, top = _window(height, size, rng)
        columns, left = _window(width, size, rng)
        network = backbone_row(self.config.backbone)
        mean, std = (np.array(v, np.float32) for v in (network.input_mean, network.input_std))
        crop: NDArray[Any] = np.ascontiguousarray(image_HW3[rows, columns], np.float32)
        crop = (jitter(crop / np.float32(255), rng, self.config.color_jitter) - mean) / std
        place = (slice(top, top + crop.shape[0]), slice(left, left + crop.shape[1]))
        image_3SS = np.zeros((3, size, size), np.float32)
        image_3SS[:, *place] = crop.transpose(2, 0, 1)
        labels_SS = np.full((size, size), self.ignore, np.int32)
        labels_SS[place] = label_HW[rows, columns]
        if mirrored:
            image_3SS, labels_SS = image_3SS[..., ::-1].copy(), labels_SS[:, ::-1].copy()
        return torch.from_numpy(image_3SS), torch.from_numpy(labels_SS)


def _window(side: int, crop: int, rng: np.random.Generator) -> tuple[slice, int]:
    """(what to cut from an axis, where it goes in the crop); both begin at multiples of CELL."""
    if side >= crop:
        start = CELL * int(rng.integers(0, -(-(side - crop) // CELL) + 1))
        return slice(start, min(side, start + crop)), 0
    return slice(0, side), CELL * int(rng.integers(0, (crop - side) // CELL + 1))


class AffinityLoss(LossModule):
    """Cross entropy of the affinities of neighbouring pixels."""

    def __init__(self, network: AffinityNetwork, radius: int, ignore: int) -> None:
        super().__init__()
        self.network = network
        self._radius = radius
        self._ignore = ignore

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        features = self.network(inputs)
        # ids are whole numbers below 2^24; a feature px has the label at its middle
        labels = F.interpolate(targets[:, None].float(), features.shape[2:], mode="nearest-exact")
        pairs = pair_labels(labels[:, 0].int(), self._radius, self._ignore)
        return affinity_loss(pair_affinities(features, self._radius), pairs)


@dataclass(kw_only=True)
class AffinityTask(TrainingTask[AffinityConfig]):
    """The affinity network's part of a training."""

    def sample(self) -> PairSample:
        assert self.masks is not None, "prepare comes first"
        return PairSample(self.config, self.space.ignore, self.masks)

    def build(self) -> AffinityLoss:
        return AffinityLoss(build_affinity(self.config), self.config.radius, self.space.ignore)

    def save(self, uri: str, network: nn.Module, training: dict[str, float]) -> None:
        meta = {"config": self.config.model_dump(mode="json"), "training": training}
        save_model(uri, KIND, network, meta)

    def trained(self, uri: str) -> dict[str, float]:
        return load_model(uri, KIND)[1]["training"]


def run(
    config: AffinityConfig, context: RunContext, folder: StageFolder, *, labels_uri: str
) -> Summary:
    """Train the affinity network on the training split's images that have labels.

    Args:
        folder: `model.pt` is written here (see `nets.affinity.load_affinity`), and error rows of
            images that had to be substituted.
        labels_uri: folder that `make_affinity_labels` filled.

    Raises:
        CannotRunError, BudgetExceededError: see `train`; also where no image has labels.
    """
    task = AffinityTask.of(config, context, folder, masks_uri=labels_uri)
    return train(task, context, folder)


def stage(recipe: RunConfig, labels: StageFolder) -> Stage:
    """The training of the recipe's affinity network on finished labels."""
    config = recipe.affinity
    # neither the walk, which comes later, nor whether there is one changes the network
    own = config.model_copy(update={"walk": WalkConfig(), "enabled": True})
    weights = weights_identity(config.weights, config.backbone)
    identity = (own, weights, *masks_identity(recipe, labels), CODE_VERSION)
    return Stage(STAGE, identity, partial(run, config, labels_uri=labels.uri))
