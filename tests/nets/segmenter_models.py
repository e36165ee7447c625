"""Small models in mmsegmentation's notation, and a step of their training."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from pmm_ray.config import SegmenterConfig
from pmm_ray.nets.segmenter import forward_loss
from pmm_ray.nets.segmenter_source import ModelSource, read_model

RECIPES = Path(__file__).parents[2] / "recipes" / "mmseg"
CONFIG = SegmenterConfig(weights="none", channels=8, crop_size=64)


def user_file(folder: Path, model: str, more: str = "") -> ModelSource:
    path = folder / "user.py"
    path.write_text(f"{more}\nmodel = {model}\n")
    return read_model(str(path))


# a whole model in one line: small, with everything that is fitted
SMALL = (
    "dict(type='EncoderDecoder', backbone=dict(type='ResNetV1c', depth=18, base_channels=8, "
    "out_indices=(0, 1, 2, 3), norm_cfg=dict(type='SyncBN')), "
    "decode_head=dict(type='FCNHead', in_channels=64, in_index=3, channels=8, num_convs=1, "
    "num_classes=19, norm_cfg=dict(type='SyncBN'), {head}), test_cfg=dict(mode='whole'){more})"
)


def small(head: str = "loss_decode=dict(type='CrossEntropyLoss')", more: str = "") -> str:
    return SMALL.format(head=head, more=more)


def step(network: nn.Module, classes: int = 4, size: int = 64) -> dict[str, torch.Tensor]:
    """One step of a training; every loss is finite and moves the backbone."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, size, size, generator=generator)
    masks = torch.randint(0, classes, (2, size, size), generator=generator)
    masks[:, :9] = 255
    losses = forward_loss(network.train(), images, masks)
    total = sum((v for name, v in losses.items() if "loss" in name), torch.zeros(()))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    first = next(p for p in network.get_submodule("backbone").parameters() if p.requires_grad)
    before = first.detach().clone()
    total.backward()
    optimizer.step()
    assert torch.isfinite(total)
    assert not torch.equal(first, before)
    return losses
