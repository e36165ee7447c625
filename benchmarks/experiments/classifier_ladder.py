"""What SEAM and multi-crop do to the CAMs of EfficientNet-lite0: plain, SEAM, SEAM + multi-crop.

    python benchmarks/experiments/classifier_ladder.py OUT --voc PATH/TO/VOCdevkit [--reduced]

Three seeds on shapes, one on a fixed subset of VOC 2012. Each rung is a `pmm run` up to its CAMs
in a run folder below OUT; SEAM and SEAM + multi-crop share a folder, and with it the classifier
that the base masks come from. Run the same command again to go on where it stopped; `--minutes`
ends it before a rung that would begin later than that. CAM mIoU is on held-out images at the best
of nineteen background scores, 0.05 to 0.95, so it uses their pixel labels. Prints one table,
with what is not done yet; `OUT/ladder.json` holds the numbers.

The whole experiment is sized for three hours on two idle cores; `--reduced` takes a fraction, with
fewer images, epochs and scales. What is reduced against the paper is printed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from pmm_ray.method.cams import upsample_cam
from pmm_ray.method.confusion import confusion_matrix, mean_iou
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.index import read_all
from pmm_ray.runtime.core.manifest import open_manifest
from pmm_ray.runtime.rows.cams import decode_cam
from pmm_ray.runtime.rows.images import decode_mask

BACKGROUND_SCORES = tuple(round(0.05 * i, 2) for i in range(1, 20))
RUNGS = ("plain", "SEAM", "SEAM + multi-crop")
SHAPES_SEEDS, VOC_SEEDS = (0, 1, 2), (0,)


@dataclass(frozen=True)
class Size:
    """How large a data set and a training is. Sides in px."""

    train: int
    """Training images at most."""
    held_out: int
    epochs: int
    multicrop_epochs: int
    crop: int
    resize_long: tuple[int, int]
    cam_scales: tuple[float, ...]
    """Of whole images."""
    stride: int
    """From one window to the next; windows have the side of a training crop."""
    crop_scales: tuple[float, ...]
    """Of the images that windows are cut from (paper: 0.75 to 3 in steps of 0.25)."""
    flip: bool


ALL_SCALES = tuple(0.75 + 0.25 * i for i in range(10))
FULL = {
    "shapes": Size(90, 30, 10, 20, 128, (112, 176), (1.0, 2.0, 3.0), 86, ALL_SCALES, True),
    "voc12-mini": Size(
        350, 150, 8, 12, 288, (288, 480), (0.75, 1.0, 1.5), 192, (0.75, 1.25, 1.75, 2.25), True
    ),
}
REDUCED = {
    "shapes": Size(90, 30, 8, 8, 128, (112, 176), (1.0, 2.0), 86, (0.75, 1.25, 1.75), False),
    "voc12-mini": Size(96, 40, 5, 5, 224, (224, 384), (0.75, 1.25), 150, (0.75, 1.25), False),
}


@dataclass(frozen=True)
class Step:
    """One rung on one data set with one seed."""

    data: str
    seed: int
    rung: str

    @property
    def folder(self) -> str:
        return f"{self.data}-{self.seed}-{'plain' if self.rung == 'plain' else 'seam'}"


def steps(only: str | None) -> list[Step]:
    """All steps: every rung of the first seed on both data sets, then the other seeds."""
    seeds = {"shapes": SHAPES_SEEDS, "voc12-mini": VOC_SEEDS}
    chosen = {only: seeds[only]} if only else seeds
    return [
        Step(data, seed, rung)
        for seed in sorted({seed for of in chosen.values() for seed in of})
        for data, of in chosen.items()
        if seed in of
        for rung in RUNGS
    ]


# of SEAM the released code's: with 0.9 at this rate its loss does not fall in so few steps
MOMENTUM = {"plain": 0.9, "SEAM": 5e-4, "SEAM + multi-crop": 5e-4}


def recipe(step: Step, size: Size, data: dict[str, Any]) -> dict[str, Any]:
    """The recipe of a step."""
    crops = {"size": size.crop, "stride": size.stride, "scales": list(size.crop_scales)}
    training = {
        "backbone": "efficientnet_lite0",
        "weights": "imagenet",
        "kind": "plain" if step.rung == "plain" else "seam",
        "output_stride": 16,
        "batch_size": 16,
        "learning_rate": 0.01,
        "momentum": MOMENTUM[step.rung],
        "workers": 1,
        "validation_images": 0,
    }
    whole = {"scales": list(size.cam_scales), "flip": size.flip}
    windows = {"kind": "multi_crop", "crops": crops, "flip": size.flip}
    multicrop = step.rung == RUNGS[-1]
    return {
        "name": step.folder,
        "seed": step.seed,
        "data": data,
        "classifier": training
        | {"epochs": size.epochs, "resize_long": list(size.resize_long), "crop_size": size.crop},
        "base": {"cams": whole},
        "multicrop": training
        | {"enabled": multicrop, "epochs": size.multicrop_epochs, "crops": crops},
        "cams": windows if multicrop else whole,
        "runtime": {"object_store_bytes": 150_000_000},
    }


def subset(tree: str, out: Path, size: Size) -> dict[str, Any]:
    """The data section of a fixed subset of VOC 2012: the images whose hashed ids come first."""
    whole, part = out / "voc12", out / f"voc12-{size.train}-{size.held_out}"
    if not (whole / "manifest.parquet").exists():
        command = [sys.executable, "-m", "pmm_ray.cli", "data", "import", "voc12", tree]
        command += [
            "--out",
            str(whole),
            "--labels-from",
            "masks",
            "--split",
            "train_aug",
            "--split",
            "val",
        ]
        subprocess.run(command, check=True)
    table = tables.read_table(str(whole / "manifest.parquet"))
    rows = table.select(["image_id", "split"]).to_pylist()
    kept: set[str] = set()
    for split, count in (("train_aug", size.train), ("val", size.held_out)):
        ids = [row["image_id"] for row in rows if row["split"] == split]
        kept.update(sorted(ids, key=lambda i: hashlib.sha256(i.encode()).digest())[:count])
    chosen = table.filter([row["image_id"] in kept for row in rows])
    storage.write_bytes(str(part / "manifest.parquet"), tables.to_bytes(chosen))
    return {
        "source": "manifest",
        "root": str((part / "manifest.parquet").resolve()),
        "train_split": "train_aug",
        "held_out_split": "val",
    }


def run(step: Step, out: Path, settings: dict[str, Any]) -> Path:
    """Run a step up to its CAMs, or find them done; returns the folder of the cams table."""
    file = out / "recipes" / f"{step.folder}-{RUNGS.index(step.rung)}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(settings, sort_keys=False))
    place = out / step.folder
    command = [sys.executable, "-m", "pmm_ray.cli", "run", str(file), "--run-dir", str(place)]
    subprocess.run([*command, "--until", "make_cams", "--address", "local"], check=True)
    record = json.loads((place / "run.json").read_text())
    [folder] = [s["folder"] for s in record["stages"] if s["stage"] == "make_cams"]
    return place / folder


def score(cams: Path, manifest_uri: str, split: str) -> dict[str, float]:
    """CAM mIoU (%) of a split at the best background score, and that score."""
    manifest = open_manifest(manifest_uri)
    space = manifest.label_space
    maps = {row["image_id"]: row for row in read_all(str(cams)).to_pylist()}
    total = np.zeros((len(BACKGROUND_SCORES), space.num_classes, space.num_classes), np.int64)
    for row in tables.read_table(manifest.uri).to_pylist():
        if row["split"] != split or row["image_id"] not in maps:
            continue
        truth = decode_mask(storage.read_bytes(manifest.locate(row["ground_truth_uri"])))
        cam = upsample_cam(decode_cam(maps[row["image_id"]]), *truth.shape)
        for found, mask in zip(total, masks(cam, maps[row["image_id"]]["labels"]), strict=True):
            found += confusion_matrix(truth, mask, space.num_classes, space.ignore)
    scores = [mean_iou(confusion)[0] for confusion in total]
    best = int(np.nanargmax(scores))
    return {"cam_miou": 100 * scores[best], "background": BACKGROUND_SCORES[best]}


def masks(cam_KHW: NDArray[np.float32], labels: list[int]) -> Iterator[NDArray[np.uint8]]:
    """The argmax at every background score."""
    strongest = cam_KHW.max(axis=0)
    best = np.array(labels, np.uint8)[cam_KHW.argmax(axis=0)]
    for background in BACKGROUND_SCORES:
        yield np.where(strongest > background, best, 0).astype(np.uint8)


def training_seconds(step: Step, out: Path) -> float:
    """Seconds of all stages of a finished step, as its run's record has them."""
    return float(json.loads((out / step.folder / "run.json").read_text())["seconds"])


