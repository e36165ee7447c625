"""The sections of the segmenter, its predictions and the cyclic rounds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Literal

from pydantic import Field, model_validator

from latticecrf import CrfParameters
from pmm_ray.config.backbones import BackboneName
from pmm_ray.config.base import Auto, FloatRange, Positive, Scale, Section, check_windows, execution
from pmm_ray.config.inference import InferenceConfig
from pmm_ray.config.masks import CrfConfig
from pmm_ray.config.training import TrainingConfig


class UnderfittingConfig(Section):
    """Pretended under-fitting (Eq. 10-13)."""

    kind: Literal["none", "clamp", "pow", "ignore", "reweight"] = "clamp"
    """Operation on the loss map while its mean is below beta: `clamp` (Eq. 11), `pow` (Eq. 12),
    `ignore` (Eq. 13), `reweight` (Eq. 11 with kappa / L as a constant weight), or `none`."""
    scope: Literal["group", "worker", "image", "global"] = "group"
    """Whose mean is compared with beta: that of `group` images, padding included (released code);
    of one worker's images of one pass; each image's own (the paper's text); or of all workers'."""
    group: Positive = 2
    """Images of a group, whatever the number of GPUs and `accumulate`; BatchNorm sees the whole
    batch all the same (released code: 2, one GPU's)."""
    beta: float = Field(0.5, ge=0)
    """Warm-up threshold on the mean loss (VOC 0.5, COCO 0.8)."""
    kappa: float = Field(0.5, gt=0)
    """Level of the loss or, for `pow`, exponent (VOC 0.5, COCO 0.8)."""

    def identity(self) -> dict[str, Any]:
        """What decides the result: the size of groups only where there are any."""
        out = super().identity()
        if self.scope != "group":
            del out["group"]
        return out


class SegmenterConfig(TrainingConfig):
    """The fully supervised segmenter: PSPNet, or any model of mmsegmentation (paper 4.1)."""

    config: str | None = execution(None)
    """An mmsegmentation config whose `model` replaces PSPNet, and with it backbone, output_stride,
    channels, pool_scales, dropout, auxiliary_weight and freeze_norm. Its content decides the
    result, not its path."""
    backbone: BackboneName = "efficientnet_lite0"
    """Backbone of PSPNet, registered with mmsegmentation (paper: resnet38, scalenet101,
    res2net101)."""
    weights: str = "imagenet"
    """`imagenet` (with `config`: what that file names, which must be something), `none`, or a path
    to a state dict of the backbone."""
    layout: Literal["contiguous", "dataset"] = "contiguous"
    """Outputs of the network: one per class, or one per id up to the data set's last. `dataset` is
    the paper's 91 for COCO; outputs that are no class take no part in training and prediction."""
    output_stride: Literal[8, 16, 32] = 8
    """Input px per feature px (paper: 8)."""
    channels: Positive = 512
    """Width of the PSP head."""
    pool_scales: tuple[Positive, ...] = (1, 2, 3, 6)
    """Pyramid pooling grid sizes."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Head dropout."""
    auxiliary_weight: float = Field(0.4, ge=0)
    """Weight of the auxiliary FCN head's loss; 0 leaves the head out."""
    freeze_norm: bool = False
    """Keep the backbone's BatchNorm at its pretrained statistics: for batches too small to have
    statistics of their own (released code: no)."""
    iterations: Positive = 20_000
    """Optimiser steps of one round (paper: 20,000)."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """`adamw` suits transformers (SegFormer: learning rate 6e-5, weight decay 0.01), and short
    trainings of small networks."""
    learning_rate: float = Field(0.005, gt=0)
    """Step size of the backbone at step 0 (paper: 0.005)."""
    min_learning_rate: float = Field(1e-4, ge=0)
    """Floor of the schedule (released code: VOC 1e-4, COCO 5e-5). A smaller learning rate does not
    fall at all: set 0 with it."""
    head_multiplier: float = Field(1.0, gt=0)
    """The heads' learning rate over the backbone's (released code: 1)."""
    resize_base: tuple[Positive, Positive] = (2048, 512)
    """mmseg's (long, short) scale that ratio 1 stands for, px."""
    resize_ratio: FloatRange = (0.5, 2.0)
    """Range of the random resize."""
    crop_size: Positive = 512
    """Square training crop, px."""
    cat_max_ratio: float = Field(0.75, gt=0, le=1)
    """Take another random crop (10 tries) while one class fills more than this share."""
    underfitting: UnderfittingConfig = UnderfittingConfig()
    """Pretended under-fitting; used in round 0 only, as in the paper."""
    choose: Literal["best", "last"] = "best"
    """Which weights to keep: `last`, or those with the best mIoU on held-out images, if these have
    ground truth (released code: best). `best` uses pixel labels."""
    validate_every: Positive = execution(2000)
    """Iterations from one scoring of held-out images to the next (released code: VOC 2000, COCO
    4000). The last iteration is scored too; if it would be the only one, nothing is scored."""
    validation_images: int | None = execution(500, ge=0)
    """Held-out images with ground truth to score; the seed chooses them. Empty: all (released
    code); 0: none."""
    validation: Literal["one_view", "test"] = execution("one_view")
    """How they are scored: `one_view` at ratio 1 without CRF, or as `predict` makes masks
    (released code): windows, scales, mirror images and CRF, which may take longer than training."""

    @model_validator(mode="after")
    def _whole_groups(self) -> SegmenterConfig:
        pus, passed = self.underfitting, self.batch_size // self.accumulate
        if pus.kind != "none" and pus.scope == "group" and passed % pus.group:
            raise ValueError(
                f"{passed} images of one pass (batch_size / accumulate) make no whole number of "
                f"groups of underfitting.group {pus.group}: change one of them, or "
                "underfitting.scope"
            )
        return self

    @property
    def least_images(self) -> int:
        return 2  # BatchNorm behind the coarsest pooling sees one px of each

    def steps(self, steps_per_epoch: int) -> int:
        return self.iterations

    def identity(self) -> dict[str, Any]:
        """What decides the result; how it is validated only where that chooses the weights."""
        out = super().identity()
        if self.choose == "best":
            out |= {name: getattr(self, name) for name in ("validate_every", "validation_images")}
            if self.validation != "one_view":
                out["validation"] = self.validation
        return out


def _segmentation_crf() -> CrfConfig:
    return CrfConfig(**asdict(CrfParameters.segmentation()))


class PredictConfig(InferenceConfig):
    """Masks from the segmenter: multi-scale, flip, softmax mean, dense CRF."""

    ratios: tuple[Scale, ...] = Field((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), min_length=1)
    """Scales of `resize_base` (released code: these six)."""
    flip: bool = True
    """Also average the mirrored image."""
    resize_base: tuple[Positive, Positive] = (2048, 512)
    """mmseg's (long, short) scale that ratio 1 stands for, px."""
    mode: Literal["whole", "slide"] = "slide"
    """Each view at once, or window by window with the logits averaged (released code: slide)."""
    crop_size: Positive = 512
    """Side of a window of mode slide, px (released code: 512)."""
    stride: Positive = 480
    """Step between windows, px, at most `crop_size` (released code: 480)."""
    use_crf: bool = True
    """Joint dense CRF on the mean probabilities (released code: yes)."""
    crf: CrfConfig = Field(default_factory=_segmentation_crf)
    """CRF parameters (DeepLab-v2's values)."""
    backend: Literal["lattice", "pydensecrf"] = "lattice"
    """CRF implementation."""
    use_image_labels: bool = False
    """Forbid classes that the image's labels do not name, in cyclic masks and by `pmm predict`
    (released code: no). An image without labels may hold any class. The held-out split is scored
    without its labels."""
    batch_size: Positive | Auto = execution("auto")
    """Images per task; `auto`: by the number of GPUs or CPUs, see docs/reference/scale.md."""
    actors: Positive | Auto = execution("auto")
    """Model copies; `auto`: one per GPU, or as many as share it, else one per CPU."""

    @model_validator(mode="after")
    def _windows_cover_the_view(self) -> PredictConfig:
        check_windows(self.stride, self.crop_size, "crop_size")
        return self


class CyclesConfig(Section):
    """Cyclic pseudo-masks (paper 3.5)."""

    rounds: int = Field(1, ge=0)
    """How often to replace the training masks by predictions and train a fresh segmenter."""
    update: Literal["always", "if_better"] = "always"
    """When masks are replaced: in every round (released code), or only while the segmenter scores
    higher than its own supervision on the same held-out images, which uses their pixel labels (the
    paper's "in condition that prediction from model is better")."""
    stop_when: float | None = Field(None, ge=0, le=1)
    """End the cycle once more than this share of pixels keeps its class from one round's training
    masks to the next's: no segmenter is trained on the last ones. Empty: never."""
