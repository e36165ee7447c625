"""Hours on cards that are not here: operations and views counted, and arithmetic."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pmm_ray.commands.plan.cards import CARDS, EFFICIENCY, Card, seconds_on
from pmm_ray.commands.plan.computed import _cam_views, _predict_views, gpu_hours
from pmm_ray.commands.plan.estimate import Cost
from pmm_ray.commands.plan.table import card_table
from pmm_ray.config import CamsConfig, PredictConfig, RunConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.nets.crop_cams import CropCams, Photograph
from pmm_ray.nets.operations import operations
from pmm_ray.nets.scale_cams import ScaleCams

from ..networks import mean_probabilities

CPU = torch.device("cpu")
SPACE = LabelSpace.from_names(("background", "disc", "bar"))
SIZE = (90, 130)


def test_an_operation_is_bound_by_arithmetic_or_by_memory() -> None:
    card = Card(bfloat16=100, float32=10, bandwidth=1000)
    arithmetic, memory = (1e12, 1.0), (0.0, 1e9)
    half = (1e12 / 100e12 + 2e9 / 1000e9) / EFFICIENCY
    assert seconds_on(card, [arithmetic, memory], bfloat16=True) == pytest.approx(half)
    whole = (1e12 / 10e12 + 4e9 / 1000e9) / EFFICIENCY
    assert seconds_on(card, [arithmetic, memory], bfloat16=False) == pytest.approx(whole)
    old = card._replace(bfloat16=None)
    assert seconds_on(old, [arithmetic, memory], bfloat16=True) == pytest.approx(whole)


def test_operations_are_counted_without_computing_them() -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=2, bias=False), nn.ReLU())
    conv, relu = operations(network, (2, 4, 10_000, 10_000))
    pixels = 2 * 10_000**2
    assert conv == (2 * pixels * 8 * 2 * 9, pixels * (4 + 8) + 8 * 2 * 9)
    assert relu == (0, pixels * 2 * 8)


class Recorder(nn.Module):
    """Notes the size of every view that it is asked about."""

    input_mean = (0.0, 0.0, 0.0)
    input_std = (1.0, 1.0, 1.0)
    num_foreground = 3
    align_corners = False
    outputs = None

    def __init__(self) -> None:
        super().__init__()
        self.views: Counter[tuple[int, int]] = Counter()
        self.description = self

    def cam_scores(self, images_B3HW: Tensor, *_: Any) -> Tensor:
        batch, _, height, width = images_B3HW.shape
        self.views[height, width] += batch
        return images_B3HW

    encode_decode = cam_scores


@pytest.mark.parametrize("kind", ["multi_scale", "multi_crop"])
@pytest.mark.parametrize("max_long", [100, 1024])
def test_the_views_of_cams_are_those_of_the_stage(kind: Any, max_long: int) -> None:
    crops: Any = {"scales": [0.75, 1.5], "size": 64, "stride": 48}
    config = CamsConfig(kind=kind, max_long=max_long, scales=(0.5, 1.5), crops=crops)
    network: Any = Recorder()
    image = np.zeros((*SIZE, 3), np.uint8)
    if kind == "multi_scale":
        ScaleCams(network, config, CPU)(image, [1])
    else:
        shrunk = image[: round(90 * min(1, max_long / 130)), :max_long]
        list(CropCams(network, config, CPU)([Photograph(0, shrunk, [1], (9, 9))]))
    assert network.views == _cam_views(config, *SIZE)


@pytest.mark.parametrize("mode", ["slide", "whole"])
def test_the_views_of_predictions_are_those_of_the_stage(
    mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = PredictConfig(
        mode=mode, ratios=(0.5, 1.0, 2.0), resize_base=(160, 80), crop_size=64, stride=48
    )
    network = Recorder()
    monkeypatch.setattr("pmm_ray.nets.segmenter.Description", Recorder)
    mean_probabilities(np.zeros((*SIZE, 3), np.uint8), network, config, CPU)
    assert network.views == _predict_views(config, *SIZE)


def hours(**sections: Any) -> dict[str, Any]:
    sections.setdefault("segmenter", {"channels": 8, "batch_size": 4, "iterations": 100})
    sections["predict"] = {"ratios": [1.0]}
    sections["cams"] = {"scales": [1.0], **sections.get("cams", {})}
    sections.setdefault("classifier", {"epochs": 3, "batch_size": 10, "crop_size": 64})
    costs = [
        Cost("start"),
        Cost("train_classifier", 100),
        Cost("make_cams", 200),
        Cost("make_masks", 100),
        Cost("train_segmenter-r0", 100),
        Cost("predict_masks-r1", 100),
        Cost("predict_masks-r1-val", 50),
        Cost("predict_masks-r2", timed=False),
    ]
    return gpu_hours(RunConfig.model_validate(sections), costs, SIZE, SPACE)


def test_every_stage_with_a_network_has_hours_for_every_card() -> None:
    found = hours(cams={"precision": "float32"})
    assert list(found) == [
        *("train_classifier", "make_cams", "train_segmenter-r0"),
        *("predict_masks-r1", "predict_masks-r1-val"),
    ]
    for of_card in found.values():
        assert of_card.keys() == CARDS.keys()
        assert of_card["H100"] < of_card["A100"] < of_card["T4"]
    relabel, val = found["predict_masks-r1"], found["predict_masks-r1-val"]
    assert val["L4"] == pytest.approx(relabel["L4"] / 2)
    rounded = hours()
    assert rounded["make_cams"]["T4"] == found["make_cams"]["T4"]  # it has no bfloat16
    assert rounded["make_cams"]["A100"] < found["make_cams"]["A100"]
    longer = hours(classifier={"epochs": 6, "batch_size": 10, "crop_size": 64})
    ratio = longer["train_classifier"]["L4"] / found["train_classifier"]["L4"]
    assert ratio == pytest.approx(2)


def test_a_network_that_cannot_be_built_is_named() -> None:
    classifier = {"backbone": "scalenet50"}  # its channels stand in its file alone
    found = hours(classifier=classifier, masks={"fused": True, "alpha": 5})
    for stage in ("train_classifier", "make_cams", "make_masks"):
        assert "no built-in channel table" in found[stage]
    columns = [list(column.cells) for column in card_table(found).columns]
    assert columns[0] == list(found)
    assert str(columns[1][0]).startswith("not computed: CannotRunError")
