"""A user's mmsegmentation config: its `model`, the modules it needs, the weights it starts from.

The segmenter takes the whole model, a classifier the backbone.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pmm_ray.config import AnyClassifierConfig, MulticropConfig
from pmm_ray.config.backbones import (
    BACKBONES,
    GENERIC_TYPE,
    IMAGENET_MEAN,
    IMAGENET_STD,
    backbone_row,
)
from pmm_ray.nets.weight_files import PUBLIC_NAMES, find_weights
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError

_SCOPES = {"mmseg", "mmengine", "mmcv"}
# packages whose networks are written with their scope: `mmpretrain.ConvNeXt`
_OTHER_SCOPES = {"mmpretrain", "mmdet"}

OUR_TYPES = {row.mmseg_type: name for name, row in BACKBONES.items()}
"""Our backbones' names in mmsegmentation's registry -> our names."""

_SYNC_NORMS = {"SyncBN", "MMSyncBN"}
# what of a `data_preprocessor` a classifier needs, in mmsegmentation's words and mmpretrain's
_STATISTICS = ("mean", "std", "bgr_to_rgb", "to_rgb")

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
    key: str
    """The recipe's key that names the file."""
    model: dict[str, Any]
    imports: tuple[str, ...]
    """Modules that the file's `custom_imports` names."""
    pretrained: str | None
    """Checkpoint of the backbone that the file names."""

    @property
    def where(self) -> str:
        """The key and the file: how messages begin."""
        return f"{self.key}: {self.uri}"

    def identity(self) -> str:
        """A hash of the content; comments, base files and paths do not enter it."""
        content = [self.model, self.imports]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def read_model(uri: str) -> ModelSource:
    """The model of an mmsegmentation config file (`.py`, `.yaml` or `.json`, with `_base_`).

    A `.py` config is a program, and is run: it is trusted as a recipe is. Where it says nothing of
    its input's mean and deviation, the model has those of our backbone's row.

    Raises:
        ConfigError: our backbone's row cannot be imported.
        CannotRunError: the file cannot be read, has no `model`, needs compiled operators, or names
            weights other than a backbone's.
    """
    key = "segmenter.config"
    config = _read(uri, key)
    model = config.get("model")
    if not isinstance(model, dict) or "decode_head" not in model or "backbone" not in model:
        raise CannotRunError(f"{key}: {uri} has no `model` with a `backbone` and a `decode_head`")
    source = _source(uri, key, model, config)
    _normalise_as_ours(source.model)
    return source


def _normalise_as_ours(model: dict[str, Any]) -> None:
    """Say how our backbone's input is normalised, where its model does not: not as by default."""
    ours, given = our_backbone(model), model.get("data_preprocessor") or {}
    if ours is None or not (given.get("mean") is None or given.get("std") is None):
        return
    row = backbone_row(ours)
    if (row.input_mean, row.input_std) != (IMAGENET_MEAN, IMAGENET_STD):
        mean, std = ([255 * value for value in way] for way in (row.input_mean, row.input_std))
        said = {"mean": mean, "std": std, "bgr_to_rgb": True}
        model["data_preprocessor"] = given | said


def classifier_source(config: AnyClassifierConfig) -> ModelSource | None:
    """What `config.model` names: a backbone, or that of a whole model; None where it is empty.

    Its `model` holds `backbone`, and where the file has them `data_preprocessor` (mean, standard
    deviation and order of the channels) and `seam_features`.

    Raises:
        CannotRunError: as `read_model`; also where the backbone is one of ours.
    """
    if config.model is None:
        return None
    key = "multicrop.model" if isinstance(config, MulticropConfig) else "classifier.model"
    uri, content = config.model, _read(config.model, key)
    model = content.get("model")
    whole = model if isinstance(model, dict) and "backbone" in model else {"backbone": model}
    if not isinstance(whole["backbone"], dict) or "type" not in whole["backbone"]:
        raise CannotRunError(f"{key}: {uri} has no `model` that is a backbone or has a `backbone`")
    kept = {name: whole[name] for name in ("backbone", "pretrained") if name in whole}
    given = whole.get("data_preprocessor") or content.get("data_preprocessor") or {}
    kept["data_preprocessor"] = {name: given[name] for name in _STATISTICS if name in given}
    if "seam_features" in content:
        kept["seam_features"] = content["seam_features"]
    ours = our_backbone(kept)
    if ours is not None:
        section = key.partition(".")[0]
        raise CannotRunError(f"{key}: {uri} has our own {ours}: set {section}.backbone to it")
    return _source(uri, key, kept, content)


