"""The sections of a recipe. Every field has a unit and, where it is the paper's, its source.

Fields made with `execution(...)` say how the machine is used; they never enter a stage's hash, so
changing them re-runs nothing. All others do.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

Auto = Literal["auto"]
Positive = Annotated[int, Field(gt=0)]
Scale = Annotated[float, Field(gt=0)]


def _ascending(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 < value[0] <= value[1]:
        raise ValueError(f"a range is [low, high] with 0 < low <= high, got {list(value)}")
    return value


IntRange = Annotated[tuple[int, int], AfterValidator(_ascending)]
FloatRange = Annotated[tuple[float, float], AfterValidator(_ascending)]


def execution(default: Any, **constraints: Any) -> Any:
    """A field that cannot change the result: left out of the section's hash."""
    return Field(default, json_schema_extra={"identity": False}, **constraints)


class Section(BaseModel):
    """A frozen part of the configuration; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    def identity(self) -> dict[str, Any]:
        """The fields that decide the result, nested sections included, as plain values."""
        out: dict[str, Any] = {}
        for name, field in type(self).model_fields.items():
            extra = field.json_schema_extra
            if isinstance(extra, dict) and extra.get("identity") is False:
                continue
            value = getattr(self, name)
            out[name] = value.identity() if isinstance(value, Section) else value
        return out


def section_hash(*parts: Any) -> str:
    """Eight hex digits over sections and plain values: the name of a stage's output folder."""
    plain = [part.identity() if isinstance(part, Section) else part for part in parts]
    text = json.dumps(plain, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class DataConfig(Section):
    """Where the photographs and labels come from."""

    source: Literal["shapes", "voc12", "folder", "manifest"] = "shapes"
    """`shapes` makes its own; the others read `root` (for `manifest`: a manifest.parquet)."""
    root: str = ""
    """Folder or uri of the data set; give it with `--set data.root=...`."""
    train_split: str = "train"
    """Split that the classifier and the segmenter are trained on."""
    held_out_split: str = "val"
    """Split that is never trained on: evaluation, selection."""
    labels_from: Literal["auto", "cls_labels", "xml", "masks"] = "auto"
    """`voc12`: where image-level labels come from."""
    trust_pickle: bool = False
    """`voc12`: allow `cls_labels.npy`, which is a pickle. Only for files you trust."""
    images: int = Field(120, ge=4)
    """`shapes`: number of images to draw, all splits together."""
    classes: int = Field(4, ge=2, le=6)
    """`shapes`: number of foreground classes."""
    size: int = Field(128, ge=48)
    """`shapes`: typical side, px."""
    max_pixels: Positive = execution(178_956_970)
    """Largest image that is decoded, px; a larger one becomes an error row (`too_large`)."""

    @model_validator(mode="after")
    def _needs_root(self) -> DataConfig:
        if self.train_split == self.held_out_split:
            raise ValueError("data.train_split and data.held_out_split must differ")
        return self


class ClassifierConfig(Section):
    """The image classifier whose activation maps become masks (paper 3.5, 4.1)."""

    backbone: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    """Network; `efficientnet_lite0` is the small one for CPUs."""
    weights: str = "imagenet"
    """`imagenet` (from the installed package), `none`, or a path to a state dict."""
    output_stride: Literal[8, 16, 32] = 16
    """Input px per feature px."""
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
    amp: bool = True
    """bfloat16 autocast on GPUs; CPUs compute in float32."""
    workers: Positive | Auto = "auto"
    """Ray Train workers; `auto`: one per GPU, or 2 on CPUs (1 on a single core)."""
    threads_per_worker: Positive = execution(1)
    """Torch threads and CPUs of one worker on a CPU cluster."""
    loader_processes: int = execution(0, ge=0)
    """Decoding processes per worker, a CPU each; 0 decodes in the worker itself."""
    checkpoint_seconds: float = execution(60.0, gt=0)
    """A checkpoint is written about this often, s."""
    max_failures: int = execution(3, ge=0)
    """How often a lost worker or node is replaced before the run gives up."""


class CamsConfig(Section):
    """Class activation maps: multi-scale and flip, present classes only (Eq. 1)."""

    scales: tuple[Scale, ...] = Field((0.5, 1.0, 1.5, 2.0), min_length=1)
    """Image scales whose maps are summed (reference: SEAM's multi-scale CAM)."""
    flip: bool = True
    """Also average the horizontally mirrored image."""
    max_long: Positive = 1024
    """Images whose long side exceeds this are shrunk to it before scaling, px."""
    stride: Positive = 4
    """Storage resolution: original px per stored CAM px."""
    batch_size: Positive = execution(8)
    """Images per task."""
    actors: Positive | Auto = execution("auto")
    """Model copies; `auto`: one per GPU, else one per CPU."""


class CrfConfig(Section):
    """Dense CRF parameters; the defaults are those of PPMG (released code)."""

    iterations: int = Field(10, ge=0)
    """Mean-field iterations."""
    gaussian_sigma: float = Field(3.0, gt=0)
    """Smoothness kernel, px."""
    gaussian_weight: float = Field(10.0, ge=0)
    """Smoothness kernel's compatibility."""
    bilateral_sigma: float = Field(80.0, gt=0)
    """Appearance kernel, px."""
    bilateral_color_sigma: float = Field(13.0, gt=0)
    """Appearance kernel, grey levels."""
    bilateral_weight: float = Field(10.0, ge=0)
    """Appearance kernel's compatibility."""


class MasksConfig(Section):
    """Pseudo-masks from CAMs: CVS, per-class CRF, PPMG (Eq. 2, 5-9, Alg. 1)."""

    alpha: float = Field(11.0, gt=0)
    """Background exponent (Eq. 2). The best value depends on the CAMs; the paper searched 0..20."""
    smoothing: float = Field(0.3, ge=0)
    """Scale factor s of the coefficient of variation (Eq. 6)."""
    threshold: float = Field(0.05, ge=0, lt=1)
    """Foreground threshold t of the coefficient of variation (Eq. 5)."""
    semantics: Literal["released", "paper"] = "released"
    """Which to follow where the paper's text and the released code differ."""
    crf: CrfConfig = CrfConfig()
    """Per-class CRF."""
    backend: Literal["lattice", "pydensecrf"] = "lattice"
    """CRF implementation; both give the same masks."""
    batch_size: Positive | Auto = execution("auto")
    """Images per task; `auto` aims at some seconds of work."""
    tasks: Positive | Auto = execution("auto")
    """Tasks at once; `auto`: one per CPU of the cluster."""


class UnderfittingConfig(Section):
    """Pretended under-fitting (Eq. 10-13)."""

    kind: Literal["clamp", "none"] = "clamp"
    """Operation on the loss map while its mean is below beta."""
    beta: float = Field(0.5, ge=0)
    """Warm-up threshold on the mean loss (VOC 0.5, COCO 0.8)."""
    kappa: float = Field(0.5, gt=0)
    """Clamp level (VOC 0.5, COCO 0.8)."""


class SegmenterConfig(Section):
    """The fully supervised segmenter: PSPNet from mmsegmentation (paper 4.1)."""

    backbone: Literal["efficientnet_lite0"] = "efficientnet_lite0"
    """Backbone, registered with mmsegmentation."""
    weights: str = "imagenet"
    """`imagenet`, `none`, or a path to a backbone state dict."""
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
    batch_size: Positive = 16
    """Images per step, over all workers (paper: 16)."""
    learning_rate: float = Field(0.005, gt=0)
    """SGD step size at step 0 (paper: 0.005)."""
    min_learning_rate: float = Field(1e-4, ge=0)
    """Floor of the poly schedule (released code: 1e-4)."""
    head_multiplier: float = Field(1.0, gt=0)
    """The heads' learning rate over the backbone's (released code: 1)."""
    poly_power: float = Field(0.9, gt=0)
    """Exponent of the poly schedule."""
    momentum: float = Field(0.9, ge=0, lt=1)
    """SGD momentum."""
    weight_decay: float = Field(5e-4, ge=0)
    """L2 penalty."""
    resize_base: tuple[Positive, Positive] = (2048, 512)
    """mmseg's (long, short) scale that ratio 1 stands for, px."""
    resize_ratio: FloatRange = (0.5, 2.0)
    """Range of the random resize."""
    crop_size: Positive = 512
    """Square training crop, px."""
    cat_max_ratio: float = Field(0.75, gt=0, le=1)
    """A crop is redrawn (10 tries) while one class fills more than this share."""
    underfitting: UnderfittingConfig = UnderfittingConfig()
    """Pretended under-fitting; used in round 0 only, as in the paper."""
    amp: bool = True
    """bfloat16 autocast on GPUs."""
    workers: Positive | Auto = "auto"
    """Ray Train workers; `auto`: one per GPU, or 2 on CPUs (1 on a single core)."""
    threads_per_worker: Positive = execution(1)
    """Torch threads and CPUs of one worker on a CPU cluster."""
    loader_processes: int = execution(0, ge=0)
    """Decoding processes per worker, a CPU each; 0 decodes in the worker itself."""
    checkpoint_seconds: float = execution(60.0, gt=0)
    """A checkpoint is written about this often, s."""
    max_failures: int = execution(3, ge=0)
    """How often a lost worker or node is replaced before the run gives up."""


def _segmentation_crf() -> CrfConfig:
    return CrfConfig(
        gaussian_sigma=1.0,
        gaussian_weight=3.0,
        bilateral_sigma=67.0,
        bilateral_color_sigma=3.0,
        bilateral_weight=4.0,
    )


class PredictConfig(Section):
    """Masks from the segmenter: multi-scale, flip, softmax mean, dense CRF."""

    ratios: tuple[Scale, ...] = Field((0.5, 0.75, 1.0, 1.25, 1.5, 1.75), min_length=1)
    """Scales of `resize_base` (released code: these six)."""
    flip: bool = True
    """Also average the mirrored image."""
    resize_base: tuple[Positive, Positive] = (2048, 512)
    """mmseg's (long, short) scale that ratio 1 stands for, px."""
    use_crf: bool = True
    """Joint dense CRF on the mean probabilities (released code: yes)."""
    crf: CrfConfig = Field(default_factory=_segmentation_crf)
    """CRF parameters (DeepLab-v2's values)."""
    backend: Literal["lattice", "pydensecrf"] = "lattice"
    """CRF implementation."""
    use_image_labels: bool = False
    """Forbid classes that the image's labels do not name (released code: no)."""
    batch_size: Positive = execution(8)
    """Images per task."""
    actors: Positive | Auto = execution("auto")
    """Model copies; `auto`: one per GPU, else one per CPU."""


class CyclesConfig(Section):
    """Cyclic pseudo-masks (paper 3.5)."""

    rounds: int = Field(1, ge=0)
    """How often the training masks are replaced by predictions and a fresh segmenter trained."""


class EvaluateConfig(Section):
    """What is scored against ground truth, where there is any."""

    ladder: tuple[Literal["cam_argmax", "crf_argmax"], ...] = ("cam_argmax", "crf_argmax")
    """Further ways from CAM to mask, scored beside PPMG on the held-out split (Tab. 2)."""
    train_masks: bool = True
    """Also score the pseudo-masks of the training split."""


class ErrorsConfig(Section):
    """How many images may fail."""

    budget: int | None = execution(None, ge=0)
    """Images per stage; empty: the larger of 10 and 1 %."""


class ReportConfig(Section):
    """The HTML report."""

    gallery: int = execution(12, ge=0)
    """Images shown."""


class RuntimeConfig(Section):
    """How the machine is used."""

    cpus: int | None = execution(None, gt=0)
    """CPUs of a Ray that the command starts itself; empty: all."""
    object_store_bytes: int | None = execution(None, gt=0)
    """Object store of a Ray that the command starts itself, bytes; empty: Ray's default, capped."""
    stall_seconds: float = execution(900.0, gt=0)
    """A stage in which no image finished for this long fails with what it waited for."""
    heartbeat_seconds: float = execution(10.0, gt=0)
    """A line of progress in log files this often."""
    scratch: str | None = execution(None)
    """Local folder of each node for memory-mapped masks; empty: the system's temporary folder."""


class RunConfig(Section):
    """A whole recipe."""

    name: str = Field("run", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; the default run folder is `runs/<name>`."""
    seed: int = Field(0, ge=0)
    """Every random draw is seeded from this and the image's id."""
    data: DataConfig = DataConfig()
    classifier: ClassifierConfig = ClassifierConfig()
    cams: CamsConfig = CamsConfig()
    masks: MasksConfig = MasksConfig()
    segmenter: SegmenterConfig = SegmenterConfig()
    predict: PredictConfig = PredictConfig()
    cycles: CyclesConfig = CyclesConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    errors: ErrorsConfig = ErrorsConfig()
    report: ReportConfig = ReportConfig()
    runtime: RuntimeConfig = RuntimeConfig()
