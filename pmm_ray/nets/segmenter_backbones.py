"""Backbones of mmsegmentation's registry as those of classifiers.

Legend: B = batch, C = channels, H, W = input px, h, w = feature px.
"""

from __future__ import annotations

import copy
import math
import re

import torch
import torch.nn.functional as F
from torch import Tensor

from pmm_ray.nets.backbone import Backbone, FeatureInfo
from pmm_ray.nets.segmenter_config import input_statistics
from pmm_ray.nets.segmenter_modules import build_registered
from pmm_ray.nets.segmenter_source import ModelSource, plain_norms
from pmm_ray.nets.weights import Loaded, load_pretrained, read_state
from pmm_ray.runtime.core.errors import CannotRunError

# side of the image that shows what features there are, and the least that is asked for, px
_PROBE = 64
# the two before the last
_SEAM_FEATURES = (-3, -2)
# norms of single features, which Swin and ConvNeXt have and their ImageNet files lack
_FEATURE_NORM = re.compile(r"norm\d")


class RegistryBackbone(Backbone):
    """A registered backbone, randomly initialised; `features` are its maps, in its order.

    Layers that the last map does not depend on are not trained: no loss reaches them.

    Args:
        source: see `classifier_source`.

    Raises:
        CannotRunError: it cannot be built, or gives no feature maps.
    """

    def __init__(self, source: ModelSource) -> None:
        super().__init__()
        model = copy.deepcopy(source.model["backbone"])
        plain_norms(model)
        # a child: SEAM's network takes over layers, and some backbones have bare parameters
        self.net = build_registered(model, source.imports, source.where)
        self.input_mean, self.input_std = input_statistics(source.model, source.where)
        self.features = self._probed(source.where)
        self.seam_taps = self._taps(source)

    def forward_features(self, images_B3HW: Tensor) -> list[Tensor]:
        """The maps; images with sides below 64 px are padded with the mean, their maps cut."""
        height, width = images_B3HW.shape[2:]
        # transformers that shrink keys fail on less
        below, right = max(0, _PROBE - height), max(0, _PROBE - width)
        maps = self.net(F.pad(images_B3HW, (0, right, 0, below)))
        maps = [maps] if isinstance(maps, Tensor) else list(maps)
        if not below and not right:
            return maps
        cut = []
        for one in maps:
            rows = math.ceil(one.shape[2] * height / (height + below))
            columns = math.ceil(one.shape[3] * width / (width + right))
            cut.append(one[:, :, :rows, :columns])
        return cut

    def _probed(self, where: str) -> tuple[FeatureInfo, ...]:
        self.net.eval()
        try:
            with torch.enable_grad():
                maps = self.forward_features(torch.zeros(1, 3, _PROBE, _PROBE))
        # whatever a network of anyone's raises
        except Exception as error:
            raise CannotRunError(
                f"{where}: this backbone cannot compute features of an image of {_PROBE} px "
                f"({type(error).__name__}: {error}): choose another"
            ) from error
        if not maps or not all(isinstance(one, Tensor) and one.ndim == 4 for one in maps):
            raise CannotRunError(
                f"{where}: this backbone gives no feature maps [B, C, h, w]: choose another, or "
                "other options of it"
            )
        if maps[-1].requires_grad:
            torch.autograd.backward(maps[-1], torch.ones_like(maps[-1]))
        for parameter in self.net.parameters():
            if parameter.grad is None:
                parameter.requires_grad_(False)
            parameter.grad = None
        self.net.train()
        return tuple(
            FeatureInfo(f"map{index}", one.shape[1], round(_PROBE / one.shape[2]))
            for index, one in enumerate(maps)
        )

    def _taps(self, source: ModelSource) -> tuple[str, str] | None:
        """The two maps that SEAM compares, the earlier first; None where there are too few."""
        chosen = source.model.get("seam_features")
        names = [info.name for info in self.features]
        if chosen is None:
            if len(names) <= len(_SEAM_FEATURES):
                return None
            chosen = _SEAM_FEATURES
        try:
            low, high = (names[index] for index in chosen)
        except (TypeError, ValueError, IndexError) as error:
            raise CannotRunError(
                f"{source.where}: seam_features = {chosen!r} does not name two of the backbone's "
                f"{len(names)} feature maps: write (i, j), counted from 0"
            ) from error
        return low, high


def load_backbone(backbone: RegistryBackbone, uri: str) -> Loaded:
    """Load a public checkpoint: bare names or below `backbone.`, of any layers beside them.

    Norms of single features (`norm0`, `norm1`, ...) may be missing: they start as they are.

    Raises:
        CannotRunError: another layer of the backbone is missing or does not fit.
    """
    state = read_state(uri)
    own = {name.split(".")[0] for name in backbone.net.state_dict()}
    others = {name.split(".")[0] for name in state} - own
    norms = [name for name in own if _FEATURE_NORM.fullmatch(name)]
    return load_pretrained(backbone.net, state, uri, fresh=norms, heads=sorted(others))
