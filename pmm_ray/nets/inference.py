"""Networks as stages ask them: on their device, in evaluation mode, in the precision asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from pmm_ray.config import InferenceConfig

Network = TypeVar("Network", bound=nn.Module)


def for_inference(
    network: Network, method: str, config: InferenceConfig, device: torch.device
) -> Network:
    """The network itself, made ready.

    Args:
        method: of the network, what the stage calls; with bfloat16 it runs under autocast, and
            what it returns, [B, C, h, w], is float32 all the same.
        config: precision and memory layout.
        device: where the network goes.
    """
    network = network.to(device).eval()
    if in_channels_last(config, device):
        # convolutions bring their input to the layout of their weights
        network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if in_bfloat16(config, device):
        setattr(network, method, _autocast(getattr(network, method), device.type))
    return network


def in_bfloat16(config: InferenceConfig, device: torch.device) -> bool:
    """Whether a network computes in bfloat16 on a device."""
    if config.precision == "auto":
        # without the type torch emulates it, slower than float32
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return config.precision == "bfloat16"


def in_channels_last(config: InferenceConfig, device: torch.device) -> bool:
    """Whether a network's features are channels last on a device."""
    if config.channels_last == "auto":
        return device.type == "cuda" and in_bfloat16(config, device)
    return config.channels_last


def _autocast(function: Callable[..., Tensor], device_type: str) -> Callable[..., Tensor]:
    def run(*args: Any, **kwargs: Any) -> Tensor:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            return function(*args, **kwargs).float()

    return run
