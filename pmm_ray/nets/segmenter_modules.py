"""Our backbones and the under-fitting loss in mmsegmentation's registry.

In a config of mmsegmentation, with or without Ray:

    custom_imports = dict(imports=["pmm_ray.nets.segmenter"])
    model = dict(
        backbone=dict(type="PmmScaleNet101", output_stride=8, weights="scalenet101.pth"),
        decode_head=dict(..., loss_decode=dict(type="PretendedUnderfittingLoss", kind="clamp")),
    )

Legend: B = batch, C = classes with background, H, W = input px.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmm_ray.config.backbones import GENERIC_TYPE, backbone_row
from pmm_ray.method.underfitting import (
    UnderfittingKind,
    UnderfittingScope,
    pretended_underfitting,
)
from pmm_ray.nets.backbone import Allocation, Shape, build_backbone, norms
from pmm_ray.nets.segmenter_source import OUR_TYPES, quiet
from pmm_ray.nets.weight_files import find_weights
from pmm_ray.nets.weights import load_pretrained, read_state
from pmm_ray.runtime.core.errors import CannotRunError

with quiet():
    from mmengine.registry import DefaultScope
    from mmengine.utils import import_modules_from_strings
    from mmseg.models.decode_heads import decode_head
    from mmseg.registry import MODELS


class SegmentationBackbone(nn.Module):
    """A backbone as mmsegmentation has them: a tuple of four features, dilated.

    Registered once per row, see `config.backbones`. At output stride 8 the stages of ScaleNet and
    Res2Net have strides 1, 2, 1, 1 and dilations 1, 1, 2, 4, and the last block of the wide
    ResNet-38 has dilation 4; its features are the activated inputs of b4, b5 and b6, and the
    activated output (released code).

    Args:
        name: of the backbone, for `PmmBackbone`; `module:ROW` is a row of yours.
        output_stride: input px per px of the last feature: 8, 16 or 32 (ResNet-38: 8).
        freeze_norm: keep BatchNorm at its pretrained statistics.
        weights: `none`, `imagenet`, or a path, see `find_weights`.
        allocation: channel table of ScaleNet-50 and -152, where there are no weights to read it
            from.
    """

    name = ""

    def __init__(
        self,
        output_stride: int = 8,
        freeze_norm: bool = False,
        weights: str = "none",
        allocation: Allocation | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__()
        self.name = name or self.name
        uri = find_weights(weights, self.name)
        state = None if uri is None else read_state(uri)
        shape = Shape(output_stride, dilate=True, state=state, allocation=allocation)
        self.net = build_backbone(self.name, shape)
        if uri is not None and state is not None:
            load_pretrained(self.net, state, uri, heads=self.net.heads)
        self._freeze_norm = freeze_norm
        if freeze_norm:
            for norm in norms(self.net):
                norm.requires_grad_(False)
        names = [info.name for info in self.net.features]
        self._indices = [names.index(feature) for feature in backbone_row(self.name).features]
        self.channels = [self.net.features[i].channels for i in self._indices]

    def train(self, mode: bool = True) -> SegmentationBackbone:
        super().train(mode)
        if self._freeze_norm:
            # the training loop may have made synchronised ones of them
            for module in self.net.modules():
                if isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
                    module.eval()
        return self

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, ...]:
        taps = self.net.forward_features(images_B3HW)
        return tuple(taps[i] for i in self._indices)


MODELS.register_module(name=GENERIC_TYPE, module=SegmentationBackbone, force=True)
for _type, _name in OUR_TYPES.items():
    MODELS.register_module(
        name=_type, module=type(_type, (SegmentationBackbone,), {"name": _name}), force=True
    )


@MODELS.register_module(force=True)
class PretendedUnderfittingLoss(nn.Module):
    """Cross entropy under pretended under-fitting (Eq. 10-13), as an mmsegmentation loss.

    Every head has its own; the released code gives it to both. The loss map holds zeros where a
    pixel is ignored, and its mean counts them, as in the released code.

    Args:
        kind, beta, kappa, scope, group: see `pretended_underfitting`; `kind="none"` is the plain
            mean.
        loss_weight: multiplies the result, after the test against beta.
        class_weight: factors of the classes [C].
        unused: outputs that no pixel can have: they take no part in the softmax.
        loss_name: in mmsegmentation's logs.
    """

    class_weight: Tensor | None
    unused: Tensor | None
    limited: Tensor | None
    """Share of the last pass's images whose loss was limited, 0..1; None: there was no pass, or
    `kind` is `none`."""

    def __init__(
        self,
        kind: UnderfittingKind = "clamp",
        beta: float = 0.5,
        kappa: float = 0.5,
        scope: UnderfittingScope = "worker",
        group: int = 2,
        loss_weight: float = 1.0,
        class_weight: Sequence[float] | None = None,
        unused: Sequence[int] = (),
        loss_name: str = "loss_pus",
    ) -> None:
        super().__init__()
        self._limit = partial(
            pretended_underfitting, kind=kind, beta=beta, kappa=kappa, scope=scope, group=group
        )
        self._limits = kind != "none"
        self._weight = loss_weight
        self.limited = None
        self.loss_name = loss_name
        weights = None if class_weight is None else torch.tensor(list(class_weight))
        self.register_buffer("class_weight", weights, persistent=False)
        indices = torch.tensor(list(unused)) if unused else None
        self.register_buffer("unused", indices, persistent=False)

    def forward(
        self,
        logits_BCHW: Tensor,
        labels_BHW: Tensor,
        weight: Tensor | None = None,
        ignore_index: int = 255,
        reduction_override: str | None = None,
        **_: Any,
    ) -> Tensor:
        """The scalar loss.

        Args:
            logits_BCHW: floating point.
            labels_BHW: int64.
            weight: of the pixels [B, H, W], from mmsegmentation's samplers.
            ignore_index: label without loss.
            reduction_override: `none` gives the unlimited loss map instead, for samplers.
        """
        logits = logits_BCHW.float()
        if self.unused is not None:
            logits = logits.index_fill(1, self.unused, float("-inf"))
        loss_BHW = F.cross_entropy(
            logits,
            labels_BHW,
            weight=self.class_weight,
            reduction="none",
            ignore_index=ignore_index,
        )
        if weight is not None:
            loss_BHW = loss_BHW * weight
        if reduction_override == "none":
            return self._weight * loss_BHW
        loss, limited = self._limit(loss_BHW, labelled=labels_BHW != ignore_index)
        self.limited = limited if self._limits else None
        return self._weight * loss


@contextmanager
def no_accuracy() -> Iterator[None]:
    """Heads leave out their accuracy: nobody reads it, and a GPU is waited for in each of them."""
    found = decode_head.accuracy
    decode_head.accuracy = lambda logits, *_, **__: logits.new_zeros(())
    try:
        yield
    finally:
        decode_head.accuracy = found


def build_registered(model: Mapping[str, Any], imports: Sequence[str], where: str) -> nn.Module:
    """What a config describes, randomly initialised.

    Args:
        model: in mmsegmentation's notation.
        imports: modules that define what the model names.
        where: names the model in the error.

    Raises:
        CannotRunError: it cannot be built.
    """
    with quiet(), DefaultScope.overwrite_default_scope("mmseg"):
        try:
            import_modules_from_strings(list(imports))
            # mmsegmentation takes what it is given apart
            network: nn.Module = MODELS.build(copy.deepcopy(dict(model)))
            if hasattr(network, "init_weights"):
                network.init_weights()  # type: ignore[operator]
        except CannotRunError:
            raise
        # whatever a config can be wrong in, from a name nobody knows to channels that do not fit
        except Exception as error:
            raise CannotRunError(
                f"{where}: mmsegmentation cannot build this model: {type(error).__name__}: {error}"
            ) from error
    return network
