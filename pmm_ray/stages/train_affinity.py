"""Photographs and confident labels -> a network that knows which neighbours belong together."""

# B: batch; S: side of a crop, px; h, w: feature px.

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pmm_ray.config import AffinityConfig
from pmm_ray.config.backbones import backbone_row
from pmm_ray.labels import LabelSpace
from pmm_ray.method.affinity import affinity_loss, pair_affinities, pair_labels
from pmm_ray.nets.affinity import KIND, AffinityNetwork, build_affinity
from pmm_ray.nets.checkpoints import load_model, save_model
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.core.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.runtime.training.augment import jitter, window
from pmm_ray.runtime.training.job import LossModule, head_groups, poly
from pmm_ray.runtime.training.launch import run_training, summarize, training_job
from pmm_ray.runtime.training.loader import ImageSource, TrainingRow, TrainingSet, training_rows
from pmm_ray.runtime.training.mask_file import MaskFile, build_mask_file, mask_ids
from pmm_ray.stages.train_classifier import image_source

STAGE = "train_affinity"
CODE_VERSION = 1


class PairSample:
    """A crop of one image with its labels; opens the label file in the process that uses it.

    Args:
        config: side of the crop, colour jitter, backbone.
        ignore: label of unknown pixels, and of what lies outside the image.
        labels: from `build_mask_file`.
    """

    def __init__(self, config: AffinityConfig, ignore: int, labels: Path) -> None:
        self._config = config
        self._ignore = ignore
        self._path = labels

    def __call__(
        self, row: TrainingRow, image_HW3: NDArray[np.uint8], seed: int
    ) -> tuple[Tensor, Tensor]:
        """(float32 [3, S, S], int32 [S, S]): mirrored or not, cut at a random place.

        Source: released code of AffinityNet: crops of the image as it is, jitter, mirror images.
        """
        label_HW = decode_mask(self._labels.png(row.image_id))
        if label_HW.shape != image_HW3.shape[:2]:
            raise RowError(
                "label", f"the labels are {label_HW.shape}, the image {image_HW3.shape[:2]} (h, w)"
            )
        size, rng = self._config.crop_size, np.random.default_rng(seed)
        if rng.random() < 0.5:
            image_HW3, label_HW = image_HW3[:, ::-1], label_HW[:, ::-1]
        rows, top = window(label_HW.shape[0], size, rng)
        columns, left = window(label_HW.shape[1], size, rng)
        backbone = backbone_row(self._config.backbone)
        mean, std = (np.array(v, np.float32) for v in (backbone.input_mean, backbone.input_std))
        crop: NDArray[Any] = np.ascontiguousarray(image_HW3[rows, columns], np.float32)
        crop = (jitter(crop / np.float32(255), rng, self._config.color_jitter) - mean) / std
        place = (slice(top, top + crop.shape[0]), slice(left, left + crop.shape[1]))
        image_3SS = np.zeros((3, size, size), np.float32)
        image_3SS[:, *place] = crop.transpose(2, 0, 1)
        labels_SS = np.full((size, size), self._ignore, np.int32)
        labels_SS[place] = label_HW[rows, columns]
        return torch.from_numpy(image_3SS), torch.from_numpy(labels_SS)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_config", "_ignore", "_path")
        return {name: value for name, value in self.__dict__.items() if name in kept}

    @cached_property
    def _labels(self) -> MaskFile:
        return MaskFile(self._path)


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


@dataclass
class AffinityTask:
    """The affinity network's part of a training."""

    config: AffinityConfig
    stage: str
    seed: int
    split: str
    manifest_uri: str
    labels_uri: str
    """Folder of the labels, a masks table."""
    source: ImageSource
    label_space: str
    """JSON text."""
    label_file: Path | None = field(default=None, init=False)

    @property
    def space(self) -> LabelSpace:
        return LabelSpace.from_json(self.label_space)

    def prepare(self, scratch: Path) -> None:
        """Check the labels and map them once per node."""
        self.label_file = build_mask_file(self.labels_uri, self.space, scratch)

    def dataset(self) -> TrainingSet:
        assert self.label_file is not None, "prepare comes first"
        rows = training_rows(self.manifest_uri, self.split, among=mask_ids(self.labels_uri))
        sample = PairSample(self.config, self.space.ignore, self.label_file)
        return TrainingSet(rows, self.source, sample, self.seed, self.stage)

    def build(self) -> AffinityLoss:
        return AffinityLoss(build_affinity(self.config), self.config.radius, self.space.ignore)

    def parameter_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Backbone x 1, heads x `head_multiplier`, see `head_groups`."""
        return head_groups(
            network,
            AffinityNetwork.head_layers,
            weight_decay=self.config.weight_decay,
            multiplier=self.config.head_multiplier,
        )

    def learning_rate(self, step: int, steps: int) -> float:
        return poly(step, steps, self.config.learning_rate, 0.0, self.config.poly_power)

    def save(self, uri: str, network: nn.Module, training: dict[str, float]) -> None:
        meta = {"config": self.config.model_dump(mode="json"), "training": training}
        save_model(uri, KIND, network, meta)


def run(
    config: AffinityConfig, context: RunContext, folder: StageFolder, *, labels_uri: str
) -> Summary:
    """Train the affinity network on the training split's images that have labels.

    Args:
        config: the section.
        context: of the run.
        folder: `model.pt` is written here (see `nets.affinity.load_affinity`), and error rows of
            images that had to be substituted.
        labels_uri: folder that `make_affinity_labels` filled.

    Raises:
        CannotRunError, BudgetExceededError: see `run_training`; also where no image has labels.
    """
    data, manifest = context.config.data, context.manifest
    images = training_rows(manifest.uri, data.train_split, among=mask_ids(labels_uri)).num_rows
    task = AffinityTask(
        config=config,
        stage=folder.stage,
        seed=context.seed,
        split=data.train_split,
        manifest_uri=manifest.uri,
        labels_uri=storage.absolute(labels_uri),
        source=image_source(manifest, data.max_pixels),
        label_space=manifest.label_space.to_json(),
    )
    job = training_job(config, context, folder, task, images=images, epochs=config.epochs)
    run_training(job, context, max_failures=config.max_failures)
    _, meta = load_model(job.model_uri, KIND)
    return summarize(folder, job, meta["training"])
