"""The public networks' numbers: deterministic weights, inputs, and what must come out."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pmm_ray.nets.backbone import Backbone

TOLERANCE = 1e-4

Network = TypeVar("Network", bound=nn.Module)


def generator(key: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(key.encode()))


def weight(key: str, shape: tuple[int, ...], gain: float) -> NDArray[Any]:
    """What a tensor of this name and shape is filled with."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    draw = generator(key)
    if key.endswith("running_var"):
        values = draw.uniform(0.5, 1.5, size=shape)
    elif key.endswith(("running_mean", "bias")):
        values = draw.standard_normal(size=shape) * 0.1
    elif len(shape) == 1:
        values = draw.uniform(0.5, 1.5, size=shape)
    else:
        values = draw.standard_normal(size=shape) * (math.sqrt(2 / math.prod(shape[1:])) * gain)
    return np.asarray(values, dtype=np.float32)


class Golden:
    """The folder of stored values."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def keys(self, name: str) -> list[tuple[str, tuple[int, ...]]]:
        rows = json.loads((self.folder / f"keys_{name}.json").read_text())
        return [(key, tuple(shape)) for key, shape, _ in rows]

    def state(self, network: nn.Module, gain: float = 0.7) -> dict[str, Tensor]:
        """Deterministic weights for all of a network's tensors; it may be on the meta device."""
        return {
            key: torch.from_numpy(weight(key, tuple(tensor.shape), gain))
            for key, tensor in network.state_dict().items()
        }

    def input(self, name: str) -> Tensor:
        """The image that is called by its shape, `1x3x96x96` or `1x3x96x96#k`."""
        shape = [int(side) for side in name.split("#")[0].split("x")]
        return torch.from_numpy(
            generator("input:" + name).standard_normal(size=shape).astype(np.float32)
        )

    def values(self, file: str) -> dict[str, NDArray[Any]]:
        with np.load(self.folder / f"forward_{file}.npz", allow_pickle=False) as stored:
            return dict(stored)


def with_classifier(network: Backbone) -> Backbone:
    """With the linear classifier that public files hold beside the features."""
    network.fc = nn.Linear(network.features[-1].channels, 1000)
    return network


def logits(network: Backbone, images: Tensor) -> Tensor:
    """What that classifier makes of images, [B, 1000]."""
    found: Tensor = network.get_submodule("fc")(network(images).mean(dim=(2, 3)))
    return found


def unfilled(make: Callable[[], Network]) -> Network:
    """A network without memory for its weights: names and shapes only."""
    with torch.device("meta"):
        return make()


def filled(make: Callable[[], Network], state: dict[str, Tensor]) -> Network:
    """A network in evaluation mode that uses these very tensors."""
    network = unfilled(make)
    network.load_state_dict(state, assign=True)
    return network.eval()


def taps(values: dict[str, NDArray[Any]], prefix: str) -> list[str]:
    """Names of the tensors stored below a prefix."""
    ends = [key.removeprefix(prefix + "/") for key in values if key.startswith(prefix + "/")]
    return sorted({end.removesuffix("/stat") for end in ends if end.endswith("/stat")})


def error(values: dict[str, NDArray[Any]], tap: str, found: Tensor) -> float:
    """Largest difference of samples and statistics, over the largest stored value."""
    array = found.numpy()
    assert array.shape == tuple(values[tap + "/shape"])
    samples = array.reshape(-1)[:: int(values[tap + "/stride"])].astype(np.float64)
    wide = array.astype(np.float64)
    statistics = np.array([wide.mean(), wide.std(), wide.min(), wide.max()])
    errors = [
        np.abs(got - want).max() / np.abs(want).max()
        for got, want in ((samples, values[tap + "/values"]), (statistics, values[tap + "/stat"]))
    ]
    return float(max(errors))


def shapes(network: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a state dict, in order."""
    return [(name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()]


@contextmanager
def recorded(network: nn.Module, layers: dict[str, str]) -> Iterator[dict[str, Tensor]]:
    """The outputs of layers in the forward passes of this block, by tap."""
    found: dict[str, Tensor] = {}

    def keep(tap: str) -> Callable[..., None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            found[tap] = (output[0] if isinstance(output, tuple) else output).clone()

        return hook

    hooks = [
        network.get_submodule(name).register_forward_hook(keep(tap)) for tap, name in layers.items()
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def check_taps(
    values: dict[str, NDArray[Any]], prefix: str, found: dict[str, Tensor], among: list[str]
) -> None:
    """Every stored tensor of `among` was found and agrees."""
    assert set(among) <= set(found)
    errors = {tap: error(values, f"{prefix}/{tap}", found[tap]) for tap in among}
    assert {tap: e for tap, e in errors.items() if e > TOLERANCE} == {}
