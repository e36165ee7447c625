"""What the sections of all stages that only ask a network share: how it computes."""

from __future__ import annotations

from typing import Any, Literal

from pmm_ray.config.base import Auto, GpuShare, Positive, Section, added, execution


class InferenceConfig(Section):
    """How a network computes where it is not trained."""

    precision: Literal["float32", "bfloat16"] | Auto = added("auto")
    """Of the network; what it returns is float32. `bfloat16`: autocast, as `amp` of a training.
    `auto`, resolved once per run folder: bfloat16 where all GPUs have it, else float32."""
    channels_last: bool | Auto = added("auto")
    """Memory layout of images and features; `auto`: with bfloat16 on GPUs."""
    pass_pixels: Positive | Auto = execution("auto")
    """Pixels of the views (or windows) that go through the network together, of one or several
    photographs; `auto`: 6.4 million on a GPU, as few as can be on a CPU."""
    gpus_per_actor: GpuShare = execution(1.0)
    """Share of a GPU that a model copy takes, in memory, too: with 0.5 two share each; on CPUs
    nothing."""

    def identity(self) -> dict[str, Any]:
        """What decides the result; float32 is not named, as before there was a choice."""
        out = super().identity()
        if self.precision == "float32":
            del out["precision"]
        return out
