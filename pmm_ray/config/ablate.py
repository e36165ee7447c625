"""The section of the paper's tables, made by `pmm ablate --table`."""

from __future__ import annotations

from pydantic import Field, model_validator

from pmm_ray.config.backbones import BackboneName
from pmm_ray.config.base import Scale, Section


class AblateConfig(Section):
    """Settings of the paper's tables, beside the recipe's own sections."""

    backbones: tuple[BackboneName, ...] = ()
    """Tab. 1: its networks (paper: resnet38, res2net101, scalenet101); empty: the recipe's."""
    weights: dict[BackboneName, str] = Field(default_factory=dict)
    """Tab. 1: weights of networks, as `classifier.weights`; else the recipe's, else `imagenet`."""
    alphas: tuple[Scale, ...] = Field((1, 2, 3, 4, 5, 6, 8, 11, 14, 17, 20), min_length=1)
    """Background exponents to score every row with; the best one counts (paper: a grid
    search over 0..20). Rows of CAMs alone have the exponents of thresholds 0.02 to 0.6."""

    @model_validator(mode="after")
    def _each_once(self) -> AblateConfig:
        for name in ("backbones", "alphas"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"ablate.{name} lists a value twice: {list(values)}")
        return self
