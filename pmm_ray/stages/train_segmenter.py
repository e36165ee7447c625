"""(v) Pseudo-masks -> a fresh segmenter; under-fitting is pretended in round 0 only (paper 3.4)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pmm_ray.config import RunConfig, SegmenterConfig, UnderfittingConfig
from pmm_ray.config.backbones import Triple
from pmm_ray.labels import LabelSpace
from pmm_ray.method.confusion import NO_CLASS
from pmm_ray.nets.checkpoints import load_model, save_model
from pmm_ray.nets.segmenter_config import normalisation
from pmm_ray.nets.segmenter_source import ModelSource, backbone_weights, read_model
from pmm_ray.nets.segmenter_validation import MIOU, SCORED, SegmenterValidation
from pmm_ray.nets.weight_files import file_identity, weights_identity
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.training.loader import Sample, TrainingRow
from pmm_ray.runtime.training.mask_file import MaskFile
from pmm_ray.runtime.training.task import LossModule, TrainingTask
from pmm_ray.runtime.training.train import UNDERFITTING, masks_identity, train

STAGE = "train_segmenter"
CODE_VERSION = 3
"""Part of the stage's hash: raised by hand when the code gives another result."""

# held-out images that cannot be scored; the evaluation has a row of each
_MOST_NAMED = 10


@dataclass(frozen=True)
class SegmenterSample:
    """One augmented image with its mask."""

    config: SegmenterConfig
    space: LabelSpace
    statistics: tuple[Triple, Triple]
    masks: MaskFile

    def __call__(self, row: TrainingRow, image_HW3: NDArray[np.uint8], seed: int) -> Sample:
        height, width = image_HW3.shape[:2]
        mask_HW = self.masks.mask(row.image_id, (height, width))
        if self.config.layout == "dataset":
            mask_HW = self.space.to_dataset(mask_HW)
        transform = _transform(self.config, self.space.ignore, self.statistics)
        return transform(image_HW3, mask_HW, seed % 2**32)


@cache
def _transform(config: SegmenterConfig, ignore: int, statistics: tuple[Triple, Triple]) -> Any:
    from pmm_ray.nets.segmenter_transform import training_transform

    return training_transform(config, ignore, *statistics)


class SegmenterLoss(LossModule):
    """The sum of the heads' losses."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor, targets: Tensor) -> Tensor:
        from pmm_ray.nets.segmenter import forward_loss

        losses = forward_loss(self.network, inputs, targets)
        return sum((v for name, v in losses.items() if "loss" in name), inputs.new_zeros(()))

    def watched(self) -> dict[str, Tensor]:
        """Where under-fitting is pretended, the share of the images whose loss was limited."""
        from pmm_ray.nets.segmenter import underfitting_share

        share = underfitting_share(self.network)
        return {} if share is None else {UNDERFITTING: share}


@dataclass(kw_only=True)
class SegmenterTask(TrainingTask[SegmenterConfig]):
    """The segmenter's part of a training."""

    validation: SegmenterValidation | None = None
    round: int
    model: ModelSource | None = None
    """The user's, instead of PSPNet."""

    @property
    def notice(self) -> str | None:
        """Which pixel labels are used, and for what."""
        if self.validation is None:
            return None
        use = "they choose the weights; segmenter.choose: last would use none"
        return (
            f"pixel labels used ({self.validation.split}, {len(self.validation.rows())} images): "
            f"{use if self.choose_by else 'watched'}"
        )

    def sample(self) -> SegmenterSample:
        assert self.masks is not None, "prepare comes first"
        statistics = normalisation(self.config.backbone, self.model)
        return SegmenterSample(self.config, self.space, statistics, self.masks)

    def build(self) -> SegmenterLoss:
        from pmm_ray.nets.segmenter import build_segmenter

        network = build_segmenter(
            self.config,
            self.space.num_classes,
            self.space.ignore,
            underfitting=round_underfitting(self.config, self.round),
            outputs=self.space.dataset_ids if self.config.layout == "dataset" else None,
            source=self.model,
        )
        return SegmenterLoss(network)

    def parameter_groups(self, network: nn.Module) -> list[dict[str, Any]]:
        """Backbone x 1, heads x `head_multiplier`; weight decay on all (released code)."""
        trained = {name: p for name, p in network.named_parameters() if p.requires_grad}
        backbone = [p for name, p in trained.items() if name.startswith("backbone.")]
        heads = [p for name, p in trained.items() if not name.startswith("backbone.")]
        decay = self.config.weight_decay
        return [
            {"params": backbone, "rate": 1.0, "weight_decay": decay},
            {"params": heads, "rate": self.config.head_multiplier, "weight_decay": decay},
        ]

    @property
    def last_rate(self) -> float:
        return min(self.config.min_learning_rate, self.config.learning_rate)

    def validates(self, step: int, steps: int, steps_per_epoch: int) -> bool:
        """Every so many iterations, and after the last one."""
        return step % self.config.validate_every == 0 or step == steps

    @property
    def choose_by(self) -> str | None:
        """mIoU, where the section lets the truth of held-out images choose."""
        return MIOU if self.config.choose == "best" and self.validation is not None else None

    def save(self, uri: str, network: nn.Module, training: dict[str, float]) -> None:
        from pmm_ray.nets.segmenter import description_of

        meta = {
            **description_of(network).meta(),
            "config": self.config.model_dump(mode="json"),
            "num_classes": self.space.num_classes,
            "ignore_index": self.space.ignore,
            "label_space": self.space.to_json(),
            "round": self.round,
            "training": training,
        }
        save_model(uri, "segmenter", network, meta)

    def trained(self, uri: str) -> dict[str, float]:
        return load_model(uri, "segmenter")[1]["training"]


