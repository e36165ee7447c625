"""(v) Pseudo-masks -> a fresh segmenter; under-fitting is pretended in round 0 only (paper 3.4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pmm_ray.config import SegmenterConfig, UnderfittingConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.nets.checkpoints import load_model, save_model
from pmm_ray.runtime import storage
from pmm_ray.runtime.errors import CannotRunError, RowError
from pmm_ray.runtime.images import decode_mask
from pmm_ray.runtime.loader import ImageSource, TrainingRow, TrainingSet, training_rows
from pmm_ray.runtime.mask_file import MaskFile, build_mask_file, mask_ids
from pmm_ray.runtime.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.training import run_training, summarize, training_job
from pmm_ray.runtime.training_job import LossModule, poly
from pmm_ray.stages.train_classifier import image_source

CODE_VERSION = 1
"""Part of the stage's hash: raised by hand when the code gives another result."""


class SegmenterSample:
    """One augmented image with its mask; opens the mask file in the process that uses it."""

    def __init__(self, config: SegmenterConfig, ignore: int, masks: Path) -> None:
        self._config = config
        self._ignore = ignore
        self._path = masks

    def __call__(
        self, row: TrainingRow, image_HW3: NDArray[np.uint8], seed: int
    ) -> tuple[Tensor, Tensor]:
        mask_HW = decode_mask(self._masks.png(row.image_id))
        if mask_HW.shape != image_HW3.shape[:2]:
            raise RowError(
                "label", f"the mask is {mask_HW.shape} and the image {image_HW3.shape[:2]} (h, w)"
            )
        inputs, target = self._transform(image_HW3, mask_HW, seed % 2**32)
        return inputs, target

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_config", "_ignore", "_path")
        return {name: value for name, value in self.__dict__.items() if name in kept}

    @cached_property
    def _masks(self) -> MaskFile:
        return MaskFile(self._path)

    @cached_property
    def _transform(self) -> Any:
        from pmm_ray.nets.segmenter import training_transform

        return training_transform(self._config, self._ignore)


class SegmenterLoss(LossModule):
    """The sum of the heads' losses."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        from pmm_ray.nets.segmenter import forward_loss

        losses = forward_loss(self.network, inputs, targets)
        total: Tensor = sum(
            (value for name, value in losses.items() if "loss" in name), inputs.new_zeros(())
        )
        return total


@dataclass
class SegmenterTask:
    """The segmenter's part of a training."""

    config: SegmenterConfig
    stage: str
    round: int
    seed: int
    split: str
    manifest_uri: str
    masks_uri: str
    source: ImageSource
    label_space: str
    """JSON text; kept with the network."""
    mask_file: Path | None = field(default=None, init=False)

    def prepare(self, scratch: Path) -> None:
        """Check the masks and map them once per node."""
        space = LabelSpace.from_json(self.label_space)
        self.mask_file = build_mask_file(self.masks_uri, space, scratch)

    def dataset(self) -> TrainingSet:
        assert self.mask_file is not None, "prepare comes first"
        rows = training_rows(self.manifest_uri, self.split, among=mask_ids(self.masks_uri))
        ignore = LabelSpace.from_json(self.label_space).ignore
        sample = SegmenterSample(self.config, ignore, self.mask_file)
        return TrainingSet(rows, self.source, sample, self.seed, self.stage)

    def build(self) -> SegmenterLoss:
        from pmm_ray.nets.segmenter import build_segmenter

        space = LabelSpace.from_json(self.label_space)
        network = build_segmenter(
            self.config,
            space.num_classes,
            space.ignore,
            underfitting=round_underfitting(self.config, self.round),
        )
        return SegmenterLoss(network)

    def parameter_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Backbone x 1, heads x `head_multiplier`; weight decay on all (released code)."""
        backbone: list[nn.Parameter] = []
        heads: list[nn.Parameter] = []
        for name, parameter in network.named_parameters():
            if not parameter.requires_grad:
                continue
            (backbone if name.startswith("backbone.") else heads).append(parameter)
        decay = self.config.weight_decay
        return [
            {"params": backbone, "rate": 1.0, "weight_decay": decay},
            {"params": heads, "rate": self.config.head_multiplier, "weight_decay": decay},
        ]

    def learning_rate(self, step: int, steps: int) -> float:
        config = self.config
        floor = min(config.min_learning_rate, config.learning_rate)
        return poly(step, steps, config.learning_rate, floor, config.poly_power)

    def save(self, uri: str, network: nn.Module, training: dict[str, float]) -> None:
        space = LabelSpace.from_json(self.label_space)
        meta = {
            "config": self.config.model_dump(mode="json"),
            "num_classes": space.num_classes,
            "ignore_index": space.ignore,
            "label_space": self.label_space,
            "round": self.round,
            "training": training,
        }
        save_model(uri, "segmenter", network, meta)


def round_underfitting(config: SegmenterConfig, round: int) -> UnderfittingConfig:
    """Under-fitting is pretended in round 0; later rounds use plain cross entropy (paper 4.1)."""
    return config.underfitting if round == 0 else UnderfittingConfig(kind="none")


def run(
    config: SegmenterConfig,
    context: RunContext,
    folder: StageFolder,
    *,
    masks_uri: str,
    round: int,
) -> Summary:
    """Train a fresh segmenter on the training split's images that have a mask.

    Args:
        config: the section.
        context: of the run.
        folder: `model.pt` is written here (see `nets.segmenter.load_segmenter`), and error rows
            of images that had to be substituted.
        masks_uri: folder of a masks table.
        round: 0 for the first masks, then the number of the cycle.

    Raises:
        CannotRunError, BudgetExceededError: see `run_training`; also where no image has a mask,
            or a mask holds a value outside the label space.
    """
    data = context.config.data
    manifest = context.manifest
    ids = mask_ids(masks_uri)
    images = training_rows(manifest.uri, data.train_split, among=ids).num_rows
    task = SegmenterTask(
        config=config,
        stage=folder.stage,
        round=round,
        seed=context.seed,
        split=data.train_split,
        manifest_uri=manifest.uri,
        masks_uri=storage.absolute(masks_uri),
        source=image_source(manifest, data.max_pixels),
        label_space=manifest.label_space.to_json(),
    )
    job = training_job(config, context, folder, task, images=images, steps=config.iterations)
    if job.batch_size // job.workers < 2:
        raise CannotRunError(
            f"segmenter.batch_size {job.batch_size} leaves {job.workers} workers one image each: "
            "BatchNorm needs two; raise segmenter.batch_size or lower segmenter.workers"
        )
    run_training(job, context, max_failures=config.max_failures)
    _, meta = load_model(job.model_uri, "segmenter")
    return summarize(folder, job, meta["training"])
