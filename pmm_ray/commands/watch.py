"""`pmm watch`: follow a run from another machine."""

from __future__ import annotations

import time

from pmm_ray.commands import command
from pmm_ray.report.live import RunNow, StageNow, look
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.progress import Progress, format_seconds

_MOST_LINES = 10


@command
def watch(
    progress: Progress,
    run_dir: str,
    *,
    every: float = 30.0,
    once: bool = False,
    price_per_core_hour: float = 0.0,
    price_per_gpu_hour: float = 0.0,
) -> None:
    """Print where a run is until it ends or its driver is gone.

    Args:
        run_dir: folder or uri of the run.
        every: seconds between two looks.
        once: look once.
        price_per_core_hour, price_per_gpu_hour: of the machines that are there; 0: hours only.
    """
    while True:
        now = look(storage.absolute(run_dir))
        for line in lines(now, price_per_core_hour, price_per_gpu_hour):
            progress.message(line)
        if once or not now.held_by:
            return
        time.sleep(every)


def lines(run: RunNow, core_price: float = 0.0, gpu_price: float = 0.0) -> list[str]:
    """What is shown of a run."""
    state = "finished" if run.finished else f"driver on {run.held_by}" if run.held_by else "stopped"
    age = "no event yet" if run.age is None else f"last event {format_seconds(run.age)} ago"
    out = [f"{run.name}: {state}, {age}, {run.nodes} nodes"]
    out += [_stage_line(stage) for stage in run.stages]
    for (stage, kind, host), count in run.errors.most_common(_MOST_LINES):
        out.append(f"  errors: {count} {kind} in {stage} on {host or 'an unknown host'}")
    for (host, text), count in run.faults.most_common(_MOST_LINES):
        out.append(f"  machine: {host}: {text} ({count} times)")
    out += [f"  avoided: {text}" for text in run.avoided]
    cost = run.core_hours * core_price + run.gpu_hours * gpu_price
    priced = f", cost {cost:.2f}" if core_price or gpu_price else ""
    out.append(f"  so far: {run.core_hours:.2f} core-hours, {run.gpu_hours:.2f} GPU-hours{priced}")
    return out


def _stage_line(stage: StageNow) -> str:
    parts = [f"{stage.done}/{stage.total} {stage.unit}"]
    if stage.rate:
        parts.append(f"{stage.rate:.1f}/s")
    if stage.seconds_left is not None:
        parts.append(f"ETA {format_seconds(stage.seconds_left)}")
    if stage.errors:
        parts.append(f"{stage.errors} errors")
    if stage.busy is not None:
        parts.append(f"{'GPUs' if stage.gpus else 'workers'} {stage.busy:.0%} busy")
    if stage.filled is not None:
        parts.append(f"passes {stage.filled:.0%} full, {stage.views:.1f} views")
    done = " (done)" if stage.finished else ""
    return f"  {stage.stage}: {', '.join(parts)}{done}"
