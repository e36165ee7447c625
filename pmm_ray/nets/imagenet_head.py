"""A class head that starts from the rows of ImageNet's own (`classifier.head_init: imagenet`).

Legend: C = foreground classes, F = channels of the last feature.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

import torch
import yaml
from torch import Tensor

from pmm_ray.config.plain_yaml import read_yaml
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.store_faults import unreadable

_CLASSES = 1000
_RANGE = re.compile(r"(\d+)(?:-(\d+))?")
_HERE = "pmm_ray.nets"


@dataclass(frozen=True)
class ImagenetHead:
    """Where a head starts."""

    weight: Tensor
    """float32 [C, F]; rows of zeros where ImageNet has no such class."""
    bias: Tensor
    """float32 [C]."""
    known: tuple[bool, ...]
    """Which classes have rows."""


def imagenet_head(
    state: Mapping[str, Tensor], channels: int, groups: Sequence[Sequence[int]], source: str
) -> ImagenetHead:
    """For each class the mean of its ImageNet rows, less the mean of all rows.

    Without a class's rows its weights and bias are 0.

    Args:
        state: a network that was trained on ImageNet, see `read_state`.
        channels: F.
        groups: numbers of the ImageNet classes of each class, C lists.
        source: for messages.

    Raises:
        CannotRunError: there is no linear classifier of 1000 classes on F channels.
    """
    found = [
        name
        for name, value in state.items()
        if tuple(value.shape) in ((_CLASSES, channels), (_CLASSES, channels, 1, 1))
    ]
    if len(found) != 1:
        raise CannotRunError(
            f"head_init: imagenet: {source} holds {len(found)} classifiers of {_CLASSES} classes "
            f"on {channels} channels ({', '.join(found) or 'none'}), one is needed: set weights to "
            "a file with ImageNet's head, or head_init: random"
        )
    rows = state[found[0]].float().reshape(_CLASSES, channels)
    biases = state.get(found[0].removesuffix("weight") + "bias", torch.zeros(_CLASSES)).float()
    weight, bias = torch.zeros(len(groups), channels), torch.zeros(len(groups))
    for index, group in enumerate(groups):
        if group:
            chosen = list(group)
            weight[index] = rows[chosen].mean(0) - rows.mean(0)
            bias[index] = biases[chosen].mean() - biases.mean()
    return ImagenetHead(weight, bias, tuple(bool(group) for group in groups))


def imagenet_groups(names: Sequence[str], table_uri: str | None = None) -> list[list[int]]:
    """The ImageNet classes of each name, numbers 0..999, ascending; empty where there are none.

    A name is looked for in the user's table, among the classes of VOC and COCO, among ImageNet's
    names, and among the last words of these (`terrier` is every terrier).

    Args:
        names: C class names; case, hyphens and underscores do not matter.
        table_uri: YAML of name -> ImageNet names, numbers and ranges; see `head_classes`.

    Raises:
        CannotRunError: the table cannot be read, or names what ImageNet does not have.
    """
    tables = [_user_table(table_uri)] if table_uri is not None else []
    tables += [_shipped_table(), *_imagenet_names()]
    return [
        next((table[name] for table in tables if name in table), []) for name in map(_key, names)
    ]


def _key(name: str) -> str:
    return " ".join(re.sub(r"[_\-\s]+", " ", name).lower().split())


@cache
def imagenet_classes() -> tuple[str, ...]:
    """ImageNet's 1000 classes (ILSVRC 2012) in the order of public classifiers."""
    return tuple(files(_HERE).joinpath("imagenet_classes.txt").read_text("utf-8").splitlines())


@cache
def _imagenet_names() -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    whole: dict[str, list[int]] = {}
    last: dict[str, list[int]] = {}
    for number, name in enumerate(imagenet_classes()):
        whole.setdefault(_key(name), []).append(number)
        last.setdefault(_key(name).split()[-1], []).append(number)
    return whole, last


@cache
def _shipped_table() -> dict[str, list[int]]:
    text = files(_HERE).joinpath("imagenet_groups.yaml").read_text("utf-8")
    return {
        _key(name): _numbers(group, "imagenet_groups.yaml", joint)
        for joint, group in read_yaml(text).items()
        for name in joint.split(",")
    }


def _user_table(uri: str) -> dict[str, list[int]]:
    where = f"head_classes: {uri}"
    try:
        content = read_yaml(storage.read_bytes(uri).decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise unreadable(f"{where} cannot be read", error) from error
    if not isinstance(content, dict):
        raise CannotRunError(f"{where} is no table of names: write `hound: [beagle, 160-170]`")
    table: dict[str, list[int]] = {}
    for name, group in content.items():
        if _key(str(name)) in table:
            raise CannotRunError(
                f"{where}: {name!r} is there already: case, hyphens and underscores do not count: "
                "keep one"
            )
        table[_key(str(name))] = _numbers(group, where, str(name))
    return table


def _numbers(group: object, where: str, name: str) -> list[int]:
    parts = group if isinstance(group, list) else [] if group is None else [group]
    return sorted({number for part in parts for number in _numbers_of(str(part), where, name)})


def _numbers_of(part: str, where: str, name: str) -> Sequence[int]:
    span = _RANGE.fullmatch(part.strip())
    if span:
        first, last = int(span[1]), int(span[2] or span[1])
        if first <= last < _CLASSES:
            return range(first, last + 1)
    elif _key(part) in _imagenet_names()[0]:
        return _imagenet_names()[0][_key(part)]
    raise CannotRunError(
        f"{where}: {name}: {part!r} is no class of ImageNet: give a name of "
        f"pmm_ray/nets/imagenet_classes.txt, a number of 0..{_CLASSES - 1} or a range of them"
    )
