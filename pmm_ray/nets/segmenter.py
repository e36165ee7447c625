"""The segmenter: PSPNet from mmsegmentation. The only file that knows mmseg, mmcv and mmengine.

Legend: B = batch, C = classes with background, H, W = input px.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pmm_ray.config import SegmenterConfig, UnderfittingConfig
from pmm_ray.method.underfitting import UnderfittingKind, pretended_underfitting
from pmm_ray.nets import efficientnet_lite
from pmm_ray.nets.checkpoints import load_model, stored_section
from pmm_ray.nets.weights import load_backbone_weights, load_strict

# importing mmsegmentation warns of operators that we do not use and prints to standard output
with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
    warnings.simplefilter("ignore")
    from mmcv.transforms import RandomFlip, RandomResize
    from mmengine.structures import PixelData
    from mmseg.datasets.transforms import PhotoMetricDistortion, RandomCrop
    from mmseg.models.segmentors import EncoderDecoder
    from mmseg.registry import MODELS
    from mmseg.structures import SegDataSample

INPUT_MEAN = efficientnet_lite.INPUT_MEAN
INPUT_STD = efficientnet_lite.INPUT_STD
_AUXILIARY_CHANNELS = 256
_ALIGN_CORNERS = False

Transform = Callable[[NDArray[np.uint8], NDArray[Any], int], tuple[Tensor, Tensor]]


@MODELS.register_module(name="PmmEfficientNetLite0", force=True)
class SegmentationBackbone(nn.Module):
    """EfficientNet-lite0 as an mmsegmentation backbone: the outputs of stages 2, 3, 5 and 7."""

    STAGES = ("stage2", "stage3", "stage5", "stage7")

    def __init__(self, output_stride: int, freeze_norm: bool = False) -> None:
        super().__init__()
        self.net = efficientnet_lite.EfficientNetLite0(output_stride, with_head=False)
        self._norms = [m for m in self.net.modules() if isinstance(m, nn.BatchNorm2d)]
        self._freeze_norm = freeze_norm
        if freeze_norm:
            for norm in self._norms:
                norm.requires_grad_(False)
        names = [info.name for info in self.net.features]
        self._indices = [names.index(name) for name in self.STAGES]
        self.channels = [self.net.features[i].channels for i in self._indices]

    def train(self, mode: bool = True) -> SegmentationBackbone:
        super().train(mode)
        if self._freeze_norm:
            for norm in self._norms:
                norm.eval()
        return self

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, ...]:
        taps = self.net.forward_features(images_B3HW)
        return tuple(taps[i] for i in self._indices)


@MODELS.register_module(force=True)
class PretendedUnderfittingLoss(nn.Module):
    """Cross entropy under pretended under-fitting, as an mmsegmentation loss (Eq. 10-11).

    Args:
        kind, beta, kappa: see `pretended_underfitting`; `kind="none"` is the plain mean.
        loss_weight: multiplies the result, after the test against beta.
    """

    loss_name = "loss_pus"

    def __init__(
        self, kind: UnderfittingKind, beta: float, kappa: float, loss_weight: float = 1.0
    ) -> None:
        super().__init__()
        self._kind: UnderfittingKind = kind
        self._beta = beta
        self._kappa = kappa
        self._weight = loss_weight

    def forward(
        self, logits_BCHW: Tensor, labels_BHW: Tensor, ignore_index: int, **_: Any
    ) -> Tensor:
        """The scalar loss; ignored pixels are zeros in the loss map and count in its mean."""
        loss_BHW = F.cross_entropy(
            logits_BCHW.float(), labels_BHW, reduction="none", ignore_index=ignore_index
        )
        return self._weight * pretended_underfitting(
            loss_BHW, self._kind, beta=self._beta, kappa=self._kappa
        )


def build_segmenter(
    config: SegmenterConfig,
    num_classes: int,
    ignore_index: int,
    *,
    underfitting: UnderfittingConfig | None = None,
) -> nn.Module:
    """PSPNet with an auxiliary FCN head on the third of four features, backbone weights loaded.

    The heads are drawn from torch's global generator: seed it for a reproducible network.

    Args:
        config: widths, output stride, backbone weights.
        num_classes: C, the background included.
        ignore_index: mask value without loss.
        underfitting: of both heads' losses; default `config.underfitting`. Rounds after the first
            pass `UnderfittingConfig(kind="none")`.

    Raises:
        CannotRunError: the weights are missing or do not fit.
    """
    pus = underfitting or config.underfitting
    channels = SegmentationBackbone(config.output_stride).channels
    norm = {"type": "BN", "requires_grad": True}

    def head(kind: str, index: int, width: int, weight: float, **extra: Any) -> dict[str, Any]:
        loss = {"kind": pus.kind, "beta": pus.beta, "kappa": pus.kappa, "loss_weight": weight}
        return {
            "type": kind,
            "in_channels": channels[index],
            "in_index": index,
            "channels": width,
            "dropout_ratio": config.dropout,
            "num_classes": num_classes,
            "norm_cfg": norm,
            "align_corners": _ALIGN_CORNERS,
            "ignore_index": ignore_index,
            "loss_decode": {"type": "PretendedUnderfittingLoss", **loss},
            **extra,
        }

    auxiliary = None
    if config.auxiliary_weight:
        width = min(_AUXILIARY_CHANNELS, config.channels)
        auxiliary = head(
            "FCNHead", 2, width, config.auxiliary_weight, num_convs=1, concat_input=False
        )
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        model: nn.Module = EncoderDecoder(
            backbone={
                "type": "PmmEfficientNetLite0",
                "output_stride": config.output_stride,
                "freeze_norm": config.freeze_norm,
            },
            decode_head=head("PSPHead", 3, config.channels, 1.0, pool_scales=config.pool_scales),
            auxiliary_head=auxiliary,
            train_cfg={},
            test_cfg={"mode": "whole"},
        )
    load_backbone_weights(model.get_submodule("backbone.net"), config.weights)
    return model


def forward_loss(model: nn.Module, images_B3HW: Tensor, masks_BHW: Tensor) -> dict[str, Tensor]:
    """The losses of both heads.

    Args:
        model: from `build_segmenter`, in training mode.
        images_B3HW: float32, RGB, normalised with `INPUT_MEAN` and `INPUT_STD`.
        masks_BHW: int64 class ids or the ignore value, of the images' size.

    Returns:
        Scalar tensors by name; those whose name holds `loss` are to be summed.
    """
    samples = []
    for mask_HW in masks_BHW:
        sample = SegDataSample()
        sample.gt_sem_seg = PixelData(data=mask_HW[None])
        samples.append(sample)
    losses: dict[str, Tensor] = model.loss(images_B3HW, samples)  # type: ignore[operator]
    return losses


def predict_logits(model: nn.Module, images_B3HW: Tensor) -> Tensor:
    """Class logits at input size, float32 [B, C, H, W] (bilinear, align_corners False).

    Args:
        model: from `build_segmenter`, in evaluation mode.
        images_B3HW: float32, RGB, normalised with `INPUT_MEAN` and `INPUT_STD`.
    """
    logits: Tensor = model(images_B3HW, mode="tensor")
    return F.interpolate(
        logits.float(), images_B3HW.shape[2:], mode="bilinear", align_corners=_ALIGN_CORNERS
    )


def load_segmenter(checkpoint_uri: str) -> tuple[nn.Module, dict[str, Any]]:
    """A trained segmenter in evaluation mode on the CPU, and its description.

    Returns:
        (module, meta); meta holds `config` (the section), `label_space` (JSON text), `round` and
        `training` (final loss, steps, images/s).

    Raises:
        CannotRunError: the file is not a trained segmenter.
    """
    state, meta = load_model(checkpoint_uri, "segmenter")
    config = stored_section(SegmenterConfig, meta, checkpoint_uri)
    with torch.random.fork_rng(devices=[]):
        model = build_segmenter(config, int(meta["num_classes"]), int(meta["ignore_index"]))
    load_strict(model, state, checkpoint_uri)
    return model.eval(), meta


def training_transform(config: SegmenterConfig, ignore_index: int) -> Transform:
    """mmsegmentation's training augmentation as a function of (image, mask, seed).

    Random resize, crop (redrawn while one class fills more than `cat_max_ratio`), mirror,
    photometric distortion, normalisation, padding with zeros and `ignore_index`.

    Returns:
        `transform(image_HW3 uint8 RGB, mask_HW ids, seed 0..2**32 - 1)` -> (float32 [3, S, S],
        int64 [S, S]), S = `config.crop_size`. It seeds NumPy's global generator, from which the
        transforms draw: the result depends on its arguments only.
    """
    steps = [
        RandomResize(config.resize_base, ratio_range=config.resize_ratio, keep_ratio=True),
        RandomCrop(config.crop_size, config.cat_max_ratio, ignore_index),
        RandomFlip(prob=0.5),
        PhotoMetricDistortion(),
    ]
    mean, std = np.array(INPUT_MEAN, np.float32), np.array(INPUT_STD, np.float32)
    side = config.crop_size

    def transform(
        image_HW3: NDArray[np.uint8], mask_HW: NDArray[Any], seed: int
    ) -> tuple[Tensor, Tensor]:
        np.random.seed(seed)
        # mmcv works on BGR
        results: dict[str, Any] = {
            "img": np.ascontiguousarray(image_HW3[:, :, ::-1]),
            "img_shape": image_HW3.shape[:2],
            "gt_seg_map": mask_HW,
            "seg_fields": ["gt_seg_map"],
        }
        for step in steps:
            results = step(results)
        rgb_HW3, ids_HW = results["img"][:, :, ::-1], results["gt_seg_map"]
        height, width = ids_HW.shape
        image_3SS = np.zeros((3, side, side), np.float32)
        image_3SS[:, :height, :width] = ((rgb_HW3 / np.float32(255) - mean) / std).transpose(
            2, 0, 1
        )
        mask_SS = np.full((side, side), ignore_index, np.int64)
        mask_SS[:height, :width] = ids_HW
        return torch.from_numpy(image_3SS), torch.from_numpy(mask_SS)

    return transform
