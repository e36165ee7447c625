"""Step time of the segmenter's training loop beside mmengine's Runner: same model, same images.

    python benchmarks/segmenter_step.py [--steps 20] [--rounds 3]

Both train the paper's PSPNet on EfficientNet-lite0 with the same batch, crops, augmentation, loss,
optimiser and schedule, from the same photographs and masks on disk, in this process on one thread,
without loader processes. They take turns, a round each; the first steps of a round are left out.
Ours is the loop that Ray Train runs on every worker, on a process group of one; theirs is
`mmengine.Runner` with mmsegmentation's data set, transforms and default hooks.

Prints the median milliseconds of a step, wall and CPU, and the ratio ours / theirs.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.runner import Runner
from one_worker import train_alone

from pmm_ray.config import SegmenterConfig
from pmm_ray.nets.segmenter import build_segmenter, description_of
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.sources.datasets.shapes import make_shapes
from pmm_ray.stages.train_segmenter import SegmenterTask

SKIPPED = 3
LIMIT = 1.05
IMAGES, CLASSES, SIZE = 48, 4, 192


@dataclass
class Clock:
    """Moments at which steps begin."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def tick(self) -> None:
        self.wall.append(time.perf_counter())
        self.cpu.append(time.process_time())

    def steps(self) -> list[tuple[float, float]]:
        """(wall, CPU) seconds of each step after the first ones."""
        moments = list(zip(self.wall, self.cpu, strict=True))[SKIPPED:]
        return [(b[0] - a[0], b[1] - a[1]) for a, b in pairwise(moments)]


@dataclass(kw_only=True)
class ClockedTask(SegmenterTask):
    """The real task; the learning rate is asked for once per step."""

    clock: Clock = field(default_factory=Clock)

    def learning_rate(self, step: int, steps: int) -> float:
        self.clock.tick()
        return super().learning_rate(step, steps)


def prepare(folder: Path) -> tuple[Manifest, str]:
    """(manifest, masks table), and the same as a tree for mmsegmentation."""
    make_shapes(str(folder / "data"), images=IMAGES, size=SIZE, classes=CLASSES, seed=0)
    manifest = open_manifest(str(folder / "data" / "manifest.parquet"))
    rows = []
    for name in ("img", "ann"):
        (folder / "tree" / name).mkdir(parents=True)
    for row in tables.read_table(manifest.uri).to_pylist():
        if row["split"] != "train":
            continue
        image, truth = (manifest.locate(row[name]) for name in ("uri", "ground_truth_uri"))
        kept = {name: row[name] for name in ("image_id", "height", "width", "labels")}
        png = storage.read_bytes(truth)
        rows.append({**kept, "mask_png": png, "foreground": 0.5, "round": 0})
        shutil.copy(image, folder / "tree" / "img" / f"{row['image_id']}{Path(image).suffix}")
        (folder / "tree" / "ann" / f"{row['image_id']}.png").write_bytes(png)
    tables.write_rows(str(folder / "masks" / "part-0.parquet"), rows, tables.MASKS)
    return manifest, str(folder / "masks")


def ours(
    config: SegmenterConfig, manifest: Manifest, masks_uri: str, run_dir: Path, steps: int
) -> Clock:
    """Train with the loop of the pipeline."""
    task = ClockedTask(
        config=config.model_copy(update={"amp": False, "checkpoint_seconds": 3600.0}),
        stage="segmenter",
        round=0,
        seed=0,
        split="train",
        manifest_uri=manifest.uri,
        masks_uri=masks_uri,
        photographs=Photographs(manifest.root, manifest.apply_exif, 10**8, manifest.label_space),
    )
    images, device = manifest.splits["train"], torch.device("cpu")
    train_alone(task, run_dir, images=images, steps=steps, device=device)
    return task.clock


def theirs(
    config: SegmenterConfig, manifest: Manifest, tree: Path, work_dir: Path, steps: int
) -> Clock:
    """Train with mmengine's Runner."""
    clock = Clock()

    class ClockHook(Hook):
        def before_train_iter(self, *_: Any, **__: Any) -> None:
            clock.tick()

    space = manifest.label_space
    model = description_of(build_segmenter(config, space.num_classes, space.ignore)).model
    suffix = next((tree / "img").iterdir()).suffix
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations"},
        {
            "type": "RandomResize",
            "scale": config.resize_base,
            "ratio_range": config.resize_ratio,
            "keep_ratio": True,
        },
        {
            "type": "RandomCrop",
            "crop_size": (config.crop_size, config.crop_size),
            "cat_max_ratio": config.cat_max_ratio,
        },
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]
    runner = Runner(
        model=model,
        work_dir=str(work_dir),
        train_dataloader={
            "batch_size": config.batch_size,
            "num_workers": 0,
            "sampler": {"type": "InfiniteSampler", "shuffle": True},
            "dataset": {
                "type": "BaseSegDataset",
                "data_root": str(tree),
                "data_prefix": {"img_path": "img", "seg_map_path": "ann"},
                "img_suffix": suffix,
                "seg_map_suffix": ".png",
                "metainfo": {"classes": space.names},
                "pipeline": pipeline,
            },
        },
        train_cfg={"type": "IterBasedTrainLoop", "max_iters": steps, "val_interval": steps + 1},
        optim_wrapper={
            "type": "OptimWrapper",
            "optimizer": {
                "type": "SGD",
                "lr": config.learning_rate,
                "momentum": config.momentum,
                "weight_decay": config.weight_decay,
            },
        },
        param_scheduler=[
            {
                "type": "PolyLR",
                "eta_min": config.min_learning_rate,
                "power": config.poly_power,
                "begin": 0,
                "end": steps,
                "by_epoch": False,
            }
        ],
        default_hooks={"checkpoint": None},
        env_cfg={"mp_cfg": {"opencv_num_threads": 0}},
        default_scope="mmseg",
        experiment_name=f"runner-{work_dir.name}",
        log_level="WARNING",
    )
    runner.register_hook(ClockHook(), "HIGHEST")
    runner.train()
    return clock


def main() -> None:
    """Take turns and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--crop", type=int, default=160)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    config = SegmenterConfig(
        weights="none",
        channels=64,
        output_stride=16,
        batch_size=arguments.batch_size,
        crop_size=arguments.crop,
        resize_base=(256, 192),
        iterations=arguments.steps,
    )
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "mmengine": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        manifest, masks_uri = prepare(folder)
        for number in range(arguments.rounds):
            clock = ours(config, manifest, masks_uri, folder / f"ours-{number}", arguments.steps)
            found["ours"] += clock.steps()
            place = folder / f"theirs-{number}"
            clock = theirs(config, manifest, folder / "tree", place, arguments.steps)
            found["mmengine"] += clock.steps()
    medians = {
        side: [1000 * median(step[i] for step in steps) for i in (0, 1)]
        for side, steps in found.items()
    }
    print(f"median of {len(found['ours'])} steps of {arguments.batch_size} crops of", end=" ")
    print(f"{arguments.crop} px, one thread")
    for side, (wall, cpu) in medians.items():
        print(f"{side:9} {wall:7.1f} ms wall {cpu:7.1f} ms CPU")
    wall, cpu = (a / b for a, b in zip(medians["ours"], medians["mmengine"], strict=True))
    print(f"ours / mmengine: {wall:.3f} wall, {cpu:.3f} CPU (limit {LIMIT})")


if __name__ == "__main__":
    main()
