"""A training step as `gpu.py` measures it: the loop of the pipeline on one device, and bare torch.

Ours is what Ray Train runs on every worker: loader processes, the step, its checks and its log, on
a process group of one. Bare torch has one batch on the device, and does nothing but the step.
"""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gpu_measure import free, measured, operations, peak_gb, synchronize
from gpu_stages import Size, Way
from one_worker import train_alone

from pmm_ray.config import ClassifierConfig, SegmenterConfig
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.training.loader import batches
from pmm_ray.runtime.training.sampling import BatchPlan
from pmm_ray.runtime.training.task import TrainingTask
from pmm_ray.sources.datasets.shapes import make_shapes
from pmm_ray.stages.train_classifier import ClassifierTask
from pmm_ray.stages.train_segmenter import SegmenterTask

STAGES = ("train classifier", "train segmenter")
WARM = 3
"""Steps of our loop that are left out."""


def prepare(folder: Path, size: Size) -> tuple[Manifest, str]:
    """(manifest, folder of a masks table) of synthetic photographs and their truth."""
    side = max(48, size.window)
    make_shapes(str(folder / "data"), images=size.drawn, size=side, seed=0)
    manifest = open_manifest(str(folder / "data" / "manifest.parquet"))
    rows = []
    for row in tables.read_table(manifest.uri).to_pylist():
        png = storage.read_bytes(manifest.locate(row["ground_truth_uri"]))
        kept = {name: row[name] for name in ("image_id", "height", "width", "labels")}
        rows.append({**kept, "mask_png": png, "foreground": 0.5, "round": 0})
    tables.write_rows(str(folder / "masks" / "part-0.parquet"), rows, tables.MASKS)
    return manifest, str(folder / "masks")


def task_of(
    stage: str, backbone: str, way: Way, size: Size, data: tuple[Manifest, str]
) -> TrainingTask[Any]:
    """The task of a stage; its steps change next to nothing, so that random weights stay finite."""
    manifest, masks_uri = data
    values = {
        "backbone": backbone,
        "weights": "none",
        "freeze_norm": True,
        "batch_size": size.batch,
        "learning_rate": 1e-9,
        "amp": way.bfloat16,
        "channels_last": way.bfloat16,
        "compile": way.compiled,
        "checkpoint_seconds": 3600.0,
    }
    fields = {
        "stage": stage,
        "seed": 0,
        "split": "train",
        "manifest_uri": manifest.uri,
        "photographs": Photographs(manifest.root, manifest.apply_exif, 10**8, manifest.label_space),
    }
    if stage == "train classifier":
        crop = size.training_crop
        own = {"kind": "seam", "resize_long": (crop, 2 * crop), "crop_size": crop}
        return ClassifierTask(config=ClassifierConfig.model_validate(values | own), **fields)
    own = {
        "channels": size.channels,
        "crop_size": size.window,
        "resize_base": size.resize_base,
        "min_learning_rate": 0.0,
        "iterations": size.steps,
    }
    config = SegmenterConfig.model_validate(values | own)
    return SegmenterTask(config=config, masks_uri=masks_uri, round=0, **fields)


def ours(
    task: TrainingTask[Any], folder: Path, size: Size, device: torch.device
) -> dict[str, float | None]:
    """Images/s, share of the time that was spent waiting for images, and peak memory."""
    marks: list[float] = []
    rate = task.learning_rate

    def learning_rate(step: int, steps: int) -> float:
        if step in (WARM, steps - 1):
            synchronize(device)  # the loop is ahead of a GPU, which it waits for every tenth step
        marks.append(time.perf_counter())
        return rate(step, steps)

    task.learning_rate = learning_rate  # type: ignore[method-assign]
    free(device)
    result = train_alone(
        task,
        folder,
        images=task.rows().num_rows,
        steps=size.steps,
        device=device,
        loader_processes=min(size.processes, max(0, (os.cpu_count() or 1) - 1)),
    )
    if "stopped" in result:
        raise RuntimeError(result["stopped"])
    steps = len(marks) - 1 - WARM
    return {
        "images_per_second": steps * size.batch / (marks[-1] - marks[WARM]),
        "loader_wait": result["loader_wait"],
        "peak_gb": peak_gb(device),
    }


def bare(
    task: TrainingTask[Any], folder: Path, size: Size, device: torch.device
) -> dict[str, float | None]:
    """The columns of a row, of a loop of torch alone."""
    task.prepare(folder)
    data = task.dataset()
    batch = next(batches(data, BatchPlan(0, len(data), size.batch, 1), 0, first=0, last=1))
    module = task.build().to(device).train()
    images, targets = batch.images.to(device), batch.targets.to(device)
    if task.config.channels_last:
        module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = task.optimizer(module.network)
    amp = task.config.amp and device.type == "cuda"

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=amp):
            loss = module(images, targets)
        loss.backward()
        optimizer.step()

    flops = operations(step)
    if task.config.compile:
        module.compile()
    return measured(
        lambda: [step() for _ in range(size.bare_steps)],
        device,
        images=size.bare_steps * size.batch,
        flops=size.bare_steps * flops,
        seconds=size.seconds,
    )


def trained(
    stage: str,
    backbone: str,
    way: Way,
    size: Size,
    device: torch.device,
    folder: Path,
    data: tuple[Manifest, str],
) -> dict[str, Any]:
    """The columns of a row: ours, and its ratio to bare torch.

    The same kernels run on both sides, so ours keeps the device busy for the share of bare torch's
    that its images/s are of bare torch's.
    """
    task = task_of(stage, backbone, way, size, data)
    by_torch = bare(task, folder, size, device)
    found = ours(replace(task), folder / "run", size, device)
    ratio = found["images_per_second"] / by_torch["images_per_second"]
    return {
        **found,
        "busy": min(1.0, ratio * by_torch["busy"]),
        "tflops": ratio * by_torch["tflops"],
        "of_bare_torch": ratio,
    }
