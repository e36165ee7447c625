"""What makes a CPU wait for a GPU, noted on any machine: a test needs no GPU to find it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

# as Python calls them: on a CPU some of them never reach the dispatcher
_CALLS = {
    *(Tensor.item, Tensor.tolist, Tensor.cpu, Tensor.cuda, Tensor.numpy, Tensor.nonzero),
    *(Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.__array__),
    *(torch.nonzero, torch.masked_select, Tensor.masked_select, torch.unique, torch.equal),
    *(torch.tensor, torch.as_tensor, torch.asarray),
}
_INDEXING = {Tensor.__getitem__, Tensor.__setitem__}
# as they arrive there, whoever asked
_OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal", "unique")


class _Noting:
    def __init__(self, noted: list[str]) -> None:
        super().__init__()
        self._noted = noted


class _Calls(_Noting, TorchFunctionMode):
    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _CALLS:
            self._noted.append(function.__name__)
        if function is Tensor.to and not kwargs.get("non_blocking"):
            places = (torch.device, str, int)
            if "device" in kwargs or any(isinstance(arg, places) for arg in args[1:]):
                self._noted.append("to, blocking")
        if function in _INDEXING and _from_the_cpu(args[1]):
            self._noted.append("index from the CPU, or of unknown length")
        return function(*args, **kwargs)


def _from_the_cpu(index: Any) -> bool:
    """Whether an index must be copied to the device first, or says only there how much it takes."""
    parts = index if isinstance(index, tuple) else (index,)
    return any(
        isinstance(part, (list, np.ndarray))
        or (isinstance(part, Tensor) and part.dtype in (torch.bool, torch.uint8))
        for part in parts
    )


class _Operations(_Noting, TorchDispatchMode):
    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function.overloadpacket.__name__
        if name in _OPERATIONS:
            self._noted.append(name)
        return function(*args, **(kwargs or {}))


@contextmanager
def waits() -> Iterator[list[str]]:
    """Takes down what waits inside; on a CPU none of it does, but on a GPU all of it would."""
    noted: list[str] = []
    with _Calls(noted), _Operations(noted):
        yield noted


def noted_in(work: Callable[[], Any]) -> list[str]:
    """What waits in a piece of work, whose constants have been made by an earlier call."""
    work()
    with waits() as noted:
        work()
    return noted


def drain(items: Iterable[Any]) -> None:
    """Takes all items, which stay where they are."""
    for _ in items:
        pass
