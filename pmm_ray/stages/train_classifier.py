"""(ii) Image-level labels -> a classifier whose activation maps become masks (paper 3.5, 4.1)."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pmm_ray.config import AnyClassifierConfig, ClassifierConfig, RunConfig
from pmm_ray.config.backbones import Triple
from pmm_ray.method.seam_losses import seam_losses, small_view
from pmm_ray.nets.cam_network import CamNetwork, present_classes
from pmm_ray.nets.checkpoints import load_model, save_model
from pmm_ray.nets.classifier_validation import ClassifierValidation
from pmm_ray.nets.registry import build_classifier
from pmm_ray.nets.segmenter_config import normalisation
from pmm_ray.nets.segmenter_source import ModelSource, backbone_weights, classifier_source
from pmm_ray.nets.weight_files import PUBLIC_NAMES, file_identity, weights_identity
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.training.augment import augment
from pmm_ray.runtime.training.loader import Sample, TrainingRow, with_repeats
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
    statistics: tuple[Triple, Triple]

    def __call__(self, row: TrainingRow, image_HW3: NDArray[np.uint8], seed: int) -> Sample:
        mean, std = self.statistics
        view_3SS = augment(
            image_HW3,
            np.random.default_rng(seed),
            resize_long=self.config.resize_long,
            crop_size=self.config.crop_size,
            color_jitter=self.config.color_jitter,
            mean=mean,
            std=std,
        )
        return torch.from_numpy(view_3SS), present_classes(row.labels, self.num_foreground)


class ClassifierLoss(LossModule):
    """Multilabel soft margin loss of the image-level logits.

    Args:
        network: the classifier.
        classes: indices of the classes that take part; None: all.
    """

    _classes: Tensor | None

    def __init__(self, network: CamNetwork, classes: Sequence[int] | None = None) -> None:
        super().__init__()
        self.network = network
        # an index on the device: a list would be copied there at every step
        taken = None if classes is None else torch.tensor(list(classes))
        self.register_buffer("_classes", taken, persistent=False)

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        logits_BC = self.network(inputs)[0].float()
        if self._classes is not None:
            logits_BC = logits_BC.index_select(1, self._classes)
            targets = targets.index_select(1, self._classes)
        return F.multilabel_soft_margin_loss(logits_BC, targets)


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

    model: ModelSource | None = None
    """The user's, instead of `config.backbone`."""

    @property
    def statistics(self) -> tuple[Triple, Triple]:
        """(mean, standard deviation) of the network's input, RGB in 0..1."""
        return normalisation(self.config.backbone, self.model)

    @property
    @abstractmethod
    def crop_size(self) -> int:
        """Side of what is trained on, px."""

    def check(self) -> None:
        """Refuse a user's network that cannot be trained, or cannot make maps of any image."""
        if self.model is None:
            return
        side, classes = self.crop_size, self.space.num_foreground
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            module = self.build()
            doing = f"train on crops of {side} px"
            try:
                module.train()(torch.zeros(2, 3, side, side), torch.ones(2, classes))
                doing = f"make maps of an image of {side // 2 + 1} x {side - 1} px"
                odd = torch.zeros(1, 3, side // 2 + 1, side - 1)
                cast(CamNetwork, module.network.eval()).cam_scores(odd, torch.ones(1, classes))
            # whatever a network of anyone's raises
            except Exception as error:
                raise CannotRunError(
                    f"{self.model.where}: this backbone cannot {doing} ({type(error).__name__}: "
                    f"{error}): choose another; docs/guides/mmseg-models.md says what works"
                ) from error

    def rows(self) -> pa.Table:
        rows = super().rows()
        return with_repeats(rows, self.config.repeat_below) if self.config.repeat_below else rows

    def build(self) -> LossModule:
        space = self.space
        names = space.names[1:]
        network = build_classifier(self.config, space.num_foreground, self.model, names=names)
        if self.config.kind == "seam":
            return SiameseLoss(network)
        present = None
        if self.config.skip_absent:
            labels = pc.unique(pc.list_flatten(self.rows().column("labels"))).to_pylist()
            present = sorted(label - 1 for label in labels)
        return ClassifierLoss(network, present)

    def save(self, uri: str, network: nn.Module, training: dict[str, float]) -> None:
        fields = set(ClassifierConfig.model_fields)
        meta = {
            "config": self.config.model_dump(mode="json", include=fields),
            "num_foreground": self.space.num_foreground,
            "label_space": self.space.to_json(),
            "training": training,
        }
        if self.model is not None:
            meta |= {"model": self.model.model, "imports": list(self.model.imports)}
        save_model(uri, "classifier", network, meta)

    def trained(self, uri: str) -> dict[str, float]:
        return load_model(uri, "classifier")[1]["training"]


@dataclass(kw_only=True)
class ClassifierTask(AnyClassifierTask[ClassifierConfig]):
    """The first classifier's part of a training."""

    def sample(self) -> ClassifierSample:
        return ClassifierSample(self.config, self.space.num_foreground, self.statistics)

    @property
    def crop_size(self) -> int:
        return self.config.crop_size


def model_identity(config: AnyClassifierConfig) -> list[str]:
    """What decides the result beside the section: the content of the files that it names.

    Raises:
        CannotRunError: a file cannot be read, the model cannot be used, or the head begins at
            values that no training would change.
    """
    headless = config.weights == "none" or config.weights in PUBLIC_NAMES
    if config.epochs == 0 and config.head_init == "random" and headless:
        raise CannotRunError(
            "epochs: 0 leaves the class head at random values: set head_init: imagenet, or weights "
            "to a checkpoint that holds a head"
        )
    table = [] if config.head_classes is None else [file_identity(config.head_classes)]
    source = classifier_source(config)
    if source is None:
        return [weights_identity(config.weights, config.backbone), *table]
    uri = backbone_weights(config.weights, source)
    return [source.identity(), "none" if uri is None else file_identity(uri), *table]


def validation_of(
    config: AnyClassifierConfig, context: RunContext, long_side: int
) -> ClassifierValidation | None:
    """What is scored after every epoch, if anything.

    Args:
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
        folder: `model.pt` is written here (see `nets.registry.load_classifier`), and error rows
            of images that had to be substituted.

    Raises:
        CannotRunError, BudgetExceededError: see `train`; also where no image is labelled.
    """
    # the middle of what the network is trained on
    validation = validation_of(config, context, sum(config.resize_long) // 2)
    task = ClassifierTask.of(
        config, context, folder, model=classifier_source(config), validation=validation
    )
    return train(task, context, folder)


def stage(config: ClassifierConfig, recipe: RunConfig, data: DataSet, name: str = STAGE) -> Stage:
    """The training of a classifier on the labelled images of the training split.

    Args:
        recipe: for the seed and the training split.

    Raises:
        CannotRunError: see `model_identity`.
    """
    identity = (
        config,
        *model_identity(config),
        recipe.seed,
        data.hash,
        recipe.data.train_split,
        CODE_VERSION,
    )
    return Stage(name, identity, partial(run, config))
