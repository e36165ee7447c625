"""What the sections of all trainings share: the step, its schedule, and where it runs."""

from __future__ import annotations

from abc import abstractmethod
from typing import Literal

from pydantic import Field

from pmm_ray.config.base import Auto, Natural, Positive, Section, added, execution


class TrainingConfig(Section):
    """A training of a network by stochastic gradient descent."""

    batch_size: Positive = 16
    """Images per optimiser step, over all workers (released code, VOC: 24 for the base masks, else
    16; COCO: 8, segmenter 32)."""
    optimizer: Literal["sgd", "adamw"] = added("sgd")
    """`adamw` suits new heads on backbones that are kept (`freeze_backbone`)."""
    learning_rate: float = Field(0.01, gt=0)
    """Step size of the backbone at step 0."""
    head_multiplier: float = Field(10.0, gt=0)
    """The head's learning rate over the backbone's (released code: 10)."""
    schedule: Literal["poly", "cosine"] = added("poly")
    """How the learning rate falls: `poly`, (1 - step / steps) ** `poly_power` (released code), or
    half a `cosine`."""
    poly_power: float = Field(0.9, gt=0)
    """Exponent of the poly schedule."""
    warmup: float = added(0.0, ge=0, lt=1)
    """Share of the steps in which the learning rate first rises from zero (released code: 0)."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty on convolution weights; `adamw`: decoupled from the gradient."""
    clip_norm: float | None = Field(None, gt=0)
    """Gradients are scaled down to this norm over all parameters; empty: never (released code)."""
    accumulate: Positive = 1
    """Forward and backward passes per optimiser step, for the same batch on fewer GPUs."""
    freeze_norm: bool = True
    """Keep BatchNorm at its pretrained statistics (released code: yes)."""
    amp: bool = True
    """bfloat16 autocast on GPUs, with weights, optimiser and losses in float32; CPUs compute in
    float32."""
    channels_last: bool = False
    """Memory layout of images and features; faster on GPUs with tensor cores."""
    compile: bool = False
    """Compile the network with torch.compile."""
    workers: Positive | Auto = "auto"
    """Ray Train workers; `auto`: one per GPU, or 2 on CPUs (1 on a single core), and fewer where
    the batch cannot be split over so many."""
    threads_per_worker: Positive = execution(1)
    """Torch threads and CPUs of one worker on a CPU cluster."""
    loader_processes: Natural | Auto = execution("auto")
    """Decoding processes per worker, a CPU each; 0 decodes in the worker itself. `auto`: on GPUs
    as many as there are CPUs for, up to 8; on CPUs 0."""
    checkpoint_seconds: float = execution(60.0, gt=0)
    """Time between two checkpoints, about, s."""
    elastic: bool = execution(False)
    """Go on at the last checkpoint with fewer or more workers than `workers` where nodes were lost
    or joined: at most one per GPU, on CPUs `workers`. Batches stay, and `accumulate` changes; what
    is learnt is not quite the same, and the summary says how many workers did which steps."""
    max_failures: int = execution(3, ge=0)
    """How often to replace a lost worker or node before the run gives up."""

    @property
    def least_images(self) -> int:
        """Images that the network needs in one pass of a worker."""
        return 1

    @abstractmethod
    def steps(self, steps_per_epoch: int) -> int:
        """Optimiser steps of the whole training."""


class EpochTrainingConfig(TrainingConfig):
    """A training that ends after some passes over its images."""

    epochs: Positive = 8
    """Passes over the training split."""
    color_jitter: float = Field(0.3, ge=0, le=1)
    """Strength of brightness, contrast and saturation jitter, a third of it for the hue
    (released code: 0.3)."""
    freeze_first: bool = False
    """Keep the first layers as pretrained (released code: yes)."""

    def steps(self, steps_per_epoch: int) -> int:
        return self.epochs * steps_per_epoch
