"""The stages that ask a network, as `gpu.py` measures them: on one photograph, network loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gpu_measure import Work

from pmm_ray.config import CamsConfig, ClassifierConfig, CropsConfig, PredictConfig, SegmenterConfig
from pmm_ray.nets.crop_cams import CropCams, Photograph
from pmm_ray.nets.inference import for_inference
from pmm_ray.nets.registry import build_classifier
from pmm_ray.nets.scale_cams import ScaleCams, stored_size
from pmm_ray.nets.segmenter import build_segmenter
from pmm_ray.nets.segmenter_views import mean_probabilities

CLASSES = 20
"""VOC's, without the background."""
LABELS = [8, 15]


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    photograph: tuple[int, int]
    """Rows and columns, px."""
    scales: tuple[float, ...]
    crops: CropsConfig
    ratios: tuple[float, ...]
    resize_base: tuple[int, int]
    window: int
    """Of the segmenter, px."""
    channels: int
    """Width of the segmenter's head."""
    training_crop: int
    """Of the classifier; the segmenter's is `window`, px."""
    batch: int
    """Images of a training step."""
    steps: int
    bare_steps: int
    """Of a loop of torch alone, between two waits for the device."""
    drawn: int
    """Photographs to train on."""
    matrix: int
    copied: int
    seconds: float
    """For each measurement."""
    processes: int
    """Of a training's loader."""


# a usual photograph of VOC, and what `recipes/voc12.yaml` does with it
FULL = Size(
    photograph=(375, 500),
    scales=(0.5, 1.0, 1.5, 2.0),
    crops=CropsConfig(),
    ratios=(0.5, 0.75, 1.0, 1.25, 1.5, 1.75),
    resize_base=(2048, 512),
    window=512,
    channels=512,
    training_crop=448,
    batch=8,
    steps=15,
    bare_steps=4,
    drawn=64,
    matrix=8192,
    copied=2**28,
    seconds=2.0,
    processes=8,
)
TINY = Size(
    photograph=(48, 64),
    scales=(0.5, 1.0),
    crops=CropsConfig(scales=(1.0,), size=32, stride=24),
    ratios=(1.0,),
    resize_base=(96, 48),
    window=32,
    channels=16,
    training_crop=32,
    batch=2,
    steps=5,
    bare_steps=1,
    drawn=8,
    matrix=64,
    copied=2**12,
    seconds=0.0,
    processes=0,
)


@dataclass(frozen=True)
class Way:
    """How a network is asked, or trained."""

    name: str
    bfloat16: bool = False
    """And channels last."""
    views: int = 2
    """Views per pass, where the stage lets one choose; 2: a window and its mirror image."""
    compiled: bool = False

    def inference(self) -> dict[str, Any]:
        """The keys of a stage's section."""
        precision = "bfloat16" if self.bfloat16 else "float32"
        return {"precision": precision, "channels_last": self.bfloat16}


FLOAT32 = Way("float32")
BFLOAT16 = Way("bfloat16", bfloat16=True)
BATCHED = Way("bfloat16, 32 views", bfloat16=True, views=32)
COMPILED = Way("bfloat16, 32 views, compiled", bfloat16=True, views=32, compiled=True)


def photograph(size: Size) -> np.ndarray[Any, Any]:
    """RGB noise; it changes no time."""
    return np.random.default_rng(0).integers(0, 256, (*size.photograph, 3), np.uint8)


def classifier(backbone: str) -> Any:
    """SEAM's network with random weights, as `train_classifier` builds it."""
    torch.manual_seed(0)
    values = {"kind": "seam", "backbone": backbone, "weights": "none"}
    return build_classifier(ClassifierConfig.model_validate(values), CLASSES)


def compiled(network: Any, method: str) -> None:
    """Compile what the stage calls."""
    setattr(network, method, torch.compile(getattr(network, method)))


def multi_scale_cams(backbone: str, way: Way, size: Size, device: torch.device) -> Work:
    """`make_cams` of whole images: eight views of four sizes."""
    config = CamsConfig(scales=size.scales, **way.inference())
    network = for_inference(classifier(backbone), "cam_scores", config, device)
    image = photograph(size)
    cams = ScaleCams(network, config, device)
    return lambda: cams(image, LABELS)


def multi_crop_cams(backbone: str, way: Way, size: Size, device: torch.device) -> Work:
    """`make_cams` of windows, all of one size."""
    values = {"kind": "multi_crop", "crops": size.crops, "views": way.views, **way.inference()}
    config = CamsConfig.model_validate(values)
    network = for_inference(classifier(backbone), "cam_scores", config, device)
    if way.compiled:
        compiled(network, "cam_scores")
    stored = stored_size(*size.photograph, config.stride)
    subject = Photograph(0, photograph(size), LABELS, stored)
    cams = CropCams(network, config, device)

    def work() -> None:
        for _, cam in cams([subject]):
            if isinstance(cam, Exception):
                raise cam

    return work


def predictions(backbone: str, way: Way, size: Size, device: torch.device) -> Work:
    """`predict_masks` up to the probabilities: windows of views of six sizes."""
    torch.manual_seed(0)
    # with frozen norms random weights keep their range
    section = SegmenterConfig(
        backbone=backbone, weights="none", freeze_norm=True, channels=size.channels
    )
    network: Any = build_segmenter(section, 1 + CLASSES, 255)
    config = PredictConfig(
        ratios=size.ratios,
        resize_base=size.resize_base,
        crop_size=size.window,
        stride=size.window - size.window // 16,
        windows_at_once=way.views,
        **way.inference(),
    )
    network = for_inference(network, "encode_decode", config, device)
    image = photograph(size)
    return lambda: mean_probabilities(image, network, config, device)


STAGES: dict[str, tuple[Callable[[str, Way, Size, torch.device], Work], tuple[Way, ...]]] = {
    "multi-scale CAMs": (multi_scale_cams, (FLOAT32, BFLOAT16)),
    "multi-crop CAMs": (multi_crop_cams, (FLOAT32, BFLOAT16, BATCHED)),
    "predict": (predictions, (FLOAT32, BFLOAT16, BATCHED)),
}
"""What each stage is measured in; views of one size alone are worth a compiler."""
