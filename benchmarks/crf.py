"""The lattice CRF beside pydensecrf: time, ratio, agreement, memory. One thread each.

    python benchmarks/crf.py                         # shared photographs if present, else synthetic
    python benchmarks/crf.py --images DIR --cams DIR # any photographs with .npz CAMs (keys, cam)
    python benchmarks/crf.py joint --scores DIR      # and a segmenter's softmax scores, ID.npy
    python benchmarks/crf.py binary profile          # only these parts; all: see --help

Both sides run in this process, alternating, on the same inputs, warmed up. Times are CPU seconds of
the thread, which other processes disturb least; medians over the images. "Fresh" is pydensecrf as
it is commonly used, a new object per class; "reused" keeps one object per image.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import crf_inputs as inputs
import cv2
import numpy as np
from crf_profile import print_profile

from latticecrf import CrfParameters, DenseCrf
from latticecrf.kernels.warm import warm_up
from pmm_ray.method.masks import MaskParameters, proportional_masks

# Share of images with K present classes. COCO's last entry stands for five and more.
CLASSES = {
    "COCO": {1: 0.22, 2: 0.31, 3: 0.20, 4: 0.12, 6: 0.16},
    "VOC": {1: 0.64, 2: 0.27, 3: 0.07, 4: 0.02},
}
GOALS = {"COCO": 10.0, "VOC": 6.5}


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of one call, and its result."""
    start = time.thread_time()
    result = call()
    return time.thread_time() - start, result


def several(call: Callable[[], Any], times: int = 3) -> tuple[float, Any]:
    """Median CPU seconds of some calls, and the last result."""
    runs = [seconds(call) for _ in range(times)]
    return statistics.median(run[0] for run in runs), runs[-1][1]


def binary(data: list[inputs.Example], count: int) -> dict[str, float]:
    """Medians for K = `count`, and the agreement over all images."""
    parameters = CrfParameters.ppmg()
    times: dict[str, list[float]] = {"ours": [], "fresh": [], "reused": []}
    furthest, differing, pixels = 0.0, 0, 0
    for example in data:
        image, u = example.image, inputs.classes(example.cam, count)
        b = (1 - u) ** inputs.ALPHA

        def ours(image: Any = image, u: Any = u, b: Any = b) -> Any:
            return DenseCrf(image, parameters).binary(u, b)

        def fresh(image: Any = image, u: Any = u, b: Any = b) -> Any:
            return [
                DenseCrf(image, parameters, "pydensecrf").binary(u[k : k + 1], b[k : k + 1])
                for k in range(len(u))
            ]

        def reused(image: Any = image, u: Any = u, b: Any = b) -> Any:
            return DenseCrf(image, parameters, "pydensecrf").binary(u, b)

        ours()
        spent, posterior = several(ours)
        times["ours"].append(spent)
        times["fresh"].append(seconds(fresh)[0])
        spent, truth = seconds(reused)
        times["reused"].append(spent)
        furthest = max(furthest, float(np.abs(posterior - truth).max()))
        differing += int(((posterior > 0.5) != (truth > 0.5)).sum())
        pixels += truth.size
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"{count:3} {medians['ours'] * 1e3:9.1f} {medians['fresh'] * 1e3:9.1f}"
        f" {medians['reused'] * 1e3:9.1f} {medians['fresh'] / medians['ours']:8.1f}x"
        f" {medians['reused'] / medians['ours']:7.1f}x   {furthest:.1e} {differing:6} of {pixels}"
    )
    return medians


def print_binary(data: list[inputs.Example]) -> None:
    """Every K, then weighted by how many classes images have."""
    print("binary (PPMG), CPU ms an image, median; the lattice is built anew for every image")
    print("  K      ours     fresh    reused    ratio  reused   furthest  masks differ")
    counts = sorted({count for shares in CLASSES.values() for count in shares})
    medians = {count: binary(data, count) for count in counts}
    for name, shares in CLASSES.items():
        cost = {
            side: sum(share * medians[count][side] for count, share in shares.items())
            for side in ("ours", "fresh", "reused")
        }
        print(
            f"{name}-weighted: {cost['fresh'] / cost['ours']:.1f}x (goal {GOALS[name]}x);"
            f" against one object per image {cost['reused'] / cost['ours']:.1f}x"
        )


def print_joint(data: list[inputs.Example], folder: Path | None) -> None:
    """One line for each number of labels and kind of scores."""
    print("joint (segmenter's CRF), CPU s an image, median")
    print("  M            ours  theirs   ratio   furthest  argmax differs")
    for labels in (21, 91):
        for kind in ("cam", "peaked", "dense"):
            joint(data, labels, kind, folder)
    if folder:
        joint(data, 0, "given", folder)


