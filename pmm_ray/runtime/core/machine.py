"""Which exceptions are about the machine and not about an image, by their types and words.

No torch here: processes that make masks never import it.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass

from pmm_ray.runtime.core.errors import named

END_SECONDS = 3.0
"""How long a process whose device failed has to send its last report."""
_EXIT_CODE = 70

# torch.AcceleratorError, torch.distributed.DistBackendError and torch.OutOfMemoryError
_DEVICE_TYPES = {"AcceleratorError"}
_NETWORK_TYPES = {"DistBackendError"}
_MEMORY_TYPES = {"OutOfMemoryError"}
_DEVICE_WORDS = (
    *("CUDA error", "CUDA driver", "CUDA unknown error", "CUDA initialization"),
    *("No CUDA GPUs are available", "Found no NVIDIA driver", "device-side assert"),
    *("CUBLAS_STATUS_", "CUSOLVER_STATUS_", "CUSPARSE_STATUS_", "CUFFT_", "cuDNN error"),
    *("CUDNN_STATUS_", "HIP error", "unspecified launch failure", "uncorrectable ECC error"),
    *("GPU is lost", "has fallen off the bus", "NVML", "nvrtc: error"),
)
_NETWORK_WORDS = ("NCCL error", "NCCL Error", "ncclInternalError", "ncclSystemError")
_MEMORY_WORDS = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")


class MachineError(Exception):
    """A device or a driver failed: no image's fault. The process that raises it must end."""


@dataclass(frozen=True)
class Place:
    """A process of the cluster."""

    node: str
    """Ray's id of the node; empty outside Ray."""
    host: str
    process: int

    @classmethod
    def here(cls) -> Place:
        import ray

        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
        return cls(node, socket.gethostname(), os.getpid())

    def __str__(self) -> str:
        return f"{self.host} (node {self.node[:6]}, process {self.process})"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__


def _is(error: BaseException, types: set[str], words: tuple[str, ...]) -> bool:
    if any(kind.__name__ in types for kind in type(error).__mro__):
        return True
    # libraries raise plain RuntimeErrors; a file's or a user's words are in other types
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)


def out_of_memory(error: BaseException) -> bool:
    """Whether a GPU had no memory left for what was asked; the process can go on."""
    return any(
        _is(e, _MEMORY_TYPES, ())
        or (_is(e, _DEVICE_TYPES, _DEVICE_WORDS) and any(word in str(e) for word in _MEMORY_WORDS))
        for e in _chain(error)
    )


def network_fault(error: BaseException) -> bool:
    """Whether the link between the workers of a training failed: it may be any partner's fault."""
    return any(_is(e, _NETWORK_TYPES, _NETWORK_WORDS) for e in _chain(error))


def machine_fault(error: BaseException) -> str | None:
    """What a machine failed at, in one line; None where the error may be an image's.

    A CUDA error, a lost device, a broken driver, NCCL; not a GPU out of memory.
    """
    if out_of_memory(error):
        return None
    for e in _chain(error):
        if isinstance(e, MachineError):
            return str(e)
        device = _is(e, _DEVICE_TYPES, _DEVICE_WORDS)
        if device or _is(e, _NETWORK_TYPES, _NETWORK_WORDS):
            return named(e)
    return None


def end_process_soon() -> None:
    """End this process once its last report is sent: a broken device stays broken in it."""
    timer = threading.Timer(END_SECONDS, os._exit, (_EXIT_CODE,))
    timer.daemon = True
    timer.start()
