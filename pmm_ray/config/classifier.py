"""The sections of the classifiers, their windows and their activation maps (paper 3.5, 4.1)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pmm_ray.config.backbones import BackboneName, Triple, backbone_row
from pmm_ray.config.base import Auto, IntRange, Natural, Positive, Scale, Section, execution


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
    """From one window to the next, px."""


class ClassifierConfig(Section):
    """The image classifier whose activation maps become masks (paper 3.5, 4.1)."""

    backbone: BackboneName = "efficientnet_lite0"
    """Network; `efficientnet_lite0` is the small one for CPUs. `module:ROW`: a row of yours."""
    weights: str = "imagenet"
    """`imagenet`, `seam`, `none`, or a path to a state dict. Names stand for public files below
    `$PMM_WEIGHTS`; `imagenet` of `efficientnet_lite0` comes with an installed package."""
    kind: Literal["plain", "seam"] = "plain"
    """`plain`: a class head and its loss. `seam`: the siamese network with pixel correlation and
    the losses of SEAM (reference: SEAM; the paper's baseline)."""
    pcm: PcmConfig = PcmConfig()
    """Pixel correlation module, for `seam`."""
    output_stride: Literal[8, 16, 32] = 16
    """Input px per feature px, of `efficientnet_lite0`; the others have 8."""
    resnet38_dilation: Literal[2, 4] = 4
    """Dilation of the last block of `resnet38` (released classifier: 2; everyone else: 4)."""
    epochs: Positive = 8
    """Passes over the training split."""
    batch_size: Positive = 16
    """Images per optimiser step, over all workers."""
    learning_rate: float = Field(0.01, gt=0)
    """SGD step size of the backbone at step 0."""
    head_multiplier: float = Field(10.0, gt=0)
    """The head's learning rate over the backbone's (released code: 10)."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD momentum. The released code's effective value is 5e-4 (a swapped argument)."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty on convolution weights."""
    poly_power: float = Field(0.9, gt=0)
    """lr = lr0 * (1 - step / steps) ** power."""
    resize_long: IntRange = (256, 416)
    """The long side is drawn from this range, px (released code: 448..768)."""
    crop_size: Positive = 320
    """Square training crop, px (paper: 448); smaller images are padded with the mean."""
    color_jitter: float = Field(0.3, ge=0, le=1)
    """Strength of brightness, contrast and saturation jitter, a third of it for the hue
    (released code: 0.3)."""
    freeze_norm: bool = True
    """Keep BatchNorm at its pretrained statistics (released code: yes)."""
    freeze_first: bool = False
    """Keep the first layers as pretrained (released code: yes; `efficientnet_lite0` has none)."""
    clip_norm: float | None = Field(None, gt=0)
    """Gradients are scaled down to this norm over all parameters; empty: never."""
    accumulate: Positive = 1
    """Forward and backward passes per optimiser step: the batch is kept on fewer GPUs."""
    amp: bool = True
    """bfloat16 autocast on GPUs; CPUs compute in float32."""
    channels_last: bool = False
    """Memory layout of images and features; faster on GPUs with tensor cores."""
    compile: bool = False
    """Compile the network with torch.compile."""
    workers: Positive | Auto = "auto"
    """Ray Train workers; `auto`: one per GPU, or 2 on CPUs (1 on a single core)."""
    threads_per_worker: Positive = execution(1)
    """Torch threads and CPUs of one worker on a CPU cluster."""
    loader_processes: Natural | Auto = execution("auto")
    """Decoding processes per worker, a CPU each; 0 decodes in the worker itself. `auto`: on GPUs
    as many as there are CPUs for, up to 8; on CPUs 0."""
    checkpoint_seconds: float = execution(60.0, gt=0)
    """A checkpoint is written about this often, s."""
    max_failures: int = execution(3, ge=0)
    """How often a lost worker or node is replaced before the run gives up."""
    validation_images: int = execution(100, ge=0)
    """Held-out images that are scored after every epoch (mean average precision, and CAM mIoU of
    those with ground truth); 0: none. They never decide anything."""

    @property
    def input_statistics(self) -> tuple[Triple, Triple]:
        """(mean, standard deviation) of the network's input, RGB in 0..1."""
        row = backbone_row(self.backbone)
        return row.input_mean, row.input_std


class MulticropConfig(ClassifierConfig):
    """The second classifier, trained on windows relabelled by base masks (paper 3.5)."""

    enabled: bool = False
    """Train it; else the maps come from the first classifier."""
    crop_size: Positive = 448
    """Not used: `crops.size` is the side of what the network is trained on."""
    resize_long: IntRange = (448, 768)
    """Half of its sum is the long side of the images that the network is validated on, px."""
    crops: CropsConfig = CropsConfig()
    """The windows; one is drawn per image and epoch."""
    relabel_share: float = Field(0.1, ge=0, le=1)
    """A window keeps a class if it holds more than this share of the class's base mask, or if the
    class covers more than this share of the window (paper 3.5: 10 %)."""


class CamsConfig(Section):
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
    """Images per task; `auto`: 8, or 1 for `multi_crop` on a CPU."""
    views: Positive | Auto = execution("auto")
    """Windows and mirror images per pass of `multi_crop`, of one or several images; `auto`: 32 on
    a GPU, 1 on a CPU."""
    actors: Positive | Auto = execution("auto")
    """Model copies; `auto`: one per GPU, else one per CPU."""
