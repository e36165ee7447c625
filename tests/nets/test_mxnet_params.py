"""MXNet's parameter files: every generation of the format, and nothing beyond their end."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pmm_ray.nets.mxnet_params import is_params, read_params, resnet38_state
from pmm_ray.nets.resnet38 import ResNet38
from pmm_ray.nets.weights import load_pretrained, read_state
from pmm_ray.runtime.core.errors import CannotRunError

from .golden import Golden, filled, unfilled

TYPES = {"float32": 0, "float64": 1, "float16": 2, "uint8": 3, "int32": 4, "int8": 5, "int64": 6}


def array_bytes(array: NDArray[Any], generation: str) -> bytes:
    sides = len(array.shape)
    if generation == "v2":
        head = struct.pack("<Ii", 0xF993FAC9, 0) + struct.pack(f"<I{sides}q", sides, *array.shape)
    elif generation == "v1":
        head = struct.pack("<I", 0xF993FAC8) + struct.pack(f"<I{sides}q", sides, *array.shape)
    else:
        head = struct.pack(f"<I{sides}I", sides, *array.shape)
    device = struct.pack("<ii", 1, 0)
    return head + device + struct.pack("<i", TYPES[str(array.dtype)]) + array.tobytes()


def params(arrays: dict[str, NDArray[Any]], generation: str = "v2") -> bytes:
    """What MXNet writes."""
    names = [struct.pack("<Q", len(name)) + name.encode() for name in arrays]
    return b"".join(
        [
            struct.pack("<QQQ", 0x112, 0, len(arrays)),
            *(array_bytes(array, generation) for array in arrays.values()),
            struct.pack("<Q", len(names)),
            *names,
        ]
    )


def mxnet_name(name: str) -> str:
    """Our name of a tensor of the wide ResNet-38 as MXNet's authors called it."""
    *layer, value = name.split(".")
    kind = "aux" if value.startswith("running") else "arg"
    norm = "bn" in layer[-1]
    value = {
        "weight": "gamma" if norm else "weight",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_var",
    }[value]
    if len(layer) == 1:
        return f"{kind}:{layer[0]}_{value}"
    block, part = layer
    stage, _, repeat = block.removeprefix("b").partition("_")
    prefix = "bn" if norm else "res"
    branch = part.split("_", 1)[1]
    return f"{kind}:{prefix}{stage}{'b' + repeat if repeat else 'a'}_{branch}_{value}"


@pytest.mark.parametrize("generation", ["v2", "v1", "legacy"])
def test_every_generation_is_read(generation: str) -> None:
    draw = np.random.default_rng(0)
    sizes = [(2, 3), (4,), (1, 2, 3), (5,), (2, 2), (3,), (7,)]
    arrays = {
        f"arg:{kind}": draw.uniform(0, 100, size).astype(kind)
        for kind, size in zip(TYPES, sizes, strict=True)
    }
    data = params(arrays, generation)
    found = read_params(data)
    assert is_params(data)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.writeable


def test_damage_is_named_whatever_its_place() -> None:
    data = params({"arg:a": np.ones((2, 2), np.float32), "aux:b": np.zeros(3, np.float32)})
    for size in range(len(data)):
        with pytest.raises(ValueError, match="damaged"):
            read_params(data[:size])
    with pytest.raises(ValueError, match="after the last name"):
        read_params(data + b"x")
    with pytest.raises(ValueError, match="magic"):
        read_params(b"\x00" * 64)
    huge = struct.pack("<QQQ", 0x112, 0, 2**60)
    with pytest.raises(ValueError, match="entries"):
        read_params(huge)
    for change, message in (
        (struct.pack("<Ii", 0xF993FAC9, 1), "sparse"),
        (struct.pack("<IiI", 0xF993FAC9, 0, 99), "99 axes"),
        (struct.pack("<IiI", 0xF993FAC9, 0, 0), "without axes"),
        (struct.pack("<IiIq", 0xF993FAC9, 0, 1, -4), "shape"),
        (struct.pack("<IiIqiii", 0xF993FAC9, 0, 1, 1, 1, 0, 77), "type 77"),
    ):
        with pytest.raises(ValueError, match=message):
            read_params(struct.pack("<QQQ", 0x112, 0, 1) + change + b"\x00" * 32)


def test_names_become_those_of_the_network() -> None:
    names = {
        "arg:conv1a_weight": "conv1a.weight",
        "arg:res2a_branch1_weight": "b2.conv_branch1.weight",
        "arg:res4b3_branch2a_weight": "b4_3.conv_branch2a.weight",
        "arg:bn4b3_branch2a_gamma": "b4_3.bn_branch2a.weight",
        "arg:bn4b3_branch2a_beta": "b4_3.bn_branch2a.bias",
        "aux:bn6a_branch2b1_moving_var": "b6.bn_branch2b1.running_var",
        "aux:bn7_moving_mean": "bn7.running_mean",
        "arg:linear1000_bias": "linear1000.bias",
        "arg:data": "arg:data",
    }
    state = resnet38_state({name: np.zeros(1, np.float32) for name in names})
    assert list(state) == list(names.values())
    own = {
        name for name in unfilled(ResNet38).state_dict() if not name.endswith("num_batches_tracked")
    }
    back = resnet38_state({mxnet_name(name): np.zeros(1, np.float32) for name in own})
    assert set(back) == own


@pytest.mark.slow
@pytest.mark.slow
def test_the_wide_resnet_loads_from_such_a_file(golden: Golden, tmp_path: Path) -> None:
    state = golden.state(unfilled(ResNet38))
    arrays = {
        mxnet_name(name): tensor.numpy()
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
    arrays["arg:linear1000_weight"] = np.zeros((1000, 8), np.float32)
    path = tmp_path / "net.params"
    path.write_bytes(params(arrays, "legacy"))
    net = ResNet38()
    loaded = load_pretrained(net, read_state(str(path)), "net.params", heads=net.heads)
    assert loaded.left_over == ("linear1000.weight",)
    want = filled(ResNet38, state)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, want.state_dict()[name])
    del arrays["arg:bn7_gamma"]
    path.write_bytes(params(arrays))
    with pytest.raises(CannotRunError, match=r"1 missing: bn7\.weight"):
        load_pretrained(net, read_state(str(path)), "net.params", heads=net.heads)
    path.write_bytes(params(arrays)[:-1])
    with pytest.raises(CannotRunError, match=r"not a readable \.params file"):
        read_state(str(path))
