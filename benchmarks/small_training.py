"""What the options for small networks on CPUs save: training steps of a plain EfficientNet-lite.

    python benchmarks/small_training.py [--backbone efficientnet_lite0] [--side 256] [--rounds 5]

One step (forward, backward, optimiser) of a batch of 16, each variant after the other in every
round, one process, two threads; medians. Decoding is not part of it, see `train_loop.py`.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

VARIANTS: dict[str, dict[str, Any]] = {
    "output stride 16": {"output_stride": 16},
    "training_stride 32": {"output_stride": 16, "training_stride": 32},
    "... and channels_last": {"training_stride": 32, "channels_last": True},
    "... and freeze_first": {"training_stride": 32, "channels_last": True, "freeze_first": True},
    "... and freeze_backbone": {
        "training_stride": 32,
        "channels_last": True,
        "freeze_backbone": True,
    },
}
BATCH = 16


def step_of(values: dict[str, Any], backbone: str, side: int) -> Any:
    """A function that makes one step."""
    import torch

    from pmm_ray.config import ClassifierConfig
    from pmm_ray.nets.registry import build_classifier
    from pmm_ray.stages.train_classifier import ClassifierLoss

    config = ClassifierConfig.model_validate({"backbone": backbone, **values})
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    loss = ClassifierLoss(build_classifier(config, 20)).train().to(memory_format=layout)
    images = torch.randn(BATCH, 3, side, side).contiguous(memory_format=layout)
    targets = torch.ones(BATCH, 20)
    trained = [value for value in loss.parameters() if value.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss(images, targets).backward()
        optimizer.step()

    return step


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="efficientnet_lite0")
    parser.add_argument("--side", type=int, default=256, help="of the crops, px")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    steps = {
        name: step_of(values, arguments.backbone, arguments.side)
        for name, values in VARIANTS.items()
    }
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for measured in range(-1, arguments.rounds):  # the first round warms up
        for name, step in steps.items():
            started = time.process_time()
            step()
            if measured >= 0:
                seconds[name].append(time.process_time() - started)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    first = next(iter(medians.values()))
    print(f"{arguments.backbone}, {arguments.side} px, CPU seconds of a step of {BATCH}")
    for name, median in medians.items():
        rate = BATCH / median
        print(f"{name:26} {median:6.2f} s  {rate:6.1f} images/s a core  {first / median:4.1f}x")


if __name__ == "__main__":
    main()
