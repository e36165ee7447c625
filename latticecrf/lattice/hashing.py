"""Open addressing over packed 64-bit lattice keys: linear probing, load at most one half.

A table is one int64 array of (key, number) pairs, so that a look-up touches one cache line.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from latticecrf.kernels.cache import kernel

# Marks a free slot: keys are never negative.
_FREE = -1
# The golden ratio as a 64-bit fraction: multiplying spreads neighbouring keys over the table.
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@kernel
def new_table(slots: int) -> Any:
    """An empty table of `slots` pairs, a power of two."""
    return np.full(2 * slots, _FREE, np.int64)


@kernel
def home(table: Any, key: Any) -> Any:
    """Where the search for `key` starts: the position of a pair."""
    mixed = np.uint64(key) * _SPREAD
    return np.int64(mixed >> np.uint64(31)) & (table.size - 2)


@kernel
def find(table: Any, key: Any) -> Any:
    """The position of the pair of `key`, or of the free pair where it belongs."""
    at = home(table, key)
    # One branch, not two: it is rarely taken.
    while (table[at] != key) & (table[at] != _FREE):
        at = (at + 2) & (table.size - 2)
    return at


@kernel
def number(table: Any, key: Any, fresh: int) -> Any:
    """The number of `key`; a key not yet in the table gets `fresh`."""
    at = find(table, key)
    if table[at] == _FREE:
        table[at] = key
        table[at + 1] = fresh
    return table[at + 1]


@kernel
def known(table: Any, key: Any) -> Any:
    """The number of `key`, or -1."""
    at = find(table, key)
    return table[at + 1] if table[at] == key else np.int64(_FREE)


@kernel
def roomy(table: Any, count: int) -> Any:
    """The table itself while `count` keys fill at most half of it, else one that has the room."""
    if 4 * count <= table.size:
        return table
    size = 4 * table.size
    while 4 * count > size:
        size *= 4
    larger = new_table(size // 2)
    for at in range(0, table.size, 2):
        if table[at] != _FREE:
            place = find(larger, table[at])
            larger[place] = table[at]
            larger[place + 1] = table[at + 1]
    return larger
