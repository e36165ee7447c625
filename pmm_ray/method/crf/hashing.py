"""Open addressing over packed 64-bit lattice keys: linear probing, load at most one half."""

from __future__ import annotations

from typing import Any

import numpy as np

from pmm_ray.method.crf.cache import kernel

# Keys are never negative.
_EMPTY = -1
# The golden ratio as a 64-bit fraction: multiplying spreads neighbouring keys over the table.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@kernel
def slots_for(capacity: int) -> Any:
    """An empty table: keys int64 and numbers int32, `capacity` (a power of two) slots."""
    return np.full(capacity, _EMPTY, np.int64), np.empty(capacity, np.int32)


@kernel
def find(keys: Any, key: int) -> Any:
    """The slot that holds `key`, or the empty slot where it belongs."""
    mixed = np.uint64(key) * _SPREAD
    mask = keys.size - 1
    slot = np.int64(mixed >> np.uint64(32)) & mask
    while keys[slot] != key and keys[slot] != _EMPTY:
        slot = (slot + 1) & mask
    return slot


@kernel
def grown(keys: Any, numbers: Any) -> Any:
    """The same table with four times the slots."""
    new_keys, new_numbers = slots_for(4 * keys.size)
    for old in range(keys.size):
        if keys[old] != _EMPTY:
            slot = find(new_keys, keys[old])
            new_keys[slot] = keys[old]
            new_numbers[slot] = numbers[old]
    return new_keys, new_numbers
