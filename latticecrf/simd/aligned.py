"""Arrays that start at a cache line: a 64-byte row then lies in one line, not across two."""

from __future__ import annotations

import numpy as np

from latticecrf.checks import Float32Array

_LINE = 64


def aligned(count: int) -> Float32Array:
    """`count` uninitialized float32 from the start of a cache line (NumPy aligns to 16 bytes)."""
    whole = np.empty(count + _LINE // 4, np.float32)
    first = -whole.ctypes.data % _LINE // 4
    return whole[first : first + count]
