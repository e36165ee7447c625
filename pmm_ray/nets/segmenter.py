"""The segmenter: PSPNet, or any model of mmsegmentation, built, trained on, asked and loaded.

Only the files `segmenter*.py` of this folder know mmseg, mmcv and mmengine. Importing this one
registers our backbones and our loss, see `segmenter_modules`.

Legend: B = batch, C = classes with background, H, W = input px.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from pmm_ray.config import SegmenterConfig, UnderfittingConfig
from pmm_ray.config.backbones import Triple
from pmm_ray.nets.checkpoints import load_model, stored_section
from pmm_ray.nets.segmenter_config import input_statistics, segmenter_model
from pmm_ray.nets.segmenter_modules import (
    PretendedUnderfittingLoss,
    SegmentationBackbone,
    build_registered,
    no_accuracy,
)
from pmm_ray.nets.segmenter_source import (
    ModelSource,
    backbone_weights,
    check_types,
    our_backbone,
    quiet,
)
from pmm_ray.nets.weights import load_pretrained, load_strict, read_state
from pmm_ray.runtime.core.errors import CannotRunError

with quiet():
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample


@dataclass(frozen=True)
class Description:
    """What a segmenter is, beside its weights."""

    model: dict[str, Any]
    """In mmsegmentation's notation, see `segmenter_model`."""
    imports: tuple[str, ...]
    """Modules that define what the model names."""
    outputs: tuple[int, ...] | None
    """Output of each contiguous class; None: the same."""
    input_mean: Triple
    input_std: Triple
    """RGB in 0..1: how images are normalised."""

    def meta(self) -> dict[str, Any]:
        """What is kept with the network, to build it again."""
        outputs = None if self.outputs is None else list(self.outputs)
        return {"model": self.model, "imports": list(self.imports), "outputs": outputs}


def build_segmenter(
    config: SegmenterConfig,
    num_classes: int,
    ignore_index: int,
    *,
    underfitting: UnderfittingConfig | None = None,
    outputs: Sequence[int] | None = None,
    source: ModelSource | None = None,
) -> nn.Module:
    """A fresh segmenter, its backbone's weights loaded.

    The rest gets random values of torch's global generator: seed it for a reproducible network.

    Args:
        num_classes: C, the background included.
        ignore_index: mask value without loss.
        underfitting: see `segmenter_model`.
        outputs: output of each class, ascending, where the network has more outputs than classes
            (COCO's 91); those that no class has take no part. None: as many outputs as classes.
        source: of `config.config`; None: PSPNet.

    Raises:
        CannotRunError: mmsegmentation cannot build the model, or the weights are missing or do not
            fit.
    """
    used = range(num_classes) if outputs is None else outputs
    count = max(used) + 1
    model = segmenter_model(
        config,
        count,
        ignore_index,
        underfitting=underfitting,
        unused=sorted(set(range(count)) - set(used)),
        source=source,
    )
    if source is None:
        model["backbone"]["weights"] = config.weights
        return _build(model, (), "PSPNet", outputs)
    uri = backbone_weights(config.weights, source)
    if uri is not None and our_backbone(model):
        model["backbone"]["weights"] = uri
    network = _build(model, source.imports, source.uri, outputs)
    if uri is not None and not our_backbone(model):
        load_pretrained(network.get_submodule("backbone"), read_state(uri), uri)
    return network


def description_of(network: nn.Module) -> Description:
    """What a network from `build_segmenter` or `load_segmenter` is."""
    description = network.description
    assert isinstance(description, Description)
    return description


def forward_loss(model: nn.Module, images_B3HW: Tensor, masks_BHW: Tensor) -> dict[str, Tensor]:
    """The losses of all heads.

    Args:
        model: from `build_segmenter`, in training mode.
        images_B3HW: float32, RGB, normalised with the model's `input_mean` and `input_std`.
        masks_BHW: int64 outputs or the ignore value, of the images' size.

    Returns:
        Scalar tensors by name; those whose name holds `loss` are to be summed.
    """
    samples = [SegDataSample(gt_sem_seg=PixelData(data=mask_HW[None])) for mask_HW in masks_BHW]
    with no_accuracy():
        return model.loss(images_B3HW, samples)  # type: ignore[operator]


