"""Between CPU and device without waiting: copies are begun here and awaited once, at the end.

On a CPU nothing is copied.
"""

from __future__ import annotations

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def staged(array: NDArray[Any], device: torch.device) -> Tensor:
    """An array on the CPU, ready for `.to(device, non_blocking=True)`.

    Args:
        array: contiguous; shared with the result where the device is the CPU.
        device: where it will go. Only from pinned memory a copy to a GPU does not wait.
    """
    tensor = torch.from_numpy(array)
    return tensor if device.type == "cpu" else tensor.pin_memory()


class OnTheWay:
    """Tensors whose copies to the CPU have begun.

    Args:
        tensors: on one device.
    """

    def __init__(self, *tensors: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        # to pinned memory, which torch takes for copies that are not awaited
        self._tensors = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
        if tensors[0].is_cuda:
            # whoever waits for it sleeps: its core is for masks
            self._arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(tensors[0].device))

    def arrays(self) -> list[NDArray[Any]]:
        """The tensors as arrays, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [tensor.numpy() for tensor in self._tensors]
