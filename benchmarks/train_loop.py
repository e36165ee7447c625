"""What Ray Train's loop costs: images/s against a bare torch loop, one worker and two.

    python benchmarks/train_loop.py [--rounds 2] [--steps 30] [--crop 160]

Every round trains EfficientNet-lite0 on the same synthetic images, batches and seeds three times:
a bare loop (network, SGD and our loader in one process, nothing else), Ray Train with one worker,
Ray Train with two. One torch thread per worker. Speeds leave the first step out. Prints each round
and the medians of its ratios; then, with one worker, which share of its time it waited for images
when it decodes itself and when a process beside it does.
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
import uuid
from pathlib import Path
from statistics import median
from typing import Any

from pmm_ray.config import RunConfig
from pmm_ray.runtime.cluster import ClusterResources, connect
from pmm_ray.runtime.events import EventLog
from pmm_ray.runtime.progress import Progress
from pmm_ray.runtime.stage import RunContext, StageFolder
from pmm_ray.sources.manifest import open_manifest
from pmm_ray.sources.shapes import make_shapes

BATCH = 16
IMAGES, SIDE = 320, 240
CPUS = 2


def config(crop: int, workers: int, processes: int, epochs: int) -> RunConfig:
    """One training, as a recipe would describe it."""
    return RunConfig.model_validate(
        {
            "classifier": {
                "batch_size": BATCH,
                "crop_size": crop,
                "resize_long": [crop, 2 * crop],
                "epochs": epochs,
                "workers": workers,
                "loader_processes": processes,
                "validation_images": 0,
                "checkpoint_seconds": 3600,
            },
            "runtime": {"cpus": CPUS, "object_store_bytes": 150_000_000},
        }
    )


def bare(manifest_uri: str, crop: int, steps: int) -> float:
    """Images/s of a plain loop in this process."""
    import torch

    from pmm_ray.runtime.cluster import one_thread
    from pmm_ray.runtime.loader import batches
    from pmm_ray.runtime.sampling import BatchPlan
    from pmm_ray.stages.train_classifier import ClassifierTask, image_source

    one_thread()
    torch.set_num_threads(1)
    manifest, recipe = open_manifest(manifest_uri), config(crop, 1, 0, 1)
    task = ClassifierTask(
        config=recipe.classifier,
        stage="bare",
        seed=0,
        split="train",
        manifest_uri=manifest.uri,
        source=image_source(manifest, 10**7),
        label_space=manifest.label_space.to_json(),
    )
    torch.manual_seed(0)
    module = task.build().train()
    optimizer = torch.optim.SGD(task.parameter_groups(module.network), lr=0.01, momentum=0.9)
    data = task.dataset()
    began = 0.0
    plan = BatchPlan(0, len(data), BATCH, 1)
    for step, batch in enumerate(batches(data, plan, 0, first=0, last=steps)):
        optimizer.zero_grad(set_to_none=True)
        module(batch.images, batch.targets).backward()
        optimizer.step()
        if step == 0:
            began = time.monotonic()
    return (steps - 1) * BATCH / (time.monotonic() - began)


def on_ray(
    cluster: ClusterResources, manifest_uri: str, crop: int, steps: int, **options: int
) -> dict[str, Any]:
    """The summary's details and speed of a training on Ray Train."""
    from pmm_ray.stages import train_classifier

    manifest = open_manifest(manifest_uri)
    epochs = max(1, steps // (manifest.splits["train"] // BATCH))
    recipe = config(crop, options["workers"], options.get("processes", 0), epochs)
    with tempfile.TemporaryDirectory(prefix="pmm-train-") as place:
        context = RunContext(
            run_dir=place,
            config=recipe,
            manifest=manifest,
            cluster=cluster,
            events=EventLog(place, "driver"),
            progress=Progress(stream=io.StringIO()),
            attempt=uuid.uuid4().hex,
        )
        folder = StageFolder.below(place, "train_classifier", "0")
        summary = train_classifier.run(recipe.classifier, context, folder)
    return summary.details | {"images_per_second": summary.images_per_second}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=30, help="a multiple of an epoch's 15")
    parser.add_argument("--crop", type=int, default=160, help="px")
    parser.add_argument("--loader", action="store_true", help="only the share of waiting")
    parser.add_argument("--bare", metavar="MANIFEST", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.bare:
        print(json.dumps(bare(arguments.bare, arguments.crop, arguments.steps)))
        return
    crop, steps = arguments.crop, arguments.steps
    with tempfile.TemporaryDirectory(prefix="pmm-train-data-") as data:
        make_shapes(data, images=IMAGES, size=SIDE, seed=0)
        manifest = str(Path(data) / "manifest.parquet")
        this = [sys.executable, __file__, "--bare", manifest, "--crop", str(crop)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with connect("local", config(crop, 1, 0, 1).runtime) as cluster:
            one, two = [], []
            for number in range(0 if arguments.loader else arguments.rounds):
                printed = subprocess.run(
                    [*this, "--steps", str(steps)],
                    env=environment,
                    check=True,
                    stdout=subprocess.PIPE,
                ).stdout
                plain = float(json.loads(printed))
                single = on_ray(cluster, manifest, crop, steps, workers=1)["images_per_second"]
                double = on_ray(cluster, manifest, crop, steps, workers=2)["images_per_second"]
                one.append(single / plain)
                two.append(double / single)
                print(
                    f"round {number}: bare {plain:.1f} images/s, Ray Train {single:.1f} with one "
                    f"worker, {double:.1f} with two",
                    flush=True,
                )
            if one:
                print(f"one worker / bare loop:   {median(one):.3f} (claim: at least 0.95)")
                print(f"two workers / one worker: {median(two):.2f} (claim: at least 1.7)")
            for processes in (0, 1):
                found = on_ray(cluster, manifest, crop, steps, workers=1, processes=processes)
                print(
                    f"{processes} loader processes: {found['images_per_second']:.1f} images/s, "
                    f"{100 * found['loader_wait']:.1f} % of the time waited for images",
                    flush=True,
                )


if __name__ == "__main__":
    main()
