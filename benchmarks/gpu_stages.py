"""The stages that ask a network, as `gpu.py` measures them: on photographs, network loaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from gpu_measure import Work

from pmm_ray.config import CamsConfig, ClassifierConfig, CropsConfig, PredictConfig, SegmenterConfig
from pmm_ray.nets.crop_cams import CropCams, Photograph
from pmm_ray.nets.inference import for_inference
from pmm_ray.nets.registry import build_classifier
from pmm_ray.nets.scale_cams import ScaleCams, stored_size
from pmm_ray.nets.segmenter import build_segmenter
from pmm_ray.nets.segmenter_views import SegmenterViews, checked, make_views

CLASSES = 20
"""VOC's, without the background."""
LABELS = [8, 15]


@dataclass(frozen=True)
class Size:
    """How large everything is."""

    photograph: tuple[int, int]
    """Rows and columns, px."""
    photographs: int
    """Of one call; of multi-crop CAMs one."""
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
    photographs=8,
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
    photographs=2,
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
    batched: bool = False
    """Whether many views share a pass, as a stage has it on a GPU."""
    compiled: bool = False

    def inference(self, pair: int = 1) -> dict[str, Any]:
        """The keys of a stage's section.

        Args:
            pair: pixels of a view and its mirror image, where they do not go together anyway.
        """
        precision = "bfloat16" if self.bfloat16 else "float32"
        pixels = 32 * 448**2 if self.batched else pair
        return {"precision": precision, "channels_last": self.bfloat16, "pass_pixels": pixels}


FLOAT32 = Way("float32")
BFLOAT16 = Way("bfloat16", bfloat16=True)
BATCHED = Way("bfloat16, batches", bfloat16=True, batched=True)
COMPILED = Way("bfloat16, batches, compiled", bfloat16=True, batched=True, compiled=True)


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
    """`make_cams` of whole images: eight views of four sizes of each."""
    config = CamsConfig(scales=size.scales, **way.inference())
    network = for_inference(classifier(backbone), "cam_scores", config, device)
    image = photograph(size)
    cams = ScaleCams(network, config, device)

    def work() -> None:
        images = ((None, cams.prepare(image, LABELS)) for _ in range(size.photographs))
        for _, on_the_way in cams.scores(images):
            (scores_KHW,) = on_the_way.arrays()
            cams.stored(scores_KHW, stored_size(*size.photograph, config.stride))

    return work


def multi_crop_cams(backbone: str, way: Way, size: Size, device: torch.device) -> Work:
    """`make_cams` of windows, all of one size."""
    keys = way.inference(pair=2 * size.crops.size**2)
    values = {"kind": "multi_crop", "crops": size.crops, **keys}
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
    """`predict_masks` up to the probabilities: windows of views of six sizes of each."""
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
        **way.inference(),
    )
    network = for_inference(network, "encode_decode", config, device)
    image, views = photograph(size), SegmenterViews(network, config, device)

    def work() -> None:
        images = (
            (None, make_views(image, config, device), size.photograph)
            for _ in range(size.photographs)
        )
        for _, mean_CHW in views.probabilities(images):
            checked(mean_CHW.cpu().numpy())

    return work


class Asked(NamedTuple):
    """A stage."""

    make: Callable[[str, Way, Size, torch.device], Work]
    ways: tuple[Way, ...]
    """What it is measured in; views of one size alone are worth a compiler."""
    several: bool = True
    """Whether a call takes `Size.photographs`; else one, whose windows fill batches."""


EAGER = (FLOAT32, BFLOAT16, BATCHED)
STAGES = {
    "multi-scale CAMs": Asked(multi_scale_cams, EAGER),
    "multi-crop CAMs": Asked(multi_crop_cams, EAGER, several=False),
    "predict": Asked(predictions, EAGER),
}
