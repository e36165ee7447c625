"""What a network computes and moves for an input, operation by operation, without computing it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


class Operation(NamedTuple):
    """One kernel."""

    flops: float
    """Of convolutions and matrix products; 0 for all others."""
    values: float
    """Read and written."""


def operations(ask: Callable[[Tensor], Any], shape: tuple[int, ...]) -> list[Operation]:
    """The operations of a network for an input, without gradients.

    Features take no memory, and nothing is computed.

    Args:
        ask: maps an input, float32, to the result.
        shape: of the input, [B, 3, H, W].
    """
    # the network's weights are real tensors
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        images = torch.empty(shape)
        with _Counter() as counter:
            ask(images)
    return counter.operations


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not func.is_view:
            formula = flop_registry.get(func._overloadpacket)
            flops = formula(*args, **kwargs, out_val=out) if formula else 0
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
            self.operations.append(Operation(flops, sum(t.numel() for t in tensors)))
        return out
