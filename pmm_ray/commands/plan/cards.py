"""GPUs and what they can do: how long a network's operations take on a card that is not here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

EFFICIENCY = 0.4
"""Share of a card's peaks that a network is taken to reach. A guess: docs/reference/gpu.md has no
figures yet."""


class Card(NamedTuple):
    """Peaks of a data sheet, without sparsity."""

    bfloat16: float | None
    """Tensor cores, TFLOP/s; None: it has no bfloat16, and networks compute in float32."""
    float32: float
    """As torch computes convolutions: TF32 where the card has it, TFLOP/s."""
    bandwidth: float
    """Of its memory, GB/s."""


# NVIDIA's data sheets of each card (where they say "with sparsity", half of it): T4 (2019), V100
# SXM2 (2018), A10G (AWS G5, 2021), L4 (2023), A100 SXM 40 GB (2020), H100 SXM (2023)
CARDS = {
    "T4": Card(None, 8.1, 320),
    "V100": Card(None, 15.7, 900),
    "A10G": Card(70, 35, 600),
    "L4": Card(121, 60, 300),
    "A100": Card(312, 156, 1555),
    "H100": Card(989, 495, 3350),
}
"""The cards of cluster/ and their like."""


def seconds_on(card: Card, operations: Iterable[tuple[float, float]], *, bfloat16: bool) -> float:
    """How long operations take, one after the other, each bound by arithmetic or by memory.

    Args:
        operations: (floating point operations, values read and written) of each.
        bfloat16: compute in it where the card has it.
    """
    peak, size = card.float32, 4
    if bfloat16 and card.bfloat16 is not None:
        peak, size = card.bfloat16, 2
    taken = (max(f / peak / 1e12, v * size / card.bandwidth / 1e9) for f, v in operations)
    return sum(taken) / EFFICIENCY
