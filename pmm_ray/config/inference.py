"""What the sections of all stages that only ask a network share: how it computes."""

from __future__ import annotations

from typing import Literal

from pmm_ray.config.base import Auto, Section, added


class InferenceConfig(Section):
    """How a network computes where it is not trained."""

    precision: Literal["float32", "bfloat16"] | Auto = added("auto")
    """Of the network; all that follows it is float32. `bfloat16`: autocast, as `amp` of a training.
    `auto`: bfloat16 on GPUs that have it, else float32."""
    channels_last: bool | Auto = added("auto")
    """Memory layout of images and features; `auto`: with bfloat16 on GPUs."""
