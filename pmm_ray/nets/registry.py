"""Classifiers, built from a section and loaded from a file.

Legend: B = batch, C = foreground classes, H, W = input px, h, w = feature px.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pmm_ray.config import AnyClassifierConfig, ClassifierConfig
from pmm_ray.config.backbones import backbone_row
from pmm_ray.nets.backbone import Backbone, Shape, build_backbone, temper
from pmm_ray.nets.cam_network import CamNetwork
from pmm_ray.nets.checkpoints import load_model, stored_section
from pmm_ray.nets.imagenet_head import imagenet_groups, imagenet_head
from pmm_ray.nets.seam import SeamNetwork
from pmm_ray.nets.segmenter_source import ModelSource, backbone_weights, check_types
from pmm_ray.nets.weight_files import find_weights
from pmm_ray.nets.weights import load_pretrained, load_strict, read_state
from pmm_ray.runtime.core.errors import CannotRunError

_log = logging.getLogger("ray.pmm.weights")


class CamClassifier(CamNetwork):
    """A backbone and a 1x1 convolution; its maps are the CAM scores.

    Args:
        backbone: gives `forward(images) -> [B, channels, h, w]`.
        num_foreground: C.
        bias: give the convolution one; released code: no.
        frozen: see `OnBackbone`.
    """

    head_layers = ("head",)
    align_corners = False

    def __init__(
        self, backbone: Backbone, num_foreground: int, *, bias: bool = False, **frozen: bool
    ) -> None:
        super().__init__(backbone, num_foreground, **frozen)
        self.backbone = backbone
        self.head = nn.Conv2d(backbone.features[-1].channels, num_foreground, 1, bias=bias)
        nn.init.xavier_uniform_(self.head.weight)
        if self.head.bias is not None:
            nn.init.zeros_(self.head.bias)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """Image-level logits and class score maps.

        Args:
            images_B3HW: float32 [B, 3, H, W], normalised with `input_mean` and `input_std`.

        Returns:
            (logits [B, C], scores [B, C, h, w]); logits are the scores' spatial mean.
        """
        scores_BChw = self.head(self.backbone(images_B3HW))
        return scores_BChw.mean(dim=(2, 3)), scores_BChw

    def cam_scores(self, images_B3HW: Tensor, labels_BC: Tensor | None = None) -> Tensor:
        """The score maps, not normalised; see `CamNetwork`.

        With a bias they are max(score + bias, 0): what speaks against a class in one view takes
        nothing from the others.
        """
        scores = self.forward(images_B3HW)[1].float()
        return scores if self.head.bias is None else scores.relu()

    def image_scores(self, images_B3HW: Tensor, labels_BC: Tensor | None = None) -> Tensor:
        return self.forward(images_B3HW)[0].float()


def build_classifier(
    config: AnyClassifierConfig,
    num_foreground: int,
    source: ModelSource | None = None,
    *,
    names: Sequence[str] = (),
) -> CamNetwork:
    """The classifier that a configuration names, pretrained weights loaded.

    A file may hold SEAM's heads too: they are loaded where they fit the classes. The rest of the
    heads gets random values of torch's global generator: seed it for a reproducible network.

    Args:
        num_foreground: C.
        source: of `config.model`, see `classifier_source`; None: `config.backbone`.
        names: of the C classes; `head_init: imagenet` needs them.

    Returns:
        `CamClassifier` or `SeamNetwork`, by `config.kind`; its `loaded` tells what the file gave.

    Raises:
        CannotRunError: the weights are missing or do not fit.
    """
    if source is not None:
        network = _build_registered(config, num_foreground, source)
    else:
        uri = find_weights(config.weights, config.backbone)
        state = None if uri is None else read_state(uri)
        network = _build(config, num_foreground, state, config.training_stride)
        if uri is not None and state is not None:
            heads = network.backbone.heads
            if isinstance(network, SeamNetwork):
                fresh = network.head_layers
                network.loaded = load_pretrained(network, state, uri, fresh=fresh, heads=heads)
            else:
                network.loaded = load_pretrained(network.backbone, state, uri, heads=heads)
        elif config.freeze_norm:
            temper(network.backbone)
    if config.head_init == "imagenet":
        _start_head(config, network, names)
    return network


def _start_head(config: AnyClassifierConfig, network: CamNetwork, names: Sequence[str]) -> None:
    """Give the head ImageNet's rows, of the file that was loaded."""
    if network.loaded is None:
        raise CannotRunError("head_init: imagenet needs weights with ImageNet's head, not none")
    groups = imagenet_groups(names, config.head_classes)
    without = [name for name, group in zip(names, groups, strict=True) if not group]
    if without:
        end = "start at random" if config.epochs else "have no map"
        told = f"ImageNet has no class for {', '.join(without)}: they {end}"
        if not config.epochs or len(without) == len(names):
            raise CannotRunError(
                f"{told}. Name ImageNet classes for them in a file, `hound: [beagle, 160-170]`, "
                "and set head_classes to it; or train: epochs above 0"
            )
        _log.warning("%s", told)
    uri, channels = network.loaded.source, network.backbone.features[-1].channels
    network.start_from(imagenet_head(read_state(uri), channels, groups, uri))


