"""Views of several photographs in one pass: what each photograph gets is what it gets alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pmm_ray.config import CamsConfig, ClassifierConfig, PredictConfig, SegmenterConfig
from pmm_ray.nets import batches as module
from pmm_ray.nets.batches import Batches, Piece
from pmm_ray.nets.registry import build_classifier
from pmm_ray.nets.scale_cams import ScaleCams
from pmm_ray.nets.segmenter import build_segmenter
from pmm_ray.nets.segmenter_views import SegmenterViews, make_views

from ..networks import mean_probabilities

CPU = torch.device("cpu")
SIZES = [(50, 66), (66, 50), (50, 66), (44, 66), (50, 66), (66, 50)]
IMAGES = [
    np.random.default_rng(n).integers(0, 256, (*size, 3), np.uint8) for n, size in enumerate(SIZES)
]
TOGETHER = 10**6


class Passes:
    """Notes the sizes of the passes of a network."""

    def __init__(self, network: Callable[..., Tensor]) -> None:
        self.network = network
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, inputs: Tensor, *more: Any) -> Tensor:
        self.shapes.append((len(inputs), *inputs.shape[2:]))
        return self.network(inputs, *more)


@pytest.mark.parametrize("kind", ["plain", "seam"])
def test_multi_scale_cams_are_those_of_one_photograph_at_a_time(kind: str) -> None:
    torch.manual_seed(0)
    values = {"kind": kind, "output_stride": 32, "weights": "none", "pcm": {"gate_labels": True}}
    network: Any = build_classifier(ClassifierConfig.model_validate(values), 4).eval()
    norms = [norm for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)]
    for norm in norms:  # without statistics an untrained network sees nothing
        norm.train().momentum = 1.0
    with torch.no_grad():
        network.cam_scores(torch.randn(4, 3, 64, 64), torch.ones(4, 4))
    network.eval()
    passes = Passes(network.cam_scores)
    network.cam_scores = passes
    labels = [[1], [2, 4], [1, 3], [4], [2], [1, 2, 3, 4]]

    def scores(pixels: Any) -> list[tuple[int, NDArray[np.float32]]]:
        passes.shapes.clear()
        cams = ScaleCams(network, CamsConfig(scales=(0.5, 1.0), pass_pixels=pixels), CPU)
        images = (
            (n, cams.prepare(i, k)) for n, (i, k) in enumerate(zip(IMAGES, labels, strict=True))
        )
        return [(n, on_the_way.arrays()[0]) for n, on_the_way in cams.scores(images)]

    alone = scores("auto")
    assert {shape[0] for shape in passes.shapes} == {2}
    together = scores(TOGETHER)
    # three sizes of two scales
    assert sorted(passes.shapes) == [
        *[(2, 22, 33), (2, 44, 66), (4, 33, 25), (4, 66, 50), (6, 25, 33), (6, 50, 66)],
    ]
    assert [n for n, _ in together] == [n for n, _ in alone] == list(range(6))
    for (_, ours), (_, want) in zip(together, alone, strict=True):
        assert np.abs(want).max() > 0.1
        np.testing.assert_allclose(ours, want, rtol=0, atol=1e-4 * np.abs(want).max())


@pytest.fixture(scope="module")
def segmenter() -> nn.Module:
    torch.manual_seed(0)
    config = SegmenterConfig(channels=8, output_stride=16, auxiliary_weight=0)
    network = build_segmenter(config, 5, 255).eval()
    network.get_submodule("decode_head.conv_seg").weight.data *= 100
    return network


@pytest.mark.parametrize("mode", ["slide", "whole"])
@pytest.mark.parametrize("windows", [3, 100])
def test_probabilities_are_those_of_one_photograph_at_a_time(
    segmenter: nn.Module, mode: str, windows: int
) -> None:
    config = PredictConfig.model_validate(
        {"ratios": [0.5, 1.0], "resize_base": [160, 80], "mode": mode, "crop_size": 64}
        | {"stride": 48}
    )
    several = config.model_copy(update={"pass_pixels": windows * 64**2})
    photographs = ((n, make_views(i, config, CPU), i.shape[:2]) for n, i in enumerate(IMAGES))
    views = SegmenterViews(segmenter, several, CPU)
    found = list(views.probabilities(photographs))
    assert [n for n, _ in found] == list(range(6))
    for n, ours in found:
        want = mean_probabilities(IMAGES[n], segmenter, config, CPU)
        assert want.std() > 0.01
        np.testing.assert_allclose(ours.numpy(), want, rtol=0, atol=1e-4)
    counts = views.batches.counted()
    assert counts["views"] > counts["passes"] * 2
    assert counts["pixels"] <= counts["room"]


@dataclass
class Sum:
    """A photograph whose views are small squares of its number."""

    number: int
    sides: tuple[int, ...] = (2,)
    total: float = 0.0
    taken: list[int] = field(default_factory=list)
    held: int = 0

    def pieces(self) -> Iterator[Piece]:
        for side in self.sides:
            pixels = torch.full((1, 3, side, side), float(self.number))
            yield Piece((pixels,), partial(self.take, side))

    def take(self, side: int, output: Tensor) -> None:
        self.taken.append(side)
        self.total += float(output.mean())


def test_groups_are_of_one_size_and_photographs_keep_their_order() -> None:
    passes = Passes(lambda inputs: inputs)
    batches = Batches(passes, 4 * 2**2, CPU)
    photographs = [Sum(n, (4, 2) if n % 2 else (2, 3)) for n in range(6)]
    done = list(batches(photographs))
    assert [one.number for one in done] == list(range(6))
    assert [one.total for one in done] == [2.0 * n for n in range(6)]
    # of side 2 four to a pass; of side 3 one; of side 4 one
    assert passes.shapes.count((4, 2, 2)) == 1
    assert passes.shapes.count((2, 2, 2)) == 1
    assert passes.shapes.count((1, 3, 3)) == passes.shapes.count((1, 4, 4)) == 3
    assert batches.counted() == {
        "passes": 8,
        "views": 12,
        "pixels": 6 * 4 + 3 * 9 + 3 * 16,
        "room": 2 * 16 + 3 * 9 + 3 * 16,
    }
    assert batches.counted() == dict.fromkeys(("passes", "views", "pixels", "room"), 0)


def test_on_a_cpu_each_view_is_seen_at_once() -> None:
    passes = Passes(lambda inputs: inputs)
    batches = Batches(passes, "auto", CPU)
    taken: list[int] = []

    def photographs() -> Iterator[Sum]:
        for n in range(3):
            taken.append(n)
            yield Sum(n, (2, 2, 3))

    for done in batches(photographs()):
        assert taken[-1] == done.number
    assert passes.shapes == [(1, 2, 2), (1, 2, 2), (1, 3, 3)] * 3
    counts = batches.counted()
    assert (counts["passes"], counts["room"]) == (9, 0)
    assert batches.together == 1


@pytest.mark.parametrize("bound", ["photographs", "pixels", "held"])
def test_what_waits_is_bounded(bound: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Photographs of which no two share a size would wait for the end of the chunk."""
    if bound == "pixels":
        monkeypatch.setattr(module, "_WAITING", 1)
    if bound == "held":
        monkeypatch.setattr(module, "_HELD", 7)
    made = seen = taken = given = 0
    most = {"photographs": 0, "pixels": 0, "held": 0}

    def network(inputs: Tensor) -> Tensor:
        nonlocal seen
        seen += inputs[:, 0].numel()
        return inputs

    def photographs() -> Iterator[Sum]:
        nonlocal taken, made
        for n in range(1, 41):
            under_way = taken - given
            now = {"photographs": under_way, "pixels": made - seen, "held": 2 * under_way}
            most.update({name: max(most[name], value) for name, value in now.items()})
            taken, made = taken + 1, made + n**2
            yield Sum(n, (n,), held=2)

    batches = Batches(network, 20**2, CPU)
    for one in batches(photographs()):
        given += 1
        assert one.number == given
    assert given == 40
    limits = {"photographs": batches.together - 1, "pixels": 20**2, "held": 7}
    assert 0.8 * limits[bound] < most[bound] <= limits[bound]


def test_a_photograph_without_numbers_spoils_no_other() -> None:
    def network(inputs: Tensor) -> Tensor:
        return torch.where(inputs == 2, torch.nan, inputs)

    done = list(Batches(network, TOGETHER, CPU)([Sum(n) for n in range(5)]))
    assert np.isnan(done[2].total)
    assert [one.total for one in done if one.number != 2] == [0, 1, 3, 4]


def test_where_memory_ran_out_later_passes_are_smaller() -> None:
    tried: list[int] = []

    def network(inputs: Tensor) -> Tensor:
        tried.append(len(inputs))
        if len(inputs) > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return inputs

    batches = Batches(network, 8 * 2**2, CPU)
    done = list(batches([Sum(n) for n in range(16)]))
    assert [one.total for one in done] == list(range(16))
    assert tried == [8, 4, 4, 4, 4]
    assert batches.counted()["room"] == 16 * 2**2