def print_table(results: dict[str, Any], wanted: list[Step]) -> None:
    """mIoU by data set and rung; the spread is over the seeds that are done."""
    print(f"\n{'CAM mIoU % of held-out images':32s}" + "".join(f"{rung:>20s}" for rung in RUNGS))
    for data in dict.fromkeys(step.data for step in wanted):
        seeds = sorted({step.seed for step in wanted if step.data == data})
        for seed in seeds:
            cells = [results.get(f"{data}/{seed}/{rung}") for rung in RUNGS]
            shown = [f"{c['cam_miou']:.1f}" if c else "not run" for c in cells]
            print(f"{data}, seed {seed}".ljust(32) + "".join(f"{cell:>20s}" for cell in shown))
        if len(seeds) > 1:
            print(f"{data}, mean and deviation".ljust(32), end="")
            for rung in RUNGS:
                keys = (f"{data}/{seed}/{rung}" for seed in seeds)
                values = [results[key]["cam_miou"] for key in keys if key in results]
                spread = f" +- {stdev(values):.1f}" if len(values) > 1 else ""
                print(f"{f'{mean(values):.1f}{spread}' if values else 'not run':>20s}", end="")
            print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder of the runs")
    parser.add_argument("--voc", help="VOCdevkit with ImageSets/Segmentation/{train_aug,val}.txt")
    parser.add_argument("--only", choices=("shapes", "voc12-mini"), help="one data set")
    parser.add_argument("--reduced", action="store_true", help="smaller: see the printed sizes")
    parser.add_argument("--rungs", nargs="+", choices=RUNGS, default=RUNGS)
    parser.add_argument("--minutes", type=float, help="begin no rung later than this")
    arguments = parser.parse_args()
    if arguments.only != "shapes" and not arguments.voc:
        parser.error("--voc PATH, or --only shapes")
    out: Path = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    sizes = REDUCED if arguments.reduced else FULL
    wanted = [step for step in steps(arguments.only) if step.rung in arguments.rungs]
    numbers = out / f"ladder{'-reduced' if arguments.reduced else ''}.json"
    results: dict[str, Any] = json.loads(numbers.read_text()) if numbers.exists() else {}
    for data in dict.fromkeys(step.data for step in wanted):
        print(f"{data}: {sizes[data]}")
    began = time.monotonic()
    for step in wanted:
        key, size = f"{step.data}/{step.seed}/{step.rung}", sizes[step.data]
        if key in results:
            continue
        if arguments.minutes and time.monotonic() - began > 60 * arguments.minutes:
            break
        if step.data == "shapes":
            images = size.train + size.held_out
            data: dict[str, Any] = {"source": "shapes", "images": images, "size": 128}
        else:
            data = subset(arguments.voc, out, size)
        cams = run(step, out, recipe(step, size, data))
        record = json.loads((out / step.folder / "run.json").read_text())
        results[key] = score(cams, record["manifest"], data.get("held_out_split", "val")) | {
            "seconds": training_seconds(step, out)
        }
        numbers.write_text(json.dumps(results, indent=1))
        print(f"{key}: {results[key]}", flush=True)
    print_table(results, wanted)


if __name__ == "__main__":
    main()
