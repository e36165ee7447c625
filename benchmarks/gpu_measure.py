"""What `gpu.py` measures with: time, busy share, floating point operations, memory, ceilings."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

Work = Callable[[], Any]


def synchronize(device: torch.device) -> None:
    """Wait for what the device has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def free(device: torch.device) -> None:
    """Give back what nothing holds, and begin a new peak."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_gb(device: torch.device) -> float | None:
    """Most memory of tensors since `free`, GB; None on a CPU."""
    return torch.cuda.max_memory_allocated(device) / 1e9 if device.type == "cuda" else None


def seconds_of(work: Work, device: torch.device, seconds: float) -> float:
    """Mean wall time of a call: one to warm up, then as many as fill the seconds, one at least."""
    work()
    synchronize(device)
    started, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - started < seconds:
        work()
        synchronize(device)
        calls += 1
    return (time.perf_counter() - started) / calls


def device_seconds(work: Work, device: torch.device) -> float:
    """Time that kernels run in one call; on a CPU, time inside of torch's operations."""
    on_gpu = device.type == "cuda"
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity], acc_events=True) as found:
        work()
        synchronize(device)
    if not on_gpu:
        return sum(event.self_cpu_time_total for event in found.key_averages()) / 1e6
    on_device = [e for e in found.key_averages() if e.device_type == DeviceType.CUDA]
    # an annotation is as long as the kernels that it is around
    kernels = [e for e in on_device if not e.is_user_annotation]
    return sum(event.self_device_time_total for event in kernels) / 1e6


def operations(work: Work) -> float:
    """Floating point operations of convolutions and matrix products in one call."""

    def backward(grad: Any, inputs: Any, weight: Any, *args: Any, **_: Any) -> int:
        # torch's own formula takes no notice of groups, and counts depthwise layers many times
        of_one: int = conv_flop_count(inputs, weight, grad, args[4])
        wanted = args[7]
        return of_one * (bool(wanted[0]) + bool(wanted[1]))

    formulas = {torch.ops.aten.convolution_backward: backward}
    with FlopCounterMode(display=False, custom_mapping=formulas) as counter:
        work()
    return float(counter.get_total_flops())


def measured(
    work: Work, device: torch.device, *, images: int, flops: float, seconds: float
) -> dict[str, Any]:
    """The columns of a row.

    Args:
        images: that one call works on.
        flops: of one call.
        seconds: to measure for.
    """
    free(device)
    wall = seconds_of(work, device, seconds)
    peak = peak_gb(device)
    return {
        "images_per_second": images / wall,
        "busy": min(1.0, device_seconds(work, device) / wall),
        "tflops": flops / wall / 1e12,
        "peak_gb": peak,
    }


def ceilings(device: torch.device, side: int, values: int, seconds: float) -> dict[str, float]:
    """What the device can do at most: a matrix product and a copy in its own memory.

    Args:
        side: of the square matrices.
        values: float32 values of the copy.

    Returns:
        `matmul_float32`, `matmul_bfloat16`: TFLOP/s; `copy`: GB/s, read and written.
    """
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        taken = seconds_of(lambda a=a, b=b: [a @ b for _ in range(10)], device, seconds) / 10
        found[f"matmul_{name}"] = 2 * side**3 / taken / 1e12
    source = torch.zeros(values, device=device)
    target = torch.empty_like(source)
    taken = seconds_of(lambda: [target.copy_(source) for _ in range(10)], device, seconds) / 10
    found["copy"] = 2 * values * source.element_size() / taken / 1e9
    return found