def our_backbone(model: Mapping[str, Any]) -> str | None:
    """The name of a model's backbone, where it is one of ours."""
    backbone = model["backbone"]
    name = backbone.get("name") if backbone.get("type") == GENERIC_TYPE else None
    return OUR_TYPES.get(backbone.get("type"), name)


def backbone_weights(weights: str, source: ModelSource) -> str | None:
    """The file that the backbone of a user's model starts from; None: at random.

    Raises:
        CannotRunError: see `named_weights`, or the file is missing.
    """
    return find_weights(*named_weights(weights, source))


def named_weights(weights: str, source: ModelSource) -> tuple[str, str]:
    """What the weights of a user's model are called, and of which backbone: see `find_weights`.

    Args:
        weights: as the section has them; `imagenet` is what the model's file names, else the
            public weights of a backbone of ours.

    Raises:
        CannotRunError: the config names an address in the net, or nothing.
    """
    ours = our_backbone(source.model)
    option = f"{source.key.partition('.')[0]}.weights"
    if ours is None and weights in PUBLIC_NAMES - {"imagenet"}:
        raise CannotRunError(
            f"{source.where}: no weights called {weights!r} are published for its backbone: set "
            f"{option} to a path, to imagenet or to none"
        )
    name = ours or "efficientnet_lite0"
    if weights != "imagenet":
        return weights, name
    named = source.pretrained or (weights if ours else None)
    if named is None:
        raise CannotRunError(
            f"{source.where} names no weights of its backbone: set {option} to its checkpoint, or "
            "to none"
        )
    if "://" in named and not named.startswith(("s3://", "gs://", "file://")):
        raise CannotRunError(
            f"{source.uri} starts from {named}, which is not fetched from the net: download it and "
            f"set {option} to the file, or set {option}: none"
        )
    return named, name


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """mmsegmentation warns of operators that are not used here, and prints while it loads."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def plain_norms(model: dict[str, Any]) -> None:
    """Make synchronised norms plain ones, which CPUs have too.

    The training loop synchronises them where there are GPUs.
    """
    for found in dicts_in(model):
        if found.get("type") in _SYNC_NORMS:
            found["type"] = "BN"


def _read(uri: str, key: str) -> dict[str, Any]:
    with quiet():
        from mmengine.config import Config

        try:
            content: dict[str, Any] = Config.fromfile(storage.absolute(uri)).to_dict()
        # a config is a program: whatever it raises is the user's
        except Exception as error:
            raise CannotRunError(
                f"{key}: cannot read {uri}: {type(error).__name__}: {error}"
            ) from error
    return content


def _source(uri: str, key: str, model: Any, content: Mapping[str, Any]) -> ModelSource:
    where = f"{key}: {uri}"
    plain: dict[str, Any] = _plain(model, where)
    imports = (content.get("custom_imports") or {}).get("imports", ())
    imports = (imports,) if isinstance(imports, str) else tuple(imports)
    compiled = sorted({d["type"] for d in dicts_in(plain) if d.get("type") in _COMPILED})
    if compiled:
        raise CannotRunError(
            f"{where}: {', '.join(compiled)} needs mmcv.ops, compiled operators "
            "that the installed mmcv does not have: choose another head, loss or convolution"
        )
    pretrained = _take_pretrained(plain, where)
    check_types(plain, where)
    return ModelSource(uri, key, plain, imports, pretrained)


def _take_pretrained(model: dict[str, Any], where: str) -> str | None:
    """Remove the checkpoints that a model names; returns the backbone's."""
    backbone = model["backbone"]
    found = [part.pop("pretrained", None) for part in (model, backbone)]
    odd = next((name for name in found if not isinstance(name, str | None)), None)
    if odd is not None:
        raise CannotRunError(
            f"{where} has pretrained={odd!r}, which is no file: download the backbone's weights "
            f"and set {where.partition('.')[0]}.weights to them, or to none"
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
                    f"{where} starts from {one.get('checkpoint')}: only a backbone can start from "
                    "pretrained weights here"
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


def _plain(value: Any, where: str) -> Any:
    """A copy that holds plain values only: it can be kept with the network and sent to workers."""
    if isinstance(value, dict):
        plain = {str(name): _plain(inner, where) for name, inner in value.items()}
        scope, _, name = str(plain.get("type", "")).rpartition(".")
        if scope.split(".")[0] in _SCOPES:
            # configs in pure Python give the class itself, which becomes its path
            plain["type"] = name
        return plain
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(inner, where) for inner in value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise CannotRunError(f"{where}: the model holds {value!r}: only plain values can be kept")
