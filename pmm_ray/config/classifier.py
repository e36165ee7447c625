"""The sections of the classifier and its activation maps (paper 3.5, 4.1)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pmm_ray.config.base import Auto, IntRange, Positive, Scale, Section, execution


class ClassifierConfig(Section):
    """The image classifier whose activation maps become masks (paper 3.5, 4.1)."""

    backbone: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    """Network; `efficientnet_lite0` is the small one for CPUs."""
    weights: str = "imagenet"
    """`imagenet` (from the installed package), `none`, or a path to a state dict."""
    output_stride: Literal[8, 16, 32] = 16
    """Input px per feature px."""
    epochs: Positive = 8
    """Passes over the training split."""
    batch_size: Positive = 16
    """Images per optimiser step, over all workers."""
    learning_rate: float = Field(0.01, gt=0)
    """SGD step size of the backbone at step 0."""
    head_multiplier: float = Field(10.0, gt=0)
    """The head's learning rate over the backbone's (released code: 10)."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD momentum. The released code's effective value is 5e-4 (a swapped argument)."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty on convolution weights."""
    poly_power: float = Field(0.9, gt=0)
    """lr = lr0 * (1 - step / steps) ** power."""
    resize_long: IntRange = (256, 416)
    """The long side is drawn from this range, px (released code: 448..768)."""
    crop_size: Positive = 320
    """Square training crop, px (paper: 448); smaller images are padded with the mean."""
    color_jitter: float = Field(0.3, ge=0, le=1)
    """Strength of brightness, contrast and saturation jitter, a third of it for the hue
    (released code: 0.3)."""
    freeze_norm: bool = True
    """Keep BatchNorm at its pretrained statistics (released code: yes)."""
    amp: bool = True
    """bfloat16 autocast on GPUs; CPUs compute in float32."""
    workers: Positive | Auto = "auto"
    """Ray Train workers; `auto`: one per GPU, or 2 on CPUs (1 on a single core)."""
    threads_per_worker: Positive = execution(1)
    """Torch threads and CPUs of one worker on a CPU cluster."""
    loader_processes: int = execution(0, ge=0)
    """Decoding processes per worker, a CPU each; 0 decodes in the worker itself."""
    checkpoint_seconds: float = execution(60.0, gt=0)
    """A checkpoint is written about this often, s."""
    max_failures: int = execution(3, ge=0)
    """How often a lost worker or node is replaced before the run gives up."""


class CamsConfig(Section):
    """Class activation maps: multi-scale and flip, present classes only (Eq. 1)."""

    scales: tuple[Scale, ...] = Field((0.5, 1.0, 1.5, 2.0), min_length=1)
    """Image scales whose maps are summed (reference: SEAM's multi-scale CAM)."""
    flip: bool = True
    """Also average the horizontally mirrored image."""
    max_long: Positive = 1024
    """Images whose long side exceeds this are shrunk to it before scaling, px."""
    stride: Positive = 4
    """Storage resolution: original px per stored CAM px."""
    batch_size: Positive = execution(8)
    """Images per task."""
    actors: Positive | Auto = execution("auto")
    """Model copies; `auto`: one per GPU, else one per CPU."""
