"""The range check of a number; imports nothing, so that parameters are read at once."""

from __future__ import annotations

import math


def check_number(
    name: str, value: float, low: float, high: float = math.inf, low_open: bool = False
) -> None:
    """Check that `value` is finite and within `[low, high]` (`(low, high]` when `low_open`).

    Raises:
        ValueError: It is not.
    """
    inside = low < value <= high if low_open else low <= value <= high
    if not (math.isfinite(value) and inside):
        raise ValueError(f"{name} = {value} is not in {'(' if low_open else '['}{low}, {high}]")