def joint(data: list[inputs.Example], labels: int, kind: str, folder: Path | None) -> None:
    """One line for M = `labels`; given scores have their own M."""
    parameters = CrfParameters.segmentation()
    ours, theirs, furthest, differing, pixels = [], [], 0.0, 0, 0
    for seed, example in enumerate(data):
        scores = inputs.scores(kind, example, labels, seed, folder)

        def solve(backend: Any, image: Any = example.image, scores: Any = scores) -> Any:
            return DenseCrf(image, parameters, backend).joint(scores)

        solve("lattice")
        spent, posterior = several(lambda solve=solve: solve("lattice"))
        ours.append(spent)
        spent, truth = seconds(lambda solve=solve: solve("pydensecrf"))
        theirs.append(spent)
        furthest = max(furthest, float(np.abs(posterior - truth).max()))
        differing += int((posterior.argmax(0) != truth.argmax(0)).sum())
        pixels += truth[0].size
    a, b = statistics.median(ours), statistics.median(theirs)
    print(
        f"{len(scores):3} {kind:6} {a:7.3f} {b:7.3f} {b / a:6.1f}x"
        f"   {furthest:.1e} {differing:4} of {pixels}"
    )


def print_oracle() -> None:
    """Masks made of the shared CAMs beside those that pydensecrf gave."""
    shared = inputs.shared_data()
    if shared is None:
        sys.exit("no shared oracle masks here: set PMM_SHARED")
    agreeing, pixels, count = 0, 0, 0
    for example in inputs.load(None, None, sys.maxsize):
        truth = cv2.imread(str(shared / f"oracle/ppmg/{example.name}.png"), cv2.IMREAD_GRAYSCALE)
        labels = [int(key) + 1 for key in example.keys]
        mask = proportional_masks(example.image, example.cam, labels, [MaskParameters()])[0]
        agreeing += int((mask == truth).sum())
        pixels += truth.size
        count += 1
    print(f"oracle: {count} masks, {100 * agreeing / pixels:.5f} % of {pixels} pixels equal")


PEAK = """
import re, sys
from pathlib import Path
import numpy as np
from latticecrf import CrfParameters, DenseCrf
width, height = int(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
image = np.kron(rng.integers(0, 240, (height // 20, width // 20, 3)), np.ones((20, 20, 1)))
image = (image + rng.integers(0, 12, image.shape, dtype=np.uint8)).astype(np.uint8)
scores = np.full((5, height, width), 0.1, np.float32)
scores[:, : height // 2] = 0.9
DenseCrf(image, CrfParameters.ppmg()).binary(scores, 1 - scores)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def print_memory() -> None:
    """Peak resident memory of a process that solves five classes, inputs included."""
    print("peak memory of a process")
    for width, height in ((640, 480), (1280, 960), (4000, 3000)):
        command = [sys.executable, "-c", PEAK, str(width), str(height)]
        output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        megabytes = int(output) * 1024 / 1e6
        print(f"  {width} x {height}, 5 classes: {megabytes:.0f} MB in all")


def processor() -> str:
    """The CPU's name."""
    found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return found[1] if found else platform.processor()


def main() -> None:
    """Parse the options and print every figure."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parts = ("binary", "joint", "memory", "profile", "oracle")
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(parts)}; default: the first three"
    )
    inputs.add_arguments(parser)
    parser.add_argument("--count", type=int, default=12, help="images to use, evenly spaced")
    parser.add_argument("--joint-count", type=int, default=3, help="images for joint problems")
    options = parser.parse_args()
    chosen = options.parts or parts[:3]
    if unknown := sorted(set(chosen) - set(parts)):
        parser.error(f"unknown part {unknown[0]!r}: {', '.join(parts)}")
    if (options.images is None) != (options.cams is None):
        parser.error("--images and --cams go together")
    # pydensecrf and our kernels have one thread each; so has OpenCV, which makes the inputs.
    cv2.setNumThreads(1)
    data = inputs.load(options.images, options.cams, options.count)
    few = inputs.load(options.images, options.cams, options.joint_count)
    print(f"{processor()}; {len(data)} images; kernels ready in {warm_up():.2f} s")
    if "binary" in chosen:
        print_binary(data)
    if "joint" in chosen:
        print_joint(few, options.scores)
    if "memory" in chosen:
        print_memory()
    if "profile" in chosen:
        print_profile(few)
    if "oracle" in chosen:
        print_oracle()


if __name__ == "__main__":
    main()
