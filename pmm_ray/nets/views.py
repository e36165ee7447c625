"""From uint8 photographs to the input of a network."""

from __future__ import annotations

import torch


def normalise_views(
    views_B3HW: torch.Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> torch.Tensor:
    """uint8 RGB views as the float32 input of a network.

    Args:
        views_B3HW: uint8 [B, 3, H, W].
        mean: per channel, of RGB in 0..1.
        std: per channel, of RGB in 0..1.
    """
    shape = (1, 3, 1, 1)
    mean_1311 = torch.tensor(mean, device=views_B3HW.device).reshape(shape)
    std_1311 = torch.tensor(std, device=views_B3HW.device).reshape(shape)
    return (views_B3HW.float() / 255.0 - mean_1311) / std_1311
