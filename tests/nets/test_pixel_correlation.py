"""The pixel correlation module: what it mixes, what it must not train, how much memory it takes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pmm_ray.nets import seam
from pmm_ray.nets.seam import PixelCorrelation, correlate, dominant_maps

# two pixels; background, two foreground classes
CAM = torch.tensor([[[[9.0, 9.0]], [[4.0, 1.0]], [[-1.0, 2.0]]]])


def maps_and_keys(seed: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return (
        torch.rand(batch, 4, 5, 7, generator=draw),
        torch.randn(batch, 6, 5, 7, generator=draw),
    )


def test_maps_are_divided_by_their_maximum_and_the_strongest_wins() -> None:
    got = dominant_maps(CAM)
    # class 1: 1 and 1/4, class 2: 0 and 1; pixel 1 keeps class 1, pixel 2 class 2
    want = torch.tensor([[[[0.0, 0.0]], [[1.0, 0.0]], [[0.0, 1.0]]]])
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


def test_the_background_is_what_the_strongest_class_leaves() -> None:
    cam = torch.tensor([[[[0.0, 5.0]], [[4.0, 1.0]], [[-1.0, -2.0]]]])
    got = dominant_maps(cam)
    want = torch.tensor([[[[0.0, 0.75]], [[1.0, 0.25]], [[0.0, 0.0]]]])
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


def test_only_the_image_s_labels_compete_where_asked() -> None:
    first_only = torch.tensor([[1.0, 0.0]])
    got = dominant_maps(CAM, first_only)
    want = torch.tensor([[[[0.0, 0.75]], [[1.0, 0.25]], [[0.0, 0.0]]]])
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)
    every = dominant_maps(CAM, torch.ones(1, 2))
    assert torch.equal(every, dominant_maps(CAM))


def test_each_image_is_normalised_by_itself() -> None:
    pair = torch.cat([CAM, 10 * CAM])
    got = dominant_maps(pair)
    torch.testing.assert_close(got[0], got[1], atol=2e-5, rtol=0)


def test_a_pixel_becomes_the_weighted_mean_of_all() -> None:
    """Against the definition, pixel by pixel."""
    maps, keys = maps_and_keys(0)
    got = correlate(maps, keys)
    for image in range(2):
        flat_maps, flat_keys = maps[image].flatten(1), keys[image].flatten(1)
        for pixel in range(35):
            weights = F.cosine_similarity(flat_keys[:, pixel : pixel + 1], flat_keys, dim=0)
            weights = weights.clamp(min=0)
            want = (flat_maps * weights).sum(1) / weights.sum()
            torch.testing.assert_close(got[image].flatten(1)[:, pixel], want, atol=1e-4, rtol=1e-4)


def test_alike_pixels_share_and_unlike_ones_do_not() -> None:
    maps = torch.tensor([[[[1.0, 0.0, 0.3]]]])
    keys = torch.tensor([[[[2.0, 5.0, 0.0]], [[0.0, 0.0, 1.0]]]])
    got = correlate(maps, keys)
    torch.testing.assert_close(got, torch.tensor([[[[0.5, 0.5, 0.3]]]]), atol=1e-4, rtol=0)


def test_pieces_give_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    maps, keys = maps_and_keys(1)
    whole = correlate(maps, keys)
    for values in (1, 35 * 2 * 4):
        monkeypatch.setattr(seam, "_CHUNK_VALUES", values)
        with torch.no_grad():
            pieces = correlate(maps, keys)
        torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=1e-5)


def test_half_precision_keeps_its_sums() -> None:
    maps, keys = maps_and_keys(2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = correlate(maps.bfloat16(), keys.bfloat16())
    want = correlate(maps.bfloat16().float(), keys.bfloat16().float())
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-5)


def test_only_the_three_convolutions_learn() -> None:
    torch.manual_seed(0)
    module = PixelCorrelation(5, 6)
    inputs = [
        torch.randn(2, 4, 6, 6, requires_grad=True),
        torch.randn(2, 3, 48, 48, requires_grad=True),
        torch.randn(2, 5, 6, 6, requires_grad=True),
        torch.randn(2, 6, 3, 3, requires_grad=True),
    ]
    refined = module(*inputs)
    assert refined.shape == (2, 4, 6, 6)
    assert (refined >= 0).all()
    refined[:, 1].sum().backward()
    assert all(value.grad is None for value in inputs)
    for name in module.layers:
        gradient = module.get_submodule(name).weight.grad
        assert isinstance(gradient, Tensor)
        assert gradient.abs().sum() > 0


def test_gradients_agree_with_finite_differences() -> None:
    draw = torch.Generator().manual_seed(3)
    maps = torch.rand(1, 3, 2, 3, generator=draw)
    keys = torch.randn(1, 4, 2, 3, generator=draw)
    aim = torch.rand(1, 3, 2, 3, generator=draw)

    def loss(values: Tensor) -> Tensor:
        return (correlate(maps, values) * aim).sum()

    keys.requires_grad_()
    loss(keys).backward()
    assert keys.grad is not None
    step = 1e-2
    with torch.no_grad():
        for index in range(0, keys.numel(), 5):
            bump = torch.zeros(keys.numel())
            bump[index] = step
            up, down = (keys + sign * bump.reshape(keys.shape) for sign in (1, -1))
            slope = (loss(up) - loss(down)) / (2 * step)
            torch.testing.assert_close(keys.grad.flatten()[index], slope, atol=2e-3, rtol=2e-2)