def load_classifier(checkpoint_uri: str) -> tuple[CamNetwork, dict[str, Any]]:
    """A trained classifier in evaluation mode on the CPU, and its description.

    Returns:
        (module, meta); meta holds `config` (the section), `label_space` (JSON text),
        `training` (final loss, steps, images/s), and of a network of mmsegmentation's registry
        `model` and `imports`, see `ModelSource`: its file is not needed.

    Raises:
        CannotRunError: the file is not a trained classifier.
    """
    state, meta = load_model(checkpoint_uri, "classifier")
    config = stored_section(ClassifierConfig, meta, checkpoint_uri)
    num_foreground = int(meta["num_foreground"])
    bare = {name.removeprefix("backbone."): tensor for name, tensor in state.items()}
    with torch.random.fork_rng(devices=[]):
        if "model" in meta:
            check_types(meta["model"], checkpoint_uri)
            imports = tuple(meta["imports"])
            source = ModelSource(checkpoint_uri, "classifier.model", meta["model"], imports, None)
            module = _build_registered(config, num_foreground, source)
        else:
            module = _build(config, num_foreground, bare)
    load_strict(module, state, checkpoint_uri)
    return module.eval(), meta


def _build(
    config: AnyClassifierConfig,
    num_foreground: int,
    state: Mapping[str, Tensor] | None,
    stride: int | None = None,
) -> CamNetwork:
    row = backbone_row(config.backbone)
    stride = row.cam_stride or stride or config.output_stride
    shape = Shape(stride, last_dilation=config.resnet38_dilation, state=state)
    backbone = build_backbone(config.backbone, shape)
    return _with_head(config, num_foreground, backbone, row.taps, row.dropout)


def _build_registered(
    config: AnyClassifierConfig, num_foreground: int, source: ModelSource
) -> CamNetwork:
    """On a backbone of mmsegmentation's registry, its weights loaded."""
    from pmm_ray.nets.segmenter_backbones import RegistryBackbone, load_backbone

    backbone = RegistryBackbone(source)
    taps = backbone.seam_taps
    if config.kind == "seam" and taps is None:
        raise CannotRunError(
            f"{source.where}: SEAM needs two feature maps before the last, and this backbone gives "
            f"{len(backbone.features)}: let its out_indices name more, or choose kind: plain"
        )
    network = _with_head(config, num_foreground, backbone, taps or ("", ""), 0.0)
    uri = backbone_weights(config.weights, source)
    if uri is not None:
        network.loaded = load_backbone(backbone, uri)
    return network


def _with_head(
    config: AnyClassifierConfig,
    num_foreground: int,
    backbone: Backbone,
    taps: tuple[str, str],
    dropout: float,
) -> CamNetwork:
    frozen = {
        "freeze_norm": config.freeze_norm,
        "freeze_first": config.freeze_first,
        "freeze_backbone": config.freeze_backbone,
    }
    if config.kind == "plain":
        return CamClassifier(backbone, num_foreground, bias=config.head_bias, **frozen)
    gate = config.pcm.gate_labels
    return SeamNetwork(
        backbone, num_foreground, taps=taps, dropout=dropout, gate_labels=gate, **frozen
    )