def underfitting_share(model: nn.Module) -> Tensor | None:
    """Share of the last pass's images whose loss was limited, in the mean of the heads: 0..1.

    None where no head pretends to under-fit.
    """
    losses = [m for m in model.modules() if isinstance(m, PretendedUnderfittingLoss)]
    shares = [loss.limited for loss in losses if loss.limited is not None]
    return torch.stack(shares).mean() if shares else None


@torch.no_grad()
def try_model(model: nn.Module, crop_size: int, where: str) -> None:
    """Pass two crops through the losses and an image of odd sides through the network.

    Networks are built that cannot be used: they want another annotation, or one size of images.

    Args:
        model: from `build_segmenter`; left in evaluation mode.
        crop_size: of the training, px.
        where: names the model in the error.

    Raises:
        CannotRunError: it cannot be trained, or cannot predict.
    """
    crops = torch.zeros(2, 3, crop_size, crop_size)
    odd = torch.zeros(1, 3, crop_size // 2 + 1, crop_size - 1)
    doing = f"train on crops of {crop_size} px"
    try:
        forward_loss(model.train(), crops, torch.zeros(2, crop_size, crop_size, dtype=torch.int64))
        doing = f"predict an image of {odd.shape[2]} x {odd.shape[3]} px"
        predict_logits(model.eval(), odd)
    # whatever a model of anyone's raises
    except Exception as error:
        raise CannotRunError(
            f"{where}: this model cannot {doing} ({type(error).__name__}: {error}): choose "
            "another; docs/guides/mmseg-models.md says what works"
        ) from error


def predict_logits(model: nn.Module, images_B3HW: Tensor) -> Tensor:
    """Class logits at input size, float32 [B, C, H, W], of contiguous classes in any layout.

    Args:
        model: from `build_segmenter`, in evaluation mode.
        images_B3HW: float32, RGB, normalised with the model's `input_mean` and `input_std`.

    Bilinear from the head's size, with the head's `align_corners`.
    """
    size = tuple(images_B3HW.shape[2:])
    meta = {"ori_shape": size, "img_shape": size, "pad_shape": size, "padding_size": [0] * 4}
    logits: Tensor = model.encode_decode(images_B3HW, [meta] * len(images_B3HW))  # type: ignore[operator]
    outputs = description_of(model).outputs
    if outputs is not None:
        logits = logits.index_select(1, _indices(outputs, logits.device))
    return logits.float()


@lru_cache
def _indices(outputs: tuple[int, ...], device: torch.device) -> Tensor:
    """Made once: a copy to a GPU would wait for it."""
    return torch.tensor(outputs, device=device)


def load_segmenter(checkpoint_uri: str) -> tuple[nn.Module, dict[str, Any]]:
    """A trained segmenter in evaluation mode on the CPU, and its description.

    The user's mmsegmentation config is not needed: the model is kept with the weights.

    Returns:
        (module, meta); meta holds `config` (the section), `label_space` (JSON text), `round`,
        `training` (final loss, steps, images/s), and `model`, `imports` and `outputs`, see
        `Description`.

    Raises:
        CannotRunError: the file is not a trained segmenter.
    """
    state, meta = load_model(checkpoint_uri, "segmenter")
    outputs = meta.get("outputs")
    with torch.random.fork_rng(devices=[]):
        if "model" in meta:
            model, imports = meta["model"], meta.get("imports", ())
            check_types(model, checkpoint_uri)
            network = _build(model, imports, checkpoint_uri, outputs)
        else:
            # the section alone says what a PSPNet is
            config = stored_section(SegmenterConfig, meta, checkpoint_uri)
            network = build_segmenter(config, int(meta["num_classes"]), int(meta["ignore_index"]))
    load_strict(network, state, checkpoint_uri)
    return network.eval(), meta


def _build(
    model: Mapping[str, Any],
    imports: Sequence[str],
    where: str,
    outputs: Sequence[int] | None,
) -> nn.Module:
    """The network of a fitted model, randomly initialised, with its description."""
    network = build_registered(model, imports, where)
    mean, std = input_statistics(model, where)
    kept = copy.deepcopy(dict(model))
    backbone = network.get_submodule("backbone")
    if isinstance(backbone, SegmentationBackbone):
        kept["backbone"].pop("weights", None)
        kept["backbone"].update(backbone.net.kept)
    taken = None if outputs is None else tuple(outputs)
    network.description = Description(kept, tuple(imports), taken, mean, std)  # type: ignore[assignment]
    return network
