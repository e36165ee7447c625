"""What Ray Train's loop costs: images/s against a bare torch loop, one worker and two.

    python benchmarks/train_loop.py [--rounds 2] [--steps 24] [--crop 160]

Every round trains EfficientNet-lite0 on the same synthetic images, batches and seeds: in a bare
loop (network, SGD and our loader in one process, nothing else), on Ray Train with one worker, with
two, and with one that a loader process decodes for. One torch thread per process; the first step
is left out. Prints images/s of each round, and per CPU second of the (first) training process,
which other work on the machine disturbs less; then the medians of their ratios (claims: one worker
at least 0.95 of the bare loop, two workers at least 1.7 of one), and the share of its time that a
worker waited for images.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
from torch import nn

from pmm_ray.config import RunConfig
from pmm_ray.nets.checkpoints import load_model
from pmm_ray.runtime.cluster.connect import connect, one_thread
from pmm_ray.runtime.core import lease, storage
from pmm_ray.runtime.core.events import EventLog
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.training.launch import run_training
from pmm_ray.runtime.training.loader import batches
from pmm_ray.runtime.training.sampling import BatchPlan
from pmm_ray.runtime.training.train import training_job
from pmm_ray.sources.datasets.shapes import make_shapes
from pmm_ray.stages.train_classifier import ClassifierTask

BATCH = 16
IMAGES, SIDE = 320, 240
CPUS = 2


def config(crop: int, workers: int, processes: int) -> RunConfig:
    """One training, as a recipe would describe it."""
    return RunConfig.model_validate(
        {
            "classifier": {
                "batch_size": BATCH,
                "crop_size": crop,
                "resize_long": [crop, 2 * crop],
                "workers": workers,
                "loader_processes": processes,
                "validation_images": 0,
                "checkpoint_seconds": 3600,
                "max_failures": 0,
            },
            "runtime": {"cpus": CPUS, "object_store_bytes": 150_000_000},
        }
    )


@dataclass(kw_only=True)
class TimedTask(ClassifierTask):
    """Notes clock and CPU time of its process at every step; keeps them beside the network."""

    marks: list[tuple[float, float]] = field(default_factory=list)

    def learning_rate(self, step: int, steps: int) -> float:
        self.marks.append((time.monotonic(), time.process_time()))
        return super().learning_rate(step, steps)

    def save(self, uri: str, network: nn.Module, training: dict[str, float]) -> None:
        self.marks.append((time.monotonic(), time.process_time()))
        super().save(uri, network, training)
        storage.write_bytes(f"{uri}.json", json.dumps(speed(self.marks)).encode())


def speed(marks: list[tuple[float, float]]) -> dict[str, float]:
    """Steps per second, and per CPU second of the process, without the first step."""
    (first, first_cpu), (last, last_cpu) = marks[1], marks[-1]
    steps = len(marks) - 2
    return {"steps": steps / (last - first), "cpu_steps": steps / (last_cpu - first_cpu)}


def task_of(manifest: Manifest, recipe: RunConfig) -> TimedTask:
    return TimedTask(
        config=recipe.classifier,
        stage="train",
        seed=0,
        split="train",
        manifest_uri=manifest.uri,
        photographs=Photographs(manifest.root, manifest.apply_exif, 10**7, manifest.label_space),
    )


def bare(manifest_uri: str, crop: int, steps: int) -> dict[str, float]:
    """Speed of a plain loop in this process."""
    one_thread()
    torch.set_num_threads(1)
    task = task_of(open_manifest(manifest_uri), config(crop, 1, 0))
    torch.manual_seed(0)
    module = task.build().train()
    optimizer = torch.optim.SGD(task.parameter_groups(module.network), lr=0.01, momentum=0.9)
    data = task.dataset()
    plan = BatchPlan(0, len(data), BATCH, 1)
    for step, batch in enumerate(batches(data, plan, 0, first=0, last=steps)):
        task.learning_rate(step, steps)
        optimizer.zero_grad(set_to_none=True)
        module(batch.images, batch.targets).backward()
        optimizer.step()
    task.learning_rate(steps - 1, steps)
    return speed(task.marks)


def on_ray(
    cluster: ClusterResources,
    manifest_uri: str,
    crop: int,
    steps: int,
    *,
    workers: int,
    processes: int = 0,
) -> dict[str, float]:
    """Speed of a training on Ray Train, and the share of time it waited for images."""
    manifest = open_manifest(manifest_uri)
    recipe = config(crop, workers, processes)
    with tempfile.TemporaryDirectory(prefix="pmm-train-") as place, lease.hold(place, "a") as lost:
        context = SimpleNamespace(
            run_dir=place,
            config=recipe,
            manifest=manifest,
            cluster=cluster,
            events=EventLog(place, "driver"),
            progress=Progress(stream=io.StringIO()),
            attempt="a",
            lost=lost,
        )
        folder = StageFolder.below(place, "train_classifier", "0")
        task = task_of(manifest, recipe)
        job = replace(training_job(task, context, folder), steps=steps)
        run_training(job, context)
        found: dict[str, float] = json.loads(storage.read_bytes(f"{job.model_uri}.json"))
        _, meta = load_model(job.model_uri, "classifier")
    return found | {"loader_wait": meta["training"]["loader_wait"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--crop", type=int, default=160, help="px")
    parser.add_argument("--bare", metavar="MANIFEST", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    crop, steps = arguments.crop, arguments.steps
    if arguments.bare:
        print(json.dumps(bare(arguments.bare, crop, steps)))
        return
    with tempfile.TemporaryDirectory(prefix="pmm-train-data-") as data:
        make_shapes(data, images=IMAGES, size=SIDE, seed=0)
        manifest = str(Path(data) / "manifest.parquet")
        command = [sys.executable, __file__, "--bare", manifest]
        command += ["--crop", str(crop), "--steps", str(steps)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        rounds = []
        with connect("local", config(crop, 1, 0).runtime) as cluster:
            for number in range(arguments.rounds):
                printed = subprocess.run(
                    command, env=environment, check=True, stdout=subprocess.PIPE
                ).stdout
                speeds = {
                    "bare": json.loads(printed),
                    "one": on_ray(cluster, manifest, crop, steps, workers=1),
                    "two": on_ray(cluster, manifest, crop, steps, workers=2),
                    "loader": on_ray(cluster, manifest, crop, steps, workers=1, processes=1),
                }
                rounds.append(speeds)
                shown = ", ".join(
                    f"{name} {BATCH * s['steps']:.1f} ({BATCH * s['cpu_steps']:.1f})"
                    for name, s in speeds.items()
                )
                print(
                    f"round {number}, images/s (per CPU second of a process): {shown}", flush=True
                )

    def ratio(key: str, above: str, below: str) -> float:
        return median(speeds[above][key] / speeds[below][key] for speeds in rounds)

    print(f"one worker / bare loop, images/s:            {ratio('steps', 'one', 'bare'):.3f}")
    print(f"one worker / bare loop, per CPU second:      {ratio('cpu_steps', 'one', 'bare'):.3f}")
    print(f"two workers / one, images/s:                 {ratio('steps', 'two', 'one'):.2f}")
    print(f"two workers / one, per CPU second of rank 0: {ratio('cpu_steps', 'two', 'one'):.2f}")
    for name, processes in (("one", 0), ("loader", 1)):
        share = median(speeds[name]["loader_wait"] for speeds in rounds)
        print(f"waited for images, {processes} loader processes:       {100 * share:.1f} %")


if __name__ == "__main__":
    main()
