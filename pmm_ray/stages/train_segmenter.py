"""(v) Pseudo-masks -> a fresh segmenter; under-fitting is pretended in round 0 only (paper 3.4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pmm_ray.config import SegmenterConfig, UnderfittingConfig
from pmm_ray.config.backbones import Triple
from pmm_ray.labels import LabelSpace
from pmm_ray.nets.checkpoints import load_model, save_model
from pmm_ray.nets.segmenter_config import normalisation, segmenter_model
from pmm_ray.nets.segmenter_source import ModelSource, backbone_weights, read_model
from pmm_ray.nets.segmenter_validation import MIOU, SCORED, SegmenterValidation
from pmm_ray.nets.weight_files import file_identity, weights_identity
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.training.job import LossModule, poly
from pmm_ray.runtime.training.launch import UNDERFITTING, run_training, summarize, training_job
from pmm_ray.runtime.training.loader import ImageSource, TrainingRow, TrainingSet, training_rows
from pmm_ray.runtime.training.mask_file import MaskFile, build_mask_file, mask_ids
from pmm_ray.stages.train_classifier import image_source

CODE_VERSION = 3
"""Part of the stage's hash: raised by hand when the code gives another result."""

# held-out images that cannot be scored; the evaluation has a row of each
_MOST_NAMED = 10


class SegmenterSample:
    """One augmented image with its mask; opens the mask file in the process that uses it."""

    def __init__(
        self,
        config: SegmenterConfig,
        space: LabelSpace,
        statistics: tuple[Triple, Triple],
        masks: Path,
    ) -> None:
        self._config = config
        self._space = space
        self._statistics = statistics
        self._path = masks

    def __call__(
        self, row: TrainingRow, image_HW3: NDArray[np.uint8], seed: int
    ) -> tuple[Tensor, Tensor]:
        mask_HW = decode_mask(self._masks.png(row.image_id))
        if mask_HW.shape != image_HW3.shape[:2]:
            raise RowError(
                "label", f"the mask is {mask_HW.shape} and the image {image_HW3.shape[:2]} (h, w)"
            )
        if self._config.layout == "dataset":
            mask_HW = self._space.to_dataset(mask_HW)
        inputs, target = self._transform(image_HW3, mask_HW, seed % 2**32)
        return inputs, target

    def __getstate__(self) -> dict[str, Any]:
        kept = ("_config", "_space", "_statistics", "_path")
        return {name: value for name, value in self.__dict__.items() if name in kept}

    @cached_property
    def _masks(self) -> MaskFile:
        return MaskFile(self._path)

    @cached_property
    def _transform(self) -> Any:
        from pmm_ray.nets.segmenter_transform import training_transform

        return training_transform(self._config, self._space.ignore, *self._statistics)


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

    def watched(self) -> dict[str, Tensor]:
        """Where under-fitting is pretended, the share of the images whose loss was limited."""
        from pmm_ray.nets.segmenter import underfitting_share

        share = underfitting_share(self.network)
        return {} if share is None else {UNDERFITTING: share}


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
    model: ModelSource | None = None
    """The user's, instead of PSPNet."""
    validation: SegmenterValidation | None = None
    mask_file: Path | None = field(default=None, init=False)

    def prepare(self, scratch: Path) -> None:
        """Check the masks and map them once per node."""
        space = LabelSpace.from_json(self.label_space)
        self.mask_file = build_mask_file(self.masks_uri, space, scratch)

    def dataset(self) -> TrainingSet:
        assert self.mask_file is not None, "prepare comes first"
        rows = training_rows(self.manifest_uri, self.split, among=mask_ids(self.masks_uri))
        space = LabelSpace.from_json(self.label_space)
        statistics = normalisation(self.config, self.model)
        sample = SegmenterSample(self.config, space, statistics, self.mask_file)
        return TrainingSet(rows, self.source, sample, self.seed, self.stage)

    def build(self) -> SegmenterLoss:
        from pmm_ray.nets.segmenter import build_segmenter

        space = LabelSpace.from_json(self.label_space)
        network = build_segmenter(
            self.config,
            space.num_classes,
            space.ignore,
            underfitting=round_underfitting(self.config, self.round),
            outputs=space.dataset_ids if self.config.layout == "dataset" else None,
            source=self.model,
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

    def measure(self, network: nn.Module, device: torch.device, rank: int, world: int) -> Any:
        """This worker's share of the held-out images; None where nothing is scored."""
        if self.validation is None:
            return None
        return self.validation.measure(network, device, rank, world)

    def metrics(self, shares: list[Any]) -> dict[str, float]:
        """The mIoU of all shares."""
        return {} if self.validation is None else self.validation.metrics(shares)

    def save(self, uri: str, network: nn.Module, training: dict[str, float]) -> None:
        from pmm_ray.nets.segmenter import describe

        space = LabelSpace.from_json(self.label_space)
        meta = {
            **describe(network).meta(),
            "config": self.config.model_dump(mode="json"),
            "num_classes": space.num_classes,
            "ignore_index": space.ignore,
            "label_space": self.label_space,
            "round": self.round,
            "training": training,
        }
        save_model(uri, "segmenter", network, meta)


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
    uri = backbone_weights(config, source)
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
        seed=context.seed,
    )
    return validation if validation.rows() else None


