"""A user's mmsegmentation config: its `model`, the modules it needs, the weights it starts from."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pmm_ray.config import SegmenterConfig
from pmm_ray.config.backbones import BACKBONES, GENERIC_TYPE
from pmm_ray.nets.weight_files import find_weights
from pmm_ray.runtime.core.errors import CannotRunError

_SCOPES = {"mmseg", "mmengine", "mmcv"}
# packages whose networks are written with their scope: `mmpretrain.ConvNeXt`
_OTHER_SCOPES = {"mmpretrain", "mmdet"}

OUR_TYPES = {row.mmseg_type: name for name, row in BACKBONES.items()}
"""Our backbones' names in mmsegmentation's registry -> our names."""

# of mmcv's compiled operators, which the plain mmcv package does not have
_COMPILED = {
    *("CCHead", "PSAHead", "PointHead", "SideAdapterCLIPHead", "FocalLoss"),
    *("DCN", "DCNv2", "DeformConv2d", "ModulatedDeformConv2d", "ModulatedDeformConv2dPack"),
    *("carafe", "CARAFEPack", "SAC"),
}


@dataclass(frozen=True)
class ModelSource:
    """The `model` of a user's mmsegmentation config, before it is fitted to a data set."""

    uri: str
    model: dict[str, Any]
    imports: tuple[str, ...]
    """Modules that the file's `custom_imports` names."""
    pretrained: str | None
    """Checkpoint of the backbone that the file names."""

    def identity(self) -> str:
        """A hash of the content; comments, base files and paths do not enter it."""
        content = [self.model, self.imports]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_model(uri: str) -> ModelSource:
    """The model of an mmsegmentation config file (`.py`, `.yaml` or `.json`, with `_base_`).

    A `.py` config is a program, and is run: it is trusted as a recipe is.

    Raises:
        CannotRunError: the file cannot be read, has no `model`, needs compiled operators, or names
            weights other than a backbone's.
    """
    with quiet():
        from mmengine.config import Config

        try:
            config = Config.fromfile(uri).to_dict()
        # a config is a program: whatever it raises is the user's
        except Exception as error:
            raise CannotRunError(
                f"segmenter.config: cannot read {uri}: {type(error).__name__}: {error}"
            ) from error
    model = config.get("model")
    if not isinstance(model, dict) or "decode_head" not in model or "backbone" not in model:
        raise CannotRunError(
            f"segmenter.config: {uri} has no `model` with a `backbone` and a `decode_head`"
        )
    plain: dict[str, Any] = _plain(model, uri)
    imports = (config.get("custom_imports") or {}).get("imports", ())
    imports = (imports,) if isinstance(imports, str) else tuple(imports)
    compiled = sorted({d["type"] for d in dicts_in(plain) if d.get("type") in _COMPILED})
    if compiled:
        raise CannotRunError(
            f"segmenter.config: {uri}: {', '.join(compiled)} needs mmcv.ops, compiled operators "
            "that the installed mmcv does not have: choose another head, loss or convolution"
        )
    pretrained = _take_pretrained(plain, uri)
    check_types(plain, f"segmenter.config: {uri}")
    return ModelSource(uri, plain, imports, pretrained)


def our_backbone(model: Mapping[str, Any]) -> str | None:
    """The name of a model's backbone, where it is one of ours."""
    backbone = model["backbone"]
    name = backbone.get("name") if backbone.get("type") == GENERIC_TYPE else None
    return OUR_TYPES.get(backbone.get("type"), name)


def backbone_weights(config: SegmenterConfig, source: ModelSource) -> str | None:
    """The file that the backbone of a user's model starts from; None: at random.

    Raises:
        CannotRunError: the config names an address in the net, or the file is missing.
    """
    name = our_backbone(source.model) or "efficientnet_lite0"
    if config.weights != "imagenet":
        return find_weights(config.weights, name)
    named = source.pretrained
    if named is None:
        return None
    if "://" in named and not named.startswith(("s3://", "gs://", "file://")):
        raise CannotRunError(
            f"{source.uri} starts from {named}, which is not fetched from the net: download it and "
            "set segmenter.weights to the file, or set segmenter.weights: none"
        )
    return find_weights(named, name)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """mmsegmentation warns of operators that are not used here, and prints while it loads."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _take_pretrained(model: dict[str, Any], uri: str) -> str | None:
    """Remove the checkpoints that a model names; returns the backbone's."""
    backbone = model["backbone"]
    found = [part.pop("pretrained", None) for part in (model, backbone)]
    odd = next((name for name in found if not isinstance(name, str | None)), None)
    if odd is not None:
        raise CannotRunError(
            f"segmenter.config: {uri} has pretrained={odd!r}, which is no file: download the "
            "backbone's weights and set segmenter.weights to them, or to none"
        )
    if our_backbone(model):
        found.append(backbone.pop("weights", None))
    for part in dicts_in(model):
        given = part.get("init_cfg")
        kept = []
        for one in listed(given):
            if one.get("type") != "Pretrained":
                kept.append(one)
            elif part is backbone:
                found.append(one.get("checkpoint"))
            else:
                raise CannotRunError(
                    f"segmenter.config: {uri} starts from {one.get('checkpoint')}: only a backbone "
                    "can start from pretrained weights here"
                )
        if len(kept) < len(listed(given)):
            part["init_cfg"] = kept or None
    return next((name for name in found if name), None)


def dicts_in(value: Any) -> Iterator[dict[str, Any]]:
    """Every dict in a model, the outermost first."""
    if isinstance(value, dict):
        yield value
        for inner in value.values():
            yield from dicts_in(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from dicts_in(inner)


def listed(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def check_types(model: Mapping[str, Any], where: str) -> None:
    """Refuse a model that could run more than registered modules once it is kept with a network.

    A registry imports and calls what a `type` gives a path to, and mmengine unpickles checkpoints.

    Raises:
        CannotRunError: a `type` that is no registered name, or a checkpoint to start from.
    """
    for found in dicts_in(model):
        name = str(found.get("type", ""))
        scope, _, rest = name.rpartition(".")
        scoped = scope in _OTHER_SCOPES and rest[:1].isupper()
        if name and not (name.isidentifier() or (scoped and rest.isidentifier())):
            raise CannotRunError(
                f"{where}: {name!r} is not the name of a registered module: register the class, "
                "use its plain name and list its module in custom_imports"
            )
        if name == "Pretrained" or found.get("pretrained"):
            raise CannotRunError(f"{where}: names another checkpoint, which is not opened")


def _plain(value: Any, uri: str) -> Any:
    """A copy that holds plain values only: it can be kept with the network and sent to workers."""
    if isinstance(value, dict):
        plain = {str(name): _plain(inner, uri) for name, inner in value.items()}
        scope, _, name = str(plain.get("type", "")).rpartition(".")
        if scope.split(".")[0] in _SCOPES:
            # configs in pure Python give the class itself, which becomes its path
            plain["type"] = name
        return plain
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(inner, uri) for inner in value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise CannotRunError(
        f"segmenter.config: the model of {uri} holds {value!r}: only plain values can be kept"
    )
