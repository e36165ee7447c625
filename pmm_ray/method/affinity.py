"""Pixel affinities: which pairs of neighbours belong to one object (AffinityNet; Tab. 2 and 3).

Legend: B = batch, F = feature channels, h, w = feature px, D = directions. A pair is a pixel and
its partner in one of D directions; the other half of the plane are the same pairs, seen from the
partner. What has no partner inside the map is no pair.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

_MARGIN = 1e-5  # inside logarithms and under counts (released AffinityNet code)


class PairLabels(NamedTuple):
    """What is known of each pair; all bool [B, D, h, w], at most one of them true."""

    background: Tensor
    """Both are background."""
    foreground: Tensor
    """Both are of one foreground class."""
    different: Tensor
    """They are of two classes, one of which may be the background."""


def directions(radius: int) -> tuple[tuple[int, int], ...]:
    """(dy, dx) of every neighbour closer than `radius` px, one of each two opposite ones.

    Args:
        radius: px of the feature map, at least 2 (paper of AffinityNet: 5, which gives 34).

    Raises:
        ValueError: a radius with no neighbour.
    """
    if radius < 2:
        raise ValueError(f"radius {radius} holds no neighbour: it must be at least 2 px")
    reach = range(1 - radius, radius)
    return tuple(
        (dy, dx)
        for dy in range(radius)
        for dx in reach
        if (dy > 0 or dx > 0) and math.hypot(dy, dx) < radius
    )


def shifted(
    directions: tuple[tuple[int, int], ...], height: int, width: int
) -> Iterator[tuple[tuple[slice, slice], tuple[slice, slice]]]:
    """(rows and columns of the pixels, those of their partners) of each direction's pairs."""
    for way in directions:
        (rows, partner_rows), (columns, partner_columns) = (
            _overlap(side, step) for side, step in zip((height, width), way, strict=True)
        )
        yield (rows, columns), (partner_rows, partner_columns)


def _overlap(side: int, step: int) -> tuple[slice, slice]:
    """Where an axis has a partner `step` px on, and where the partners are; empty past its end."""
    count = max(side - abs(step), 0)
    first = max(-step, 0) if count else 0
    partner = max(step, 0) if count else 0
    return slice(first, first + count), slice(partner, partner + count)


def pair_affinities(features_BFhw: Tensor, radius: int) -> Tensor:
    """`exp(-mean over channels of |f_i - f_j|)` of every pair.

    Args:
        features_BFhw: floating [B, F, h, w].
        radius: see `directions`.

    Returns:
        float32 [B, D, h, w], 0..1; 0 where a pixel has no partner inside the map.

    Source: AffinityNet, Eq. 3 of its paper, with the mean of its released code.
    """
    features = features_BFhw.float()
    height, width = features.shape[2:]
    planes = []
    for here, there in shifted(directions(radius), height, width):
        distance = (features[:, :, *here] - features[:, :, *there]).abs().mean(dim=1)
        rows, columns = here
        margins = (columns.start, width - columns.stop, rows.start, height - rows.stop)
        planes.append(F.pad(torch.exp(-distance), margins))
    return torch.stack(planes, dim=1)


def pair_labels(labels_Bhw: Tensor, radius: int, ignore: int) -> PairLabels:
    """What labels say of each pair; nothing where one of the two is ignored.

    Args:
        labels_Bhw: integers [B, h, w], 0 the background.
        radius: see `directions`.
        ignore: value of unknown pixels.
    """
    batch, height, width = labels_Bhw.shape
    ways = directions(radius)
    shape = (batch, len(ways), height, width)
    background, foreground, different = (
        torch.zeros(shape, dtype=torch.bool, device=labels_Bhw.device) for _ in range(3)
    )
    for d, (here, there) in enumerate(shifted(ways, height, width)):
        one, other = labels_Bhw[:, *here], labels_Bhw[:, *there]
        known = (one != ignore) & (other != ignore)
        background[:, d, *here] = known & (one == 0) & (other == 0)
        foreground[:, d, *here] = known & (one == other) & (one != 0)
        different[:, d, *here] = known & (one != other)
    return PairLabels(background, foreground, different)


def affinity_loss(affinity_BDhw: Tensor, pairs: PairLabels) -> Tensor:
    """Cross entropy of the affinities: pairs of background and of objects 1/4 each, others 1/2.

    Args:
        affinity_BDhw: float32, from `pair_affinities`.
        pairs: from `pair_labels` with the same radius.

    Returns:
        A scalar; a kind of pair that does not occur counts 0.

    Source: AffinityNet, Eq. 5-7 of its paper; released code (margins of 1e-5).
    """
    alike = -torch.log(affinity_BDhw + _MARGIN)
    unlike = -torch.log(1 + _MARGIN - affinity_BDhw)
    return (
        _mean(alike, pairs.background) / 4
        + _mean(alike, pairs.foreground) / 4
        + _mean(unlike, pairs.different) / 2
    )


def _mean(values: Tensor, where: Tensor) -> Tensor:
    chosen = where.to(values.dtype)
    return (values * chosen).sum() / (chosen.sum() + _MARGIN)
