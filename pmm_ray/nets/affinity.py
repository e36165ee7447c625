"""The affinity network: features of which neighbouring pixels of one object are alike.

Legend: B = batch, F = feature channels, H, W = input px, h, w = feature px.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pmm_ray.config import AffinityConfig
from pmm_ray.config.backbones import backbone_row
from pmm_ray.nets.backbone import Backbone, OnBackbone, Shape, build_backbone, temper
from pmm_ray.nets.checkpoints import load_model, stored_section
from pmm_ray.nets.weight_files import find_weights
from pmm_ray.nets.weights import load_pretrained, load_strict, read_state
from pmm_ray.runtime.core.errors import CannotRunError

KIND = "affinity"


class AffinityNetwork(OnBackbone):
    """Three taps of a backbone, projected, joined and mixed: 192 features, or ResNet38's 448.

    As in SEAM's network the backbone's layers are this network's own: the state dict has the
    names of public checkpoints (`f8_3.weight`, `f8_4.weight`, `f8_5.weight`, `f9.weight`).

    Args:
        backbone: any of the registry, its taps at one stride.
        taps: names of the first two taps; the third is the backbone's last feature.
        channels: that the taps are projected to.
        frozen: see `OnBackbone`.

    Raises:
        CannotRunError: the taps have different strides.

    Source: released code of AffinityNet and PMM (1x1 convolutions without bias, ELU after each).
    """

    head_layers = ("f8_3", "f8_4", "f8_5", "f9")

    def __init__(
        self,
        backbone: Backbone,
        *,
        taps: tuple[str, str],
        channels: tuple[int, int, int],
        **frozen: bool,
    ) -> None:
        super().__init__(backbone, **frozen)
        names = [info.name for info in backbone.features]
        self._taps = (*(names.index(name) for name in taps), len(names) - 1)
        chosen = [backbone.features[tap] for tap in self._taps]
        if len({info.stride for info in chosen}) > 1:
            raise CannotRunError(
                f"affinity.backbone: the taps have different strides: {chosen}: choose another"
            )
        self.adopt("backbone", backbone)
        projections = zip(chosen, channels, strict=True)
        self.f8_3, self.f8_4, self.f8_5 = (
            nn.Conv2d(info.channels, width, 1, bias=False) for info, width in projections
        )
        self.f9 = nn.Conv2d(sum(channels), sum(channels), 1, bias=False)
        for projection in (self.f8_3, self.f8_4, self.f8_5):
            nn.init.kaiming_normal_(projection.weight)
        nn.init.xavier_uniform_(self.f9.weight, gain=4)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Features, float [B, F, h, w], for `method.affinity.pair_affinities`.

        Args:
            images_B3HW: float32 [B, 3, H, W], normalised with `input_mean` and `input_std`.
        """
        features = self.backbone.forward_features(images_B3HW)
        heads = zip((self.f8_3, self.f8_4, self.f8_5), self._taps, strict=True)
        return F.elu(self.f9(torch.cat([F.elu(head(features[tap])) for head, tap in heads], dim=1)))


def build_affinity(config: AffinityConfig) -> AffinityNetwork:
    """The network that a configuration names, its backbone's pretrained weights loaded.

    The heads get random values of torch's global generator: seed it for a reproducible network.

    Raises:
        CannotRunError: the weights are missing or do not fit.
    """
    uri = find_weights(config.weights, config.backbone)
    state = None if uri is None else read_state(uri)
    network = _build(config, state)
    if uri is not None and state is not None:
        network.loaded = load_pretrained(
            network, state, uri, fresh=network.head_layers, heads=network.backbone.heads
        )
    elif config.freeze_norm:
        temper(network.backbone)
    return network


def load_affinity(checkpoint_uri: str) -> tuple[AffinityNetwork, dict[str, Any]]:
    """A trained affinity network in evaluation mode on the CPU, and its description.

    Raises:
        CannotRunError: the file is not a trained affinity network.
    """
    state, meta = load_model(checkpoint_uri, KIND)
    config = stored_section(AffinityConfig, meta, checkpoint_uri)
    with torch.random.fork_rng(devices=[]):
        network = _build(config, state)
    load_strict(network, state, checkpoint_uri)
    return network.eval(), meta


def _build(config: AffinityConfig, state: dict[str, Tensor] | None) -> AffinityNetwork:
    row = backbone_row(config.backbone)
    shape = Shape(last_dilation=config.resnet38_dilation, state=state)
    return AffinityNetwork(
        build_backbone(config.backbone, shape),
        taps=row.taps,
        channels=row.affinity_channels,
        freeze_norm=config.freeze_norm,
        freeze_first=config.freeze_first,
    )