def round_underfitting(config: SegmenterConfig, round: int) -> UnderfittingConfig:
    """Under-fitting is pretended in round 0; later rounds use plain cross entropy (paper 4.1)."""
    return config.underfitting if round == 0 else UnderfittingConfig(kind="none")


def _check_model(task: SegmenterTask) -> None:
    """Find out here, before workers are asked for, what cannot be built."""
    if task.model is None:
        segmenter_model(task.config, 2, 255)
        return
    from pmm_ray.nets.segmenter import try_model

    with torch.random.fork_rng(devices=[]):
        network = task.build().network
        try_model(network, task.config.crop_size, task.model.uri)


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
    validation = validation_of(config, context)
    chosen = config.choose == "best" and validation is not None
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
        model=None if config.config is None else read_model(config.config),
        validation=validation,
    )
    job = training_job(
        config,
        context,
        folder,
        task,
        images=images,
        steps=config.iterations,
        validate_every=config.validate_every,
        choose_by=MIOU if chosen else None,
    )
    if job.batch_size // job.workers // job.accumulate < 2:
        raise CannotRunError(
            f"segmenter.batch_size {job.batch_size} leaves {job.workers} workers one image each "
            "per pass: BatchNorm needs two; raise segmenter.batch_size, or lower segmenter.workers "
            "or segmenter.accumulate"
        )
    _check_model(task)
    if validation is not None:
        use = (
            "they choose the weights, as segmenter.choose: last would not" if chosen else "watched"
        )
        context.progress.message(
            f"{folder.stage}: pixel labels used ({data.held_out_split}, "
            f"{len(validation.rows())} images): {use}"
        )
    run_training(job, context, max_failures=config.max_failures)
    _, meta = load_model(job.model_uri, "segmenter")
    summary = summarize(folder, job, meta["training"])
    if summary.metrics.get(UNDERFITTING) == 0:
        context.progress.message(
            f"{folder.stage}: under-fitting was never pretended: no head's mean loss fell below "
            f"segmenter.underfitting.beta {config.underfitting.beta:g} (the last steps: "
            f"{summary.metrics['loss']:.3g}, all heads together): raise beta, or train longer"
        )
    if validation is None:
        return summary
    scored = int(meta["training"].get(SCORED, 0))
    if scored < len(validation.rows()):
        unusable = validation.unusable()
        for image_id, reason in list(unusable.items())[:_MOST_NAMED]:
            context.progress.message(f"{folder.stage}: {image_id} was not scored: {reason}")
        if len(unusable) > _MOST_NAMED:
            context.progress.message(f"{folder.stage}: nor were {len(unusable) - _MOST_NAMED} more")
    details = summary.details | {"split": data.held_out_split, SCORED: scored}
    return summary.model_copy(update={"details": details})
