"""`pmm eval` on as many masks as COCO 2014's validation split has: time, and the driver's memory.

    python benchmarks/evaluation.py [--images 40137]

Draws 64 pairs of masks of 640 x 480 px with 81 classes, gives each many names (hard links, so that
the disk does not matter), scores them with the command itself, and compares the mean with the one
that is computed from the 64 pairs directly. Once with a tenth of the images, to see what grows.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from pmm_ray.labels import COCO14
from pmm_ray.method.confusion import confusion_matrix, mean_iou
from pmm_ray.runtime.rows.images import encode_mask

IMAGES, DISTINCT = 40_137, 64
HEIGHT, WIDTH = 480, 640


def pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(truth, mask): a few ellipses; the mask's are shifted, and some have another class."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    truth, mask = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    for _ in range(rng.integers(1, 8)):
        label = rng.integers(1, COCO14.num_classes)
        cy, cx = rng.uniform(0, HEIGHT), rng.uniform(0, WIDTH)
        ry, rx = rng.uniform(20, 150, 2)
        truth[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = label
        shown = label if rng.random() < 0.8 else rng.integers(1, COCO14.num_classes)
        cy, cx = cy + rng.normal(0, 15), cx + rng.normal(0, 15)
        mask[((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1] = shown
    return truth, mask


def measure(folder: Path, images: int) -> tuple[float, float, dict[str, float]]:
    """(seconds, peak of the driver's own memory in MB, scores) of the command."""
    for side in ("truth", "mask"):
        place = folder / f"{images}-{side}"
        place.mkdir()
        for i in range(images):
            os.link(folder / f"{i % DISTINCT}-{side}.png", place / f"COCO_val2014_{i:012d}.png")
    out = folder / f"{images}-out"
    command = [sys.executable, "-m", "pmm_ray.cli", "eval", str(folder / f"{images}-mask")]
    command += ["--ground-truth", str(folder / f"{images}-truth"), "--label-space", "coco14"]
    command += ["--out", str(out), "--address", "local"]
    started, peak = time.monotonic(), 0
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    watched = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            peak = max(peak, watched.memory_full_info().uss)
        except psutil.Error:
            break
        time.sleep(0.5)
    assert process.wait() == 0
    seconds = time.monotonic() - started
    return seconds, peak / 1e6, json.loads((out / "scores.json").read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=IMAGES)
    images = parser.parse_args().images
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="pmm-eval-") as name:
        folder, pairs = Path(name), [pair(rng) for _ in range(DISTINCT)]
        for i, (truth, mask) in enumerate(pairs):
            (folder / f"{i}-truth.png").write_bytes(encode_mask(truth, COCO14))
            (folder / f"{i}-mask.png").write_bytes(encode_mask(mask, COCO14))
        for count in (images // 10, images):
            seconds, peak, scores = measure(folder, count)
            total = sum(
                confusion_matrix(truth, mask, COCO14.num_classes, COCO14.ignore)
                * (count // DISTINCT + (i < count % DISTINCT))
                for i, (truth, mask) in enumerate(pairs)
            )
            expected, _ = mean_iou(np.asarray(total))
            assert abs(expected - scores["mean_iou"]) < 1e-6, (expected, scores["mean_iou"])
            print(
                f"{count} images: {seconds:.1f} s with Ray's start ({count / seconds:.0f}/s), the "
                f"driver took {peak:.0f} MB at most; mIoU {scores['mean_iou'] * 100:.4f} %, which "
                "is what it is when computed directly"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
