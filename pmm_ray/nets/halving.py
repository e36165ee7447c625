"""A forward pass in smaller batches where a GPU has no memory for the whole one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from pmm_ray.runtime.core.machine import out_of_memory


def in_halves(function: Callable[..., Tensor], *batches: Tensor) -> Tensor:
    """`function(*batches)`, or the concatenation over halves of them where memory ran out.

    Args:
        function: maps each row of a batch on its own, as a network does in evaluation mode.
        batches: [B, ...] each.

    Returns:
        [B, ...].

    Raises:
        RuntimeError: torch's out-of-memory error, where one row alone does not fit.
    """
    size = len(batches[0])
    try:
        return function(*batches)
    except RuntimeError as error:
        if size < 2 or not out_of_memory(error):
            raise
    # after the handler, whose traceback holds the tensors of the pass that failed
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    half = -(-size // 2)
    parts = ([b[:half] for b in batches], [b[half:] for b in batches])
    return torch.cat([in_halves(function, *part) for part in parts])
