"""The section of the affinity network and its random walk on CAMs (Tab. 2 and 3)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from pmm_ray.config.backbones import BackboneName
from pmm_ray.config.base import Auto, Natural, Positive, Section, execution
from pmm_ray.config.masks import BaseCrfConfig


class WalkConfig(Section):
    """The random walk on CAMs."""

    alpha: float = Field(6.0, gt=0)
    """Background exponent of the scores that walk (released code)."""
    beta: float = Field(8.0, gt=0)
    """Exponent of the affinities: how hard it is to leave an object (released code)."""
    log_steps: int = Field(6, ge=0, le=12)
    """Binary logarithm of the number of steps (released code: 2^6)."""
    max_long: Positive = 1024
    """Images whose long side exceeds this are shrunk to it, px."""
    batch_size: Positive = execution(8)
    """Images per task."""
    actors: Positive | Auto = execution("auto")
    """Network copies; `auto`: one per GPU, else one per CPU."""


class AffinityConfig(Section):
    """Refine CAMs by an affinity network and a random walk (paper: an ablation; off)."""

    enabled: bool = False
    """Make masks from the refined CAMs. The paper's pipeline does not: it lost by them."""
    backbone: BackboneName = "efficientnet_lite0"
    """Network, at output stride 8."""
    weights: str = "imagenet"
    """As `classifier.weights`."""
    resnet38_dilation: Literal[2, 4] = 4
    """As `classifier.resnet38_dilation`."""
    radius: int = Field(5, ge=2)
    """Pixels closer than this are a pair, feature px (released code)."""
    alpha_low: float = Field(4.0, gt=0)
    """Background exponent under which an object is sure (released SEAM code)."""
    alpha_high: float = Field(24.0, gt=0)
    """Background exponent under which the background is sure (released SEAM code)."""
    crf: BaseCrfConfig = BaseCrfConfig()
    """Joint CRF of the labels."""
    backend: Literal["lattice", "pydensecrf"] = "lattice"
    """CRF implementation; both give the same labels."""
    epochs: Positive = 8
    """Passes over the training split (released code)."""
    batch_size: Positive = 16
    """Images per optimiser step, over all workers (released code)."""
    learning_rate: float = Field(0.02, gt=0)
    """SGD step size of the backbone at step 0 (released code)."""
    head_multiplier: float = Field(10.0, gt=0)
    """The head's learning rate over the backbone's (released code)."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty on convolution weights."""
    poly_power: float = Field(0.9, gt=0)
    """lr = lr0 * (1 - step / steps) ** power."""
    crop_size: Positive = Field(448, multiple_of=8)
    """Square training crop, px; smaller images are padded with the mean, which is ignored."""
    color_jitter: float = Field(0.3, ge=0, le=1)
    """As `classifier.color_jitter`."""
    freeze_norm: bool = True
    """Keep BatchNorm at its pretrained statistics."""
    freeze_first: bool = True
    """Keep the first layers as pretrained."""
    walk: WalkConfig = WalkConfig()
    """What the network's affinities do to the CAMs."""
    amp: bool = True
    """bfloat16 autocast on GPUs; CPUs compute in float32."""
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

    @model_validator(mode="after")
    def _in_order(self) -> AffinityConfig:
        if self.alpha_low >= self.alpha_high:
            raise ValueError(
                f"affinity.alpha_low {self.alpha_low:g} must lie below affinity.alpha_high "
                f"{self.alpha_high:g}"
            )
        return self
