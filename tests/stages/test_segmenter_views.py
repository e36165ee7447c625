"""The segmenter's views of a photograph: sizes, windows as mmsegmentation cuts them, the mean."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from mmengine import ConfigDict
from torch import nn

from pmm_ray.config import PredictConfig, SegmenterConfig
from pmm_ray.config.backbones import IMAGENET_MEAN, IMAGENET_STD
from pmm_ray.nets.segmenter import Description, build_segmenter, description_of
from pmm_ray.nets.segmenter_views import view_size, window_starts
from pmm_ray.nets.views import normalise_views
from pmm_ray.runtime.core.errors import RowError

from ..networks import mean_probabilities

CPU = torch.device("cpu")


class Threshold(nn.Module):
    """Class 1 where an image is bright, as an mmseg model would say it: logits of the input."""

    description = Description({}, (), None, IMAGENET_MEAN, IMAGENET_STD)

    def encode_decode(self, inputs: torch.Tensor, metas: list[dict[str, Any]]) -> torch.Tensor:
        bright = inputs.mean(1, keepdim=True)
        return torch.cat([-bright, bright], 1)


@pytest.fixture(scope="module")
def small_net() -> nn.Module:
    config = SegmenterConfig(channels=8, output_stride=16, auxiliary_weight=0)
    torch.manual_seed(0)
    net = build_segmenter(config, 5, 255).eval()
    net.get_submodule("decode_head.conv_seg").weight.data *= 100  # an untrained head says nothing
    return net


@pytest.mark.parametrize(
    ("size", "windows"), [((70, 130), 1), ((70, 130), 4), ((64, 64), 2), ((40, 100), 3)]
)
def test_windows_are_those_of_mmsegmentation(
    small_net: nn.Module, size: tuple[int, int], windows: int
) -> None:
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), np.uint8)
    values = {"ratios": [1.0], "flip": False, "resize_base": sorted(size), "crop_size": 64}
    values |= {"stride": 40, "pass_pixels": windows * 64**2}
    config = PredictConfig.model_validate(values)
    about = description_of(small_net)
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    view = normalise_views(pixels, about.input_mean, about.input_std)
    test_cfg = {"mode": "slide", "crop_size": (64, 64), "stride": (40, 40)}
    small_net.test_cfg = ConfigDict(test_cfg)  # type: ignore[assignment]
    with torch.inference_mode():
        logits = small_net.slide_inference(view, [{"img_shape": size}])  # type: ignore[operator]
    assert logits.std((2, 3)).min() > 0.1
    ours = mean_probabilities(image, small_net, config, CPU)
    np.testing.assert_allclose(ours, logits.softmax(1)[0].numpy(), rtol=0, atol=1e-4)


def test_a_view_inside_one_window_is_seen_whole(small_net: nn.Module) -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 50, 3)).astype(np.uint8)
    common = {"ratios": (1.0, 1.5), "resize_base": (80, 60)}
    slide = mean_probabilities(image, small_net, PredictConfig(**common), CPU)
    whole = mean_probabilities(image, small_net, PredictConfig(mode="whole", **common), CPU)
    np.testing.assert_array_equal(slide, whole)
    cut = PredictConfig(crop_size=48, stride=32, **common)
    assert np.abs(mean_probabilities(image, small_net, cut, CPU) - whole).max() > 1e-3


def test_windows_cover_a_side_and_end_with_it() -> None:
    assert window_starts(512, 512, 480) == [0]
    assert window_starts(100, 512, 480) == [0]
    assert window_starts(513, 512, 480) == [0, 1]
    assert window_starts(992, 512, 480) == [0, 480]
    assert window_starts(1195, 512, 480) == [0, 480, 683]
    with pytest.raises(ValueError, match="stride 480 is larger than crop_size 321"):
        PredictConfig(crop_size=321)


def test_views_fit_the_base_in_both_directions() -> None:
    assert view_size(375, 500, (2048, 512), 1.0) == (512, 683)
    assert view_size(500, 375, (2048, 512), 0.5) == (341, 256)
    # a very long image is bound by the long side
    assert view_size(100, 1000, (2048, 512), 1.0) == (205, 2048)
    assert view_size(1, 1, (64, 32), 0.01) == (1, 1)


def test_probabilities_are_a_mean_over_views_that_were_turned_back() -> None:
    image = np.zeros((20, 30, 3), np.uint8)
    image[:, 20:] = 255
    config = PredictConfig(ratios=(0.5, 1.0), resize_base=(60, 40))
    mean = mean_probabilities(image, Threshold(), config, CPU)
    assert mean.shape == (2, 20, 30)
    np.testing.assert_allclose(mean.sum(0), 1, atol=1e-5)
    np.testing.assert_array_equal(mean[:, :, :18].argmax(0), 0)
    np.testing.assert_array_equal(mean[:, :, 22:].argmax(0), 1)


def test_an_output_that_is_not_finite_is_an_error_row() -> None:
    class Broken(Threshold):
        def encode_decode(self, inputs: torch.Tensor, metas: list[dict[str, Any]]) -> torch.Tensor:
            return super().encode_decode(inputs, metas) * float("nan")

    image = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(RowError) as caught:
        mean_probabilities(image, Broken(), PredictConfig(), CPU)
    assert caught.value.kind == "nonfinite"
