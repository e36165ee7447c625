"""The section of the affinity network and its random walk on CAMs (Tab. 2 and 3)."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pmm_ray.config.backbones import BackboneName
from pmm_ray.config.base import Auto, GpuShare, Positive, Section, execution
from pmm_ray.config.masks import BaseCrfConfig
from pmm_ray.config.training import EpochTrainingConfig


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
    """Network copies; `auto`: one per GPU, or as many as share it, else one per CPU."""
    gpus_per_actor: GpuShare = execution(1.0)
    """Share of a GPU that a network copy takes, in memory, too: with 0.5 two share each; on CPUs
    nothing."""


_LATER = ("accumulate", "channels_last", "clip_norm", "compile")


class AffinityConfig(EpochTrainingConfig):
    """Refine CAMs by an affinity network and a random walk (paper: an ablation; off)."""

    enabled: bool = False
    """Make masks from the refined CAMs. The paper's pipeline does not: they lowered its scores."""
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
    learning_rate: float = Field(0.02, gt=0)
    """Step size of the backbone at step 0 (released code)."""
    momentum: float = Field(5e-4, ge=0, lt=1)
    """As `classifier.momentum`."""
    crop_size: Positive = Field(448, multiple_of=8)
    """Square training crop, px; smaller images are padded with the mean, which is ignored."""
    freeze_first: bool = True
    """Keep the first layers as pretrained."""
    walk: WalkConfig = WalkConfig()
    """What the network's affinities do to the CAMs."""

    def identity(self) -> dict[str, Any]:
        """What decides the result; options newer than the first runs only where they are used."""
        fields = type(self).model_fields
        return {
            name: value
            for name, value in super().identity().items()
            if name not in _LATER or value != fields[name].default
        }

    @model_validator(mode="after")
    def _in_order(self) -> AffinityConfig:
        if self.alpha_low >= self.alpha_high:
            raise ValueError(
                f"affinity.alpha_low {self.alpha_low:g} must be below affinity.alpha_high "
                f"{self.alpha_high:g}"
            )
        return self
