"""From uint8 photographs to the input of a network."""

# B: views; H, W: photograph px; S: side of a window, px.

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache

import torch
from torch.nn import functional

from pmm_ray.config import CropsConfig
from pmm_ray.method.multicrop import Geometry, Window, windows


def normalise_views(
    views_B3HW: torch.Tensor, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> torch.Tensor:
    """uint8 RGB views as the float32 input of a network.

    Args:
        views_B3HW: uint8 [B, 3, H, W].
        mean, std: per channel, of RGB in 0..1.
    """
    device = views_B3HW.device
    return (views_B3HW.float() / 255.0 - _channels(mean, device)) / _channels(std, device)


@cache
@torch.inference_mode(False)  # a training may use them, too
def _channels(values: tuple[float, float, float], device: torch.device) -> torch.Tensor:
    """A value for each channel, [1, 3, 1, 1], made once: a GPU would be waited for."""
    return torch.tensor(values, device=device).reshape(1, 3, 1, 1)


def resize_views(views_B3HW: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Photographs at another size, as PIL's bilinear filter gives them (at most a level apart).

    Args:
        views_B3HW: uint8 [B, 3, H, W], on any device.
        height, width: of the result, px.

    Returns:
        uint8 [B, 3, height, width].
    """
    # on CPUs torch resizes uint8 itself, many times faster than float32; on GPUs it cannot
    pixels = views_B3HW if views_B3HW.device.type == "cpu" else views_B3HW.float()
    found = functional.interpolate(
        pixels, (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    return found if found.dtype == torch.uint8 else found.round().clamp(0, 255).to(torch.uint8)


def crop_windows(height: int, width: int, crops: CropsConfig) -> list[list[Window]]:
    """The windows of a photograph at each scale, as a section says; see `method.multicrop`."""
    geometry, size, stride = crops.geometry, crops.size, crops.stride
    return windows(height, width, crops.scales, geometry=geometry, size=size, stride=stride)


def cut_windows(
    image_13HW: torch.Tensor, of_scale: Sequence[Window], geometry: Geometry, size: int
) -> Iterator[torch.Tensor]:
    """The pixels of windows of one scale.

    Args:
        image_13HW: uint8 RGB.
        of_scale: windows of this image; see `method.multicrop.windows`.
        geometry: `paper`: the image is resized to the scale once, then cut. `released`: each
            window is cut from the image itself and stretched to `size` on both sides.
        size: S.

    Yields:
        uint8 [1, 3, S, S]; with `paper` what the window holds, at most S on a side.

    Source: paper 3.5; released code.
    """
    scaled = None
    for window in of_scale:
        if geometry == "released":
            rows, columns = window.original.slices
            yield resize_views(image_13HW[:, :, rows, columns], size, size)
            continue
        if scaled is None:
            scaled = resize_views(image_13HW, window.scaled_height, window.scaled_width)
        rows, columns = window.scaled.slices
        yield scaled[:, :, rows, columns]
