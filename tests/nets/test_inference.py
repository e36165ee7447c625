"""Networks as stages ask them: precision and memory layout, here on a CPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pmm_ray.config import CamsConfig, ClassifierConfig, InferenceConfig, PredictConfig
from pmm_ray.config.base import section_hash
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.nets.inference import for_inference, in_bfloat16, in_channels_last
from pmm_ray.nets.registry import build_classifier
from pmm_ray.nets.scale_cams import ScaleCams
from pmm_ray.nets.segmenter import build_segmenter, description_of
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.tables import read_table
from pmm_ray.runtime.rows.cams import decode_cam
from pmm_ray.stages.make_cams import cam_worker
from pmm_ray.stages.predict_masks import Scorer

from ..training import photographs_of
from .segmenter_models import CONFIG

CPU = torch.device("cpu")
ASKED = {
    "float32": {"precision": "float32"},
    "bfloat16": {"precision": "bfloat16"},
    "channels_last": {"precision": "float32", "channels_last": True},
}


class Blurred(nn.Module):
    """Class i scores by the blurred colour i: a small network whose maps are smooth."""

    input_mean = (0.5, 0.5, 0.5)
    input_std = (0.25, 0.25, 0.25)
    num_foreground = 3
    align_corners = False

    def __init__(self) -> None:
        super().__init__()
        self.blur = nn.Conv2d(3, 3, 9, stride=4, padding=4, groups=3, bias=False)
        self.mix = nn.Conv2d(3, 3, 1, bias=False)
        nn.init.constant_(self.blur.weight, 1 / 81)
        nn.init.eye_(self.mix.weight[..., 0, 0])

    def cam_scores(self, images_B3HW: Tensor, labels_BC: Tensor) -> Tensor:
        scores: Tensor = self.mix(self.blur(images_B3HW))
        return scores


def cams(**asked: Any) -> NDArray[np.float32]:
    """[3, 24, 32] of a photograph that changes slowly."""
    y, x = np.mgrid[0:96, 0:128]
    planes = [np.sin(x / 20), np.cos(y / 15), np.sin((x + y) / 30)]
    image = np.asarray(127 + 120 * np.stack(planes, 2)).astype(np.uint8)
    config = CamsConfig(scales=(1.0, 1.5), **asked)
    network: Any = for_inference(Blurred(), "cam_scores", config, CPU)
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    return ScaleCams(network, config, CPU)(image, [1, 2, 3]).astype(np.float32)


def test_bfloat16_gives_nearly_the_same_maps() -> None:
    plain, rounded, moved = (cams(**asked) for asked in ASKED.values())
    assert not np.array_equal(rounded, plain)
    np.testing.assert_allclose(rounded, plain, atol=0.02)
    assert (rounded.argmax(0) == plain.argmax(0)).mean() >= 0.99
    np.testing.assert_allclose(moved, plain, atol=2e-3)
    np.testing.assert_array_equal(cams(), plain)  # what a CPU does unasked


def test_what_a_network_returns_is_float32() -> None:
    for asked in ASKED.values():
        network = build_classifier(ClassifierConfig(weights="none"), 3)
        for_inference(network, "cam_scores", InferenceConfig.model_validate(asked), CPU)
        with torch.inference_mode():
            scores = network.cam_scores(torch.randn(2, 3, 32, 32))
        assert scores.dtype == torch.float32
        # a number of bfloat16 has eight bits of mantissa
        assert torch.equal(scores, scores.bfloat16().float()) == (asked["precision"] == "bfloat16")


@pytest.mark.parametrize(
    ("asked", "device", "has_it", "bfloat16", "channels_last"),
    [
        ({}, "cpu", True, False, False),
        ({}, "cuda", True, True, True),
        ({}, "cuda", False, False, False),
        ({"precision": "float32"}, "cuda", True, False, False),
        ({"precision": "bfloat16"}, "cpu", False, True, False),
        ({"channels_last": False}, "cuda", True, True, False),
        ({"channels_last": True}, "cpu", True, False, True),
    ],
)
def test_only_gpus_that_have_bfloat16_compute_in_it_unasked(
    asked: Any,
    device: str,
    has_it: bool,
    bfloat16: bool,
    channels_last: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it)
    config = InferenceConfig(**asked)
    assert in_bfloat16(config, torch.device(device)) is bfloat16
    assert in_channels_last(config, torch.device(device)) is channels_last


@pytest.mark.parametrize("section", [CamsConfig, PredictConfig])
def test_a_precision_that_is_asked_for_is_another_stage(section: Any) -> None:
    assert not {"precision", "channels_last"} & section().identity().keys()
    changes = [{}, {"precision": "bfloat16"}, {"channels_last": True}]
    hashes = {section_hash(section(**change)) for change in changes}
    assert len(hashes) == len(changes)
    # what was computed before there was a choice
    assert section_hash(section(precision="float32")) == section_hash(section())


def test_cams_are_made_as_their_section_says(shapes: Manifest, tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = ClassifierConfig()
    model = str(tmp_path / "model.pt")
    meta = {"config": config.model_dump(mode="json"), "num_foreground": 3}
    save_model(model, "classifier", build_classifier(config, 3), meta)
    row = read_table(shapes.uri).to_pylist()[0] | {"labels": [1, 2, 3]}
    photographs = photographs_of(shapes)
    for kind in ("multi_scale", "multi_crop"):
        maps = []
        for precision in ("float32", "bfloat16"):
            values = {"kind": kind, "scales": [1.0], "precision": precision}
            values["crops"] = {"scales": [1.0], "size": 64, "stride": 48}
            worker = cam_worker(model, CamsConfig.model_validate(values), photographs, False)
            (made,) = worker([{"manifest": row}])
            assert isinstance(made, dict)
            maps.append(decode_cam(made))
        assert maps[0].any()
        assert not np.array_equal(*maps)


def test_segmenters_are_asked_as_their_section_says(shapes: Manifest, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = build_segmenter(CONFIG.model_copy(update={"weights": "imagenet"}), 4, 255)
    uri = str(tmp_path / "model.pt")
    save_model(uri, "segmenter", network, description_of(network).meta())
    row = read_table(shapes.uri).to_pylist()[0]
    scores = []
    for precision in ("float32", "bfloat16"):
        values = {"ratios": [1.0], "resize_base": [96, 96], "precision": precision}
        config = PredictConfig.model_validate(values)
        scores.append(Scorer(uri, config, photographs_of(shapes), False)(row)[2])
    plain, rounded = scores
    assert rounded.dtype == np.float32
    assert not np.array_equal(plain, rounded)
    np.testing.assert_allclose(rounded, plain, atol=0.05)
    np.testing.assert_allclose(rounded.sum(0), 1, atol=1e-5)  # a softmax of float32
