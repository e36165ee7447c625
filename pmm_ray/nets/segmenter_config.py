"""Which network a segmenter is: PSPNet from the recipe's keys, or any model of mmsegmentation.

Everything here is plain dicts in mmsegmentation's own notation. They are kept with the trained
network, so that it can be built again without the user's file.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from pmm_ray.config import SegmenterConfig, UnderfittingConfig
from pmm_ray.config.backbones import (
    GENERIC_TYPE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Triple,
    backbone_row,
)
from pmm_ray.nets.segmenter_source import ModelSource, dicts_in, listed, plain_norms
from pmm_ray.runtime.core.errors import CannotRunError

LOSS = "PretendedUnderfittingLoss"

_AUXILIARY_CHANNELS = 256
# its two classes are edge and no edge, whatever the data set has
_OWN_CLASSES = {"STDCHead"}


def segmenter_model(
    config: SegmenterConfig,
    num_classes: int,
    ignore_index: int,
    *,
    underfitting: UnderfittingConfig | None = None,
    unused: Sequence[int] = (),
    source: ModelSource | None = None,
) -> dict[str, Any]:
    """The whole model in mmsegmentation's notation.

    Args:
        num_classes: outputs, the background and unused ones included.
        ignore_index: mask value without loss.
        underfitting: of all heads' losses; default `config.underfitting`. Rounds after the first
            pass `UnderfittingConfig(kind="none")`.
        unused: outputs that take part neither in training nor in prediction.
        source: of `config.config`; None: PSPNet with an auxiliary FCN head on the third feature.

    Raises:
        CannotRunError: the source's losses or options cannot be used.
    """
    pus = underfitting or config.underfitting
    loss = {"type": LOSS, **pus.model_dump(), "unused": list(unused)}
    model = _pspnet(config) if source is None else copy.deepcopy(source.model)
    where = "PSPNet" if source is None else source.uri
    limited = _fit(model, num_classes, ignore_index, loss, where)
    if not limited and pus.kind != "none":
        raise CannotRunError(
            f"{where}: no head has a CrossEntropyLoss, so that under-fitting cannot be pretended: "
            "set segmenter.underfitting.kind: none"
        )
    mean, std = normalisation(config.backbone, source)
    model["data_preprocessor"] = {
        "type": "SegDataPreProcessor",
        "mean": [255 * value for value in mean],
        "std": [255 * value for value in std],
        "bgr_to_rgb": True,
        "pad_val": 0,
        "seg_pad_val": ignore_index,
        "size": [config.crop_size, config.crop_size],
    }
    return model


def input_statistics(model: Mapping[str, Any], where: str) -> tuple[Triple, Triple]:
    """(mean, standard deviation) of the network's input, RGB in 0..1; ImageNet's by default.

    Raises:
        CannotRunError: the network wants its channels in another order.
    """
    given = model.get("data_preprocessor") or {}
    if given.get("mean") is None or given.get("std") is None:
        return IMAGENET_MEAN, IMAGENET_STD
    if not (given.get("bgr_to_rgb") or given.get("to_rgb")):
        raise CannotRunError(
            f"{where}: data_preprocessor.bgr_to_rgb must be true: images are RGB here"
        )
    return _triple(given["mean"]), _triple(given["std"])


def normalisation(backbone: str, source: ModelSource | None) -> tuple[Triple, Triple]:
    """(mean, standard deviation) of the input of a network that is not built yet.

    Args:
        backbone: the section's.
        source: the user's model, which takes the backbone's place.
    """
    if source is not None:
        return input_statistics(source.model, source.uri)
    row = backbone_row(backbone)
    return row.input_mean, row.input_std


def _pspnet(config: SegmenterConfig) -> dict[str, Any]:
    """The paper's network (4.1), with the channels that the backbone has."""
    name = config.backbone
    row = backbone_row(name)
    if not row.features:
        raise CannotRunError(
            f"segmenter.backbone: {name} serves classifiers only: give its row `features`"
        )
    if config.output_stride not in row.output_strides:
        raise CannotRunError(
            f"segmenter.output_stride {config.output_stride}: {name} has {row.strides_text}"
        )
    channels = tuple(row.features.values())

    def head(kind: str, index: int, width: int, weight: float, **extra: Any) -> dict[str, Any]:
        return {
            "type": kind,
            "in_channels": channels[index],
            "in_index": index,
            "channels": width,
            "dropout_ratio": config.dropout,
            "norm_cfg": {"type": "BN", "requires_grad": True},
            "align_corners": False,
            "loss_decode": {"type": LOSS, "loss_weight": weight},
            **extra,
        }

    model = {
        "type": "EncoderDecoder",
        "backbone": {
            "type": row.mmseg_type,
            "output_stride": config.output_stride,
            "freeze_norm": config.freeze_norm,
            **({"name": name} if row.mmseg_type == GENERIC_TYPE else {}),
        },
        "decode_head": head(
            "PSPHead", 3, config.channels, 1.0, pool_scales=list(config.pool_scales)
        ),
        "train_cfg": {},
        "test_cfg": {"mode": "whole"},
    }
    if config.auxiliary_weight:
        width = min(_AUXILIARY_CHANNELS, config.channels)
        model["auxiliary_head"] = head(
            "FCNHead", 2, width, config.auxiliary_weight, num_convs=1, concat_input=False
        )
    return model


def _fit(
    model: dict[str, Any], num_classes: int, ignore_index: int, loss: dict[str, Any], where: str
) -> int:
    """Put classes, ignore value and our loss into the heads; returns how many losses were put."""
    limited = 0
    plain_norms(model)
    tops = [h for name in ("decode_head", "auxiliary_head") for h in listed(model.get(name))]
    for head in (found for top in tops for found in dicts_in(top)):
        is_top = any(head is top for top in tops)
        if head.get("type") in _OWN_CLASSES or not (is_top or "num_classes" in head):
            continue
        # of networks with a single output for two classes
        head.pop("out_channels", None)
        head.pop("threshold", None)
        head["num_classes"] = num_classes
        head["ignore_index"] = ignore_index
        given = head.get("loss_decode") or {"type": "CrossEntropyLoss"}
        fitted = [_fitted_loss(one, loss, num_classes, where) for one in listed(given)]
        limited += sum(one["type"] == LOSS for one in fitted)
        head["loss_decode"] = fitted[0] if isinstance(given, dict) else fitted
    return limited


def _fitted_loss(
    given: dict[str, Any], loss: dict[str, Any], num_classes: int, where: str
) -> dict[str, Any]:
    """Softmax cross entropy, whoever's, becomes ours; other losses stay as they are."""
    if given.get("type") not in (LOSS, "CrossEntropyLoss"):
        if loss["unused"]:
            raise CannotRunError(
                f"{where}: {given.get('type')} cannot leave out unused outputs: set "
                "segmenter.layout: contiguous"
            )
        return given
    if given.get("use_sigmoid") or given.get("use_mask"):
        raise CannotRunError(
            f"{where}: a CrossEntropyLoss with use_sigmoid cannot be used: a pixel has one class "
            "here, set use_sigmoid to False"
        )
    class_weight = given.get("class_weight")
    if class_weight is not None and len(class_weight) != num_classes:
        raise CannotRunError(
            f"{where}: class_weight has {len(class_weight)} values for {num_classes} classes"
        )
    names = ("loss_weight", "loss_name", "class_weight")
    kept: dict[str, Any] = {name: given[name] for name in names if name in given}
    return {**loss, **kept}


def _triple(values: Sequence[float]) -> Triple:
    red, green, blue = (float(value) / 255 for value in values)
    return red, green, blue
