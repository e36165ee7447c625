"""(ii) Image-level labels -> a classifier whose activation maps become masks (paper 3.5, 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pmm_ray.config import AnyClassifierConfig, ClassifierConfig, RunConfig
from pmm_ray.method.seam_losses import seam_losses, small_view
from pmm_ray.nets.cam_network import CamNetwork
from pmm_ray.nets.checkpoints import load_model, save_model
from pmm_ray.nets.classifier_validation import ClassifierValidation
from pmm_ray.nets.registry import build_classifier
from pmm_ray.nets.weight_files import weights_identity
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.training.augment import augment
from pmm_ray.runtime.training.loader import TrainingRow
from pmm_ray.runtime.training.task import LossModule, TrainingTask
from pmm_ray.runtime.training.train import train

Classifier = TypeVar("Classifier", bound=AnyClassifierConfig)

STAGE = "train_classifier"
CODE_VERSION = 2
"""Part of the stage's hash: raised by hand when the code gives another result."""


@dataclass(frozen=True)
class ClassifierSample:
    """One augmented image and its labels as 0/1 float32 [C]."""

    config: ClassifierConfig
    num_foreground: int

    def __call__(
        self, row: TrainingRow, image_HW3: NDArray[np.uint8], seed: int
    ) -> tuple[Tensor, Tensor]:
        mean, std = self.config.input_statistics
        view_3SS = augment(
            image_HW3,
            np.random.default_rng(seed),
            resize_long=self.config.resize_long,
            crop_size=self.config.crop_size,
            color_jitter=self.config.color_jitter,
            mean=mean,
            std=std,
        )
        return torch.from_numpy(view_3SS), target_vector(row.labels, self.num_foreground)


def target_vector(labels: Sequence[int], num_foreground: int) -> Tensor:
    """Labels 1..C as 0/1 float32 [C]."""
    target_C = torch.zeros(num_foreground)
    target_C[[label - 1 for label in labels]] = 1.0
    return target_C


class ClassifierLoss(LossModule):
    """Multilabel soft margin loss of the image-level logits."""

    def __init__(self, network: CamNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        logits_BC, _ = self.network(inputs)
        return F.multilabel_soft_margin_loss(logits_BC.float(), targets)


class SiameseLoss(LossModule):
    """SEAM's losses of the image and of the same image at 0.3 of its size."""

    def __init__(self, network: CamNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        cam, refined = self.network(inputs, targets)
        small_cam, small_refined = self.network(small_view(inputs), targets)
        return seam_losses(
            cam.float(), refined.float(), small_cam.float(), small_refined.float(), targets
        ).total


@dataclass(kw_only=True)
class AnyClassifierTask(TrainingTask[Classifier]):
    """What the trainings of both classifiers share."""

    def build(self) -> LossModule:
        network = build_classifier(self.config, self.space.num_foreground)
        return SiameseLoss(network) if self.config.kind == "seam" else ClassifierLoss(network)

    def save(self, uri: str, network: nn.Module, training: dict[str, float]) -> None:
        fields = set(ClassifierConfig.model_fields)
        meta = {
            "config": self.config.model_dump(mode="json", include=fields),
            "num_foreground": self.space.num_foreground,
            "label_space": self.space.to_json(),
            "training": training,
        }
        save_model(uri, "classifier", network, meta)

    def trained(self, uri: str) -> dict[str, float]:
        training: dict[str, float] = load_model(uri, "classifier")[1]["training"]
        return training


@dataclass(kw_only=True)
class ClassifierTask(AnyClassifierTask[ClassifierConfig]):
    """The first classifier's part of a training."""

    def sample(self) -> ClassifierSample:
        return ClassifierSample(self.config, self.space.num_foreground)


def validation_of(
    config: AnyClassifierConfig, context: RunContext, long_side: int
) -> ClassifierValidation | None:
    """What is scored after every epoch, if anything.

    Args:
        config: the section.
        context: of the run.
        long_side: of the held-out images, px.
    """
    if not config.validation_images:
        return None
    return ClassifierValidation(
        manifest_uri=context.manifest.uri,
        split=context.config.data.held_out_split,
        photographs=Photographs.of(context),
        images=config.validation_images,
        long_side=long_side,
        seed=context.config.seed,
    )


def run(config: ClassifierConfig, context: RunContext, folder: StageFolder) -> Summary:
    """Train the classifier on the labelled images of the training split.

    Args:
        config: the section.
        context: of the run.
        folder: `model.pt` is written here (see `nets.registry.load_classifier`), and error rows
            of images that had to be substituted.

    Raises:
        CannotRunError, BudgetExceededError: see `train`; also where no image is labelled.
    """
    # the middle of what the network is trained on
    validation = validation_of(config, context, sum(config.resize_long) // 2)
    return train(ClassifierTask.of(config, context, folder, validation=validation), context, folder)


def stage(config: ClassifierConfig, recipe: RunConfig, data: DataSet, name: str = STAGE) -> Stage:
    """The training of a classifier on the labelled images of the training split.

    Args:
        config: the section, or another in its place.
        recipe: for the seed and the training split.
        data: of the run.
        name: of the stage.
    """
    identity = (
        config,
        weights_identity(config.weights, config.backbone),
        recipe.seed,
        data.hash,
        recipe.data.train_split,
        CODE_VERSION,
    )
    return Stage(name, identity, partial(run, config))
