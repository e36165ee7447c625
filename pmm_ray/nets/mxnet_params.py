"""MXNet `.params` files without MXNet, and the wide ResNet-38 that was published as one.

The format, little-endian: magic and a reserved word, the number of arrays, the arrays, the number
of names, the names (length and bytes). Three generations of arrays differ in how they begin; each
goes on with device, type and raw values. Source: MXNet's serialization (`NDArray::Save`).
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LIST_MAGIC = 0x112
# arrays with 64-bit sides; older ones begin with the number of their axes, sides of 32 bit
_V1_MAGIC = 0xF993FAC8
_V2_MAGIC = 0xF993FAC9
_DENSE = 0
_MOST_AXES = 32
_TYPES = ("<f4", "<f8", "<f2", "u1", "<i4", "i1", "<i8")
_VALUES = {
    "weight": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_var": "running_var",
}
_LAYER = re.compile(
    r"(res|bn)(\d)(?:a|b(\d+))_(branch\w+?)_(weight|gamma|beta|moving_mean|moving_var)"
)
_PLAIN = re.compile(r"(\w+?)_(weight|bias|gamma|beta|moving_mean|moving_var)")


def is_params(data: bytes) -> bool:
    """Whether these are the bytes of a `.params` file."""
    return data[:8] == struct.pack("<Q", LIST_MAGIC)


def read_params(data: bytes) -> dict[str, NDArray[Any]]:
    """Names (`arg:...`, `aux:...`) and arrays of a `.params` file.

    Raises:
        ValueError: damaged, or arrays that are sparse or of an unknown type.
    """
    reader = _Reader(data)
    if reader.take("Q") != LIST_MAGIC:
        raise ValueError("no MXNet parameters: the magic number is another")
    reader.take("Q")
    arrays = [reader.array() for _ in range(reader.count())]
    names = [reader.text() for _ in range(reader.count())]
    if len(names) != len(arrays) or len(set(names)) != len(names):
        raise ValueError(f"damaged: {len(arrays)} arrays, {len(set(names))} different names")
    if not reader.ended():
        raise ValueError("damaged: bytes after the last name")
    return dict(zip(names, arrays, strict=True))


def resnet38_state(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    """The published wide ResNet-38 under the names of `nets.resnet38`.

    `arg:res4b3_branch2a_weight` becomes `b4_3.conv_branch2a.weight`, `aux:bn7_moving_var`
    `bn7.running_var`. Any other name stays as it is, and is refused when it is loaded.

    Source: names of ademxapp's model A1 and of the released PSA and SEAM code.
    """
    return {_torch_name(name): torch.from_numpy(array) for name, array in arrays.items()}


def _torch_name(name: str) -> str:
    bare = name.removeprefix("arg:").removeprefix("aux:")
    if layer := _LAYER.fullmatch(bare):
        kind, stage, repeat, branch, value = layer.groups()
        block = f"b{stage}_{repeat}" if repeat else f"b{stage}"
        return f"{block}.{'conv' if kind == 'res' else 'bn'}_{branch}.{_VALUES[value]}"
    if plain := _PLAIN.fullmatch(bare):
        layer_name, value = plain.groups()
        return f"{layer_name}.{_VALUES[value]}"
    return name


class _Reader:
    """Takes values off the bytes, never beyond their end."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = 0

    def take(self, code: str) -> int:
        (value,) = struct.unpack("<" + code, self._bytes(struct.calcsize("<" + code)))
        return int(value)

    def count(self) -> int:
        """A number of things, each of which takes at least four bytes."""
        count = self.take("Q")
        if count > len(self._data) // 4:
            raise ValueError(f"damaged: {count} entries in {len(self._data)} bytes")
        return count

    def text(self) -> str:
        return bytes(self._bytes(self.take("Q"))).decode()

    def ended(self) -> bool:
        return self._at == len(self._data)

    def array(self) -> NDArray[Any]:
        first = self.take("I")
        if first == _V2_MAGIC and self.take("i") != _DENSE:
            raise ValueError("sparse arrays are not supported")
        if first in (_V1_MAGIC, _V2_MAGIC):
            axes, code = self.take("I"), "q"
        else:
            axes, code = first, "I"
        if axes > _MOST_AXES:
            raise ValueError(f"damaged: an array of {axes} axes")
        if axes == 0:
            raise ValueError("an array without axes holds nothing")
        shape = [self.take(code) for _ in range(axes)]
        if min(shape) < 0:
            raise ValueError(f"damaged: an array of shape {shape}")
        self.take("i")  # kind of device
        self.take("i")  # its number
        kind = self.take("i")
        if not 0 <= kind < len(_TYPES):
            raise ValueError(f"an array of the unknown type {kind}")
        dtype = np.dtype(_TYPES[kind])
        raw = self._bytes(math.prod(shape) * dtype.itemsize)
        # a copy: the file's bytes are neither aligned nor writable
        return np.frombuffer(raw, dtype).reshape(shape).copy()

    def _bytes(self, size: int) -> memoryview:
        end = self._at + size
        if end > len(self._data):
            raise ValueError("damaged: it ends too early")
        found = self._data[self._at : end]
        self._at = end
        return found
