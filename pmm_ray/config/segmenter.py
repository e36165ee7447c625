"""The sections of the segmenter, its predictions and the cyclic rounds."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pmm_ray.config.base import Auto, FloatRange, Natural, Positive, Scale, Section, execution
from pmm_ray.config.masks import CrfConfig


class UnderfittingConfig(Section):
    """Pretended under-fitting (Eq. 10-13)."""

    kind: Literal["clamp", "none"] = "clamp"
    """Operation on the loss map while its mean is below beta."""
    beta: float = Field(0.5, ge=0)
    """Warm-up threshold on the mean loss (VOC 0.5, COCO 0.8)."""
    kappa: float = Field(0.5, gt=0)
    """Clamp level (VOC 0.5, COCO 0.8)."""


class SegmenterConfig(Section):
    """The fully supervised segmenter: PSPNet from mmsegmentation (paper 4.1)."""

    backbone: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    """Backbone, registered with mmsegmentation."""
    weights: str = "imagenet"
    """`imagenet`, `none`, or a path to a backbone state dict."""
    output_stride: Literal[8, 16, 32] = 8
    """Input px per feature px (paper: 8)."""
    channels: Positive = 512
    """Width of the PSP head."""
    pool_scales: tuple[Positive, ...] = (1, 2, 3, 6)
    """Pyramid pooling grid sizes."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Head dropout."""
    auxiliary_weight: float = Field(0.4, ge=0)
    """Weight of the auxiliary FCN head's loss; 0 leaves the head out."""
    freeze_norm: bool = False
    """Keep the backbone's BatchNorm at its pretrained statistics: for batches too small to have
    statistics of their own (released code: no)."""
    iterations: Positive = 20_000
    """Optimiser steps of one round (paper: 20,000)."""
    batch_size: Positive = 16
    """Images per step, over all workers (paper: 16)."""
    learning_rate: float = Field(0.005, gt=0)
    """SGD step size at step 0 (paper: 0.005)."""
    min_learning_rate: float = Field(1e-4, ge=0)
    """Floor of the poly schedule (released code: 1e-4)."""
    head_multiplier: float = Field(1.0, gt=0)
    """The heads' learning rate over the backbone's (released code: 1)."""
    poly_power: float = Field(0.9, gt=0)
    """Exponent of the poly schedule."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty."""
    resize_base: tuple[Positive, Positive] = (2048, 512)
    """mmseg's (long, short) scale that ratio 1 stands for, px."""
    resize_ratio: FloatRange = (0.5, 2.0)
    """Range of the random resize."""
    crop_size: Positive = 512
    """Square training crop, px."""
    cat_max_ratio: float = Field(0.75, gt=0, le=1)
    """A crop is redrawn (10 tries) while one class fills more than this share."""
    underfitting: UnderfittingConfig = UnderfittingConfig()
    """Pretended under-fitting; used in round 0 only, as in the paper."""
    amp: bool = True
    """bfloat16 autocast on GPUs."""
    workers: Positive | Auto = "auto"
    """Ray Train workers; `auto`: one per GPU, or 2 on CPUs (1 on a single core)."""
    threads_per_worker: Positive = execution(1)
    """Torch threads and CPUs of one worker on a CPU cluster."""
    loader_processes: Natural | Auto = execution("auto")
    """Decoding processes per worker, a CPU each; 0 decodes in the worker itself. `auto`: on GPUs
    as many as there are CPUs for, up to 8; on CPUs 0."""
    checkpoint_seconds: float = execution(60.0, gt=0)
    """A checkpoint is written about this often, s."""
    max_failures: int = execution(3, ge=0)
    """How often a lost worker or node is replaced before the run gives up."""


def _segmentation_crf() -> CrfConfig:
    return CrfConfig(
        gaussian_sigma=1.0,
        gaussian_weight=3.0,
        bilateral_sigma=67.0,
        bilateral_color_sigma=3.0,
        bilateral_weight=4.0,
    )


class PredictConfig(Section):
    """Masks from the segmenter: multi-scale, flip, softmax mean, dense CRF."""

    ratios: tuple[Scale, ...] = Field((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), min_length=1)
    """Scales of `resize_base` (released code: these six)."""
    flip: bool = True
    """Also average the mirrored image."""
    resize_base: tuple[Positive, Positive] = (2048, 512)
    """mmseg's (long, short) scale that ratio 1 stands for, px."""
    use_crf: bool = True
    """Joint dense CRF on the mean probabilities (released code: yes)."""
    crf: CrfConfig = Field(default_factory=_segmentation_crf)
    """CRF parameters (DeepLab-v2's values)."""
    backend: Literal["lattice", "pydensecrf"] = "lattice"
    """CRF implementation."""
    use_image_labels: bool = False
    """Forbid classes that the image's labels do not name (released code: no)."""
    batch_size: Positive = execution(8)
    """Images per task."""
    actors: Positive | Auto = execution("auto")
    """Model copies; `auto`: one per GPU, else one per CPU."""


class CyclesConfig(Section):
    """Cyclic pseudo-masks (paper 3.5)."""

    rounds: int = Field(1, ge=0)
    """How often the training masks are replaced by predictions and a fresh segmenter trained."""