def chooses(config: SegmenterConfig) -> bool:
    """Whether the truth of held-out images, where there is some, chooses the weights."""
    return config.choose == "best" and config.validate_every < config.iterations


def model_identity(config: SegmenterConfig, held_out_split: str) -> list[str]:
    """What decides the result beside the section: part of the stage's hash.

    That is the content of the files which it names, and the split that chooses the weights.

    Raises:
        CannotRunError: a file cannot be read, or the model cannot be used.
    """
    split = [held_out_split] if chooses(config) else []
    if config.config is None:
        return [weights_identity(config.weights, config.backbone), *split]
    source = read_model(config.config)
    uri = backbone_weights(config.weights, source)
    return [source.identity(), "none" if uri is None else file_identity(uri), *split]


def validation_of(config: SegmenterConfig, context: RunContext) -> SegmenterValidation | None:
    """What is scored while training: None where there is no truth, or where it would be once."""
    if config.validation_images == 0 or config.validate_every >= config.iterations:
        return None
    validation = SegmenterValidation(
        manifest_uri=context.manifest.uri,
        split=context.config.data.held_out_split,
        photographs=Photographs.of(context),
        images=config.validation_images,
        resize_base=config.resize_base,
        seed=context.config.seed,
        predict=context.config.predict if config.validation == "test" else None,
    )
    return validation if validation.rows() else None


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
        folder: `model.pt` is written here (see `nets.segmenter.load_segmenter`), and error rows
            of images that had to be substituted.
        masks_uri: folder of a masks table.
        round: 0 for the first masks, then the number of the cycle.

    Raises:
        CannotRunError, BudgetExceededError: see `train`; also where no image has a mask,
            or a mask holds a value outside the label space.
    """
    validation = validation_of(config, context)
    task = SegmenterTask.of(
        config,
        context,
        folder,
        masks_uri=masks_uri,
        round=round,
        model=None if config.config is None else read_model(config.config),
        validation=validation,
    )
    if config.min_learning_rate >= config.learning_rate:
        context.progress.message(
            f"{folder.stage}: the learning rate stays at {config.learning_rate:g}: "
            f"segmenter.min_learning_rate {config.min_learning_rate:g} is not below it: set it to 0"
        )
    summary = train(task, context, folder)
    if summary.metrics.get(UNDERFITTING) == 0:
        context.progress.message(
            f"{folder.stage}: under-fitting was never pretended: no head's mean loss fell below "
            f"segmenter.underfitting.beta {config.underfitting.beta:g} (the last steps: "
            f"{summary.metrics['loss']:.3g}, all heads together): raise beta, or train longer"
        )
    if validation is None:
        return summary
    scored = summary.details.get(SCORED, 0)
    if MIOU not in summary.metrics:
        kept = ", the last weights are kept" if task.choose_by else ""
        why = NO_CLASS if scored else "not one image could be scored"
        context.progress.message(
            f"{folder.stage}: no score of split {validation.split!r}{kept}: {why}"
        )
    if scored < len(validation.rows()):
        unusable = validation.unusable()
        for image_id, reason in list(unusable.items())[:_MOST_NAMED]:
            context.progress.message(f"{folder.stage}: {image_id} was not scored: {reason}")
        if len(unusable) > _MOST_NAMED:
            context.progress.message(f"{folder.stage}: nor were {len(unusable) - _MOST_NAMED} more")
    return summary.extended({"split": validation.split, SCORED: scored})


def stage(
    config: SegmenterConfig,
    recipe: RunConfig,
    data: DataSet,
    masks: StageFolder,
    *,
    round: int,
    name: str,
) -> Stage:
    """The training of a fresh segmenter on finished masks.

    Args:
        recipe: for the seed and the splits.
        masks: of the training split.
        round: 0 for the first masks, then the number of the cycle.

    Raises:
        CannotRunError: see `model_identity`.
    """
    identity = (
        config,
        *model_identity(config, recipe.data.held_out_split),
        # weights that are chosen by the truth depend on how it was made
        *(data.truth if chooses(config) else ()),
        *((recipe.predict,) if chooses(config) and config.validation == "test" else ()),
        *masks_identity(recipe, masks),
        round,
        CODE_VERSION,
    )
    return Stage(name, identity, partial(run, config, masks_uri=masks.uri, round=round))
