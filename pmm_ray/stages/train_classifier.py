"""(ii) Image-level labels -> a classifier whose activation maps become masks (paper 3.5, 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pmm_ray.config import ClassifierConfig
from pmm_ray.method.seam_losses import seam_losses, small_view
from pmm_ray.nets.cam_network import CamNetwork
from pmm_ray.nets.checkpoints import load_model, save_model
from pmm_ray.nets.classifier_validation import Share, Validation
from pmm_ray.nets.registry import build_classifier
from pmm_ray.runtime.core.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.training.augment import augment
from pmm_ray.runtime.training.job import LossModule, head_groups, poly
from pmm_ray.runtime.training.launch import run_training, summarize, training_job
from pmm_ray.runtime.training.loader import ImageSource, TrainingRow, TrainingSet, training_rows

if TYPE_CHECKING:
    from pmm_ray.runtime.core.manifest import Manifest

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


@dataclass
class ClassifierTask:
    """The classifier's part of a training."""

    config: ClassifierConfig
    stage: str
    seed: int
    split: str
    manifest_uri: str
    source: ImageSource
    label_space: str
    """JSON text; kept with the network."""
    validation: Validation | None = None

    def prepare(self, scratch: Path) -> None:
        """Nothing to make: images are read from where they are."""

    def dataset(self) -> TrainingSet:
        rows = training_rows(self.manifest_uri, self.split, labelled=True)
        sample = ClassifierSample(self.config, self.source.num_foreground)
        return TrainingSet(rows, self.source, sample, self.seed, self.stage)

    def build(self) -> LossModule:
        network = build_classifier(self.config, self.source.num_foreground)
        return SiameseLoss(network) if self.config.kind == "seam" else ClassifierLoss(network)

    def parameter_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Backbone x 1, head layers x `head_multiplier`, see `head_groups`."""
        assert isinstance(network, CamNetwork)
        return head_groups(
            network,
            network.head_layers,
            weight_decay=self.config.weight_decay,
            multiplier=self.config.head_multiplier,
        )

    def learning_rate(self, step: int, steps: int) -> float:
        return poly(step, steps, self.config.learning_rate, 0.0, self.config.poly_power)

    def measure(self, network: nn.Module, device: torch.device, rank: int, world: int) -> Share:
        """This worker's share of the held-out images."""
        assert isinstance(network, CamNetwork)
        if self.validation is None:
            return Share()
        return self.validation.measure(network, device, rank, world)

    def metrics(self, shares: list[Share]) -> dict[str, float]:
        """Mean average precision and CAM mIoU of all shares."""
        return {} if self.validation is None else self.validation.metrics(shares)

    def save(self, uri: str, network: nn.Module, training: dict[str, float]) -> None:
        meta = {
            "config": self.config.model_dump(
                mode="json", include=set(ClassifierConfig.model_fields)
            ),
            "num_foreground": self.source.num_foreground,
            "label_space": self.label_space,
            "training": training,
        }
        save_model(uri, "classifier", network, meta)


def image_source(manifest: Manifest, max_pixels: int) -> ImageSource:
    """How the images of a manifest are read."""
    return ImageSource(
        manifest.root, manifest.apply_exif, max_pixels, manifest.label_space.num_foreground
    )


def task_fields(
    config: ClassifierConfig, context: RunContext, folder: StageFolder
) -> dict[str, Any]:
    """What every training of a classifier is made of; see `ClassifierTask`."""
    data, manifest = context.config.data, context.manifest
    source = image_source(manifest, data.max_pixels)
    validation = Validation(
        manifest_uri=manifest.uri,
        split=data.held_out_split,
        photographs=Photographs.of(context),
        images=config.validation_images,
        # the middle of what the network is trained on
        long_side=sum(config.resize_long) // 2,
        seed=context.seed,
    )
    return {
        "config": config,
        "stage": folder.stage,
        "seed": context.seed,
        "split": data.train_split,
        "manifest_uri": manifest.uri,
        "source": source,
        "label_space": manifest.label_space.to_json(),
        "validation": validation if config.validation_images else None,
    }


def run(config: ClassifierConfig, context: RunContext, folder: StageFolder) -> Summary:
    """Train the classifier on the labelled images of the training split.

    Args:
        config: the section.
        context: of the run.
        folder: `model.pt` is written here (see `nets.registry.load_classifier`), and error rows
            of images that had to be substituted.

    Raises:
        CannotRunError, BudgetExceededError: see `run_training`; also where no image is labelled.
    """
    data, manifest = context.config.data, context.manifest
    images = training_rows(manifest.uri, data.train_split, labelled=True).num_rows
    task = ClassifierTask(**task_fields(config, context, folder))
    job = training_job(config, context, folder, task, images=images, epochs=config.epochs)
    run_training(job, context, max_failures=config.max_failures)
    _, meta = load_model(job.model_uri, "classifier")
    return summarize(folder, job, meta["training"])
