"""The lattice CRF beside pydensecrf: time, ratio, agreement, memory. One thread each.

    python benchmarks/crf.py                         # shared photographs if present, else synthetic
    python benchmarks/crf.py --images DIR --cams DIR # any photographs with .npz CAMs (keys, cam)
    python benchmarks/crf.py --profile               # also where the engine's time goes

Both sides run in this process, alternating, on the same inputs, warmed up. Times are CPU seconds of
the thread, which other processes disturb least; medians over the images. "Fresh" is pydensecrf as
it is commonly used, a new object per class; "reused" keeps one object per image.
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pmm_ray.method.cams import smooth, upsample_cam
from pmm_ray.method.crf import CrfParameters, DenseCrf, lattice, mean_field, placing
from pmm_ray.method.crf.warm import warm_up

ALPHA = 11
# Share of images with K present classes. COCO's last entry stands for five and more.
CLASSES = {
    "COCO": {1: 0.22, 2: 0.31, 3: 0.20, 4: 0.12, 6: 0.16},
    "VOC": {1: 0.64, 2: 0.27, 3: 0.07, 4: 0.02},
}
GOALS = {"COCO": 10.0, "VOC": 6.5}
KERNELS = {
    placing: ("embed", "number_vertices", "link_vertices"),
    lattice: ("chain_vertices", "group_pixels", "normalize", "splat", "blur", "slice_to"),
    mean_field: ("log_ratio", "pack", "logistic", "lower", "unpack"),
}


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of one call, and its result."""
    start = time.thread_time()
    result = call()
    return time.thread_time() - start, result


def synthetic(count: int) -> Iterator[tuple[Any, Any]]:
    """Textured images with two blobs of CAM each, 375 x 500."""
    for seed in range(count):
        rng = np.random.default_rng(seed)
        coarse = rng.uniform(0, 255, (6, 8, 3)).astype(np.float32)
        fine = rng.normal(0, 30, (94, 125, 3)).astype(np.float32)
        image = cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
        image += cv2.resize(fine, (500, 375)) + rng.normal(0, 3, image.shape)
        y, x = np.mgrid[:47, :63]
        cam = [
            np.exp(-((x - rng.uniform(10, 50)) ** 2 + (y - rng.uniform(8, 38)) ** 2) / 150)
            for _ in range(2)
        ]
        yield np.clip(image, 0, 255).astype(np.uint8), upsample_cam(np.stack(cam), 375, 500)


def photographs(images: Path, cams: Path, count: int) -> Iterator[tuple[Any, Any]]:
    """Every n-th photograph that has a CAM."""
    files = sorted(cams.glob("*.npz"))
    for file in files[:: max(1, len(files) // count)][:count]:
        bgr = cv2.imread(str(images / f"{file.stem}.jpg"), cv2.IMREAD_COLOR)
        if bgr is None:
            sys.exit(f"cannot read {images / file.stem}.jpg")
        image = np.ascontiguousarray(bgr[..., ::-1])
        yield image, upsample_cam(np.load(file)["cam"], *image.shape[:2])


def load(options: argparse.Namespace) -> list[tuple[Any, Any]]:
    """The images and full-size CAMs the options ask for."""
    if options.images:
        return list(photographs(options.images, options.cams, options.count))
    beside = Path(__file__).resolve().parents[2] / "shared"
    shared = Path(os.environ.get("PMM_SHARED", beside)) / "data"
    if (shared / "oracle" / "cams").is_dir():
        jpegs = shared / "voc12-mini/VOCdevkit/VOC2012/JPEGImages"
        return list(photographs(jpegs, shared / "oracle/cams", options.count))
    return list(synthetic(options.count))


def classes(cam_KHW: Any, count: int) -> Any:
    """`count` smoothed class maps: the image's own, then shifted copies."""
    own_KHW = smooth(cam_KHW)
    shifted = [np.roll(own_KHW[k % len(own_KHW)], 37 * k, axis=1) for k in range(count)]
    return np.stack(shifted)


def binary(data: list[tuple[Any, Any]], count: int) -> dict[str, float]:
    """Medians for K = `count`, and the agreement over all images."""
    parameters = CrfParameters.ppmg()
    times: dict[str, list[float]] = {"ours": [], "fresh": [], "reused": []}
    furthest, differing, pixels = 0.0, 0, 0
    for image, cam in data:
        u = classes(cam, count)
        b = (1 - u) ** ALPHA

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
        runs = [seconds(ours) for _ in range(3)]
        times["ours"].append(statistics.median(run[0] for run in runs))
        times["fresh"].append(seconds(fresh)[0])
        spent, truth = seconds(reused)
        times["reused"].append(spent)
        furthest = max(furthest, float(np.abs(runs[0][1] - truth).max()))
        differing += int(((runs[0][1] > 0.5) != (truth > 0.5)).sum())
        pixels += truth.size
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(
        f"{count:3} {medians['ours'] * 1e3:9.1f} {medians['fresh'] * 1e3:9.1f}"
        f" {medians['reused'] * 1e3:9.1f} {medians['fresh'] / medians['ours']:8.1f}x"
        f" {medians['reused'] / medians['ours']:7.1f}x   {furthest:.1e} {differing:6} of {pixels}"
    )
    return medians


def softmax_scores(cam_KHW: Any, labels: int, peaked: bool, seed: int) -> Any:
    """Scores of `labels` classes like a segmenter's: the CAM's classes high, the others low.

    Peaked: absent classes stay between 1e-4 and 1e-3, as in a trained network. Not peaked:
    smooth noise lifts every class somewhere, so that no label can be left out.
    """
    rng = np.random.default_rng(seed)
    height, width = cam_KHW.shape[1:]
    noise = rng.normal(0, 1, (labels, 9, 9)).astype(np.float32)
    logits = np.stack([cv2.resize(plane, (width, height)) for plane in noise])
    logits = logits * 0.3 - 9 if peaked else logits * 2
    logits[0] += 8 if peaked else 1
    for k, plane in enumerate(cam_KHW):
        logits[1 + 3 * k] += 14 * plane if peaked else 3 * plane
    exponential = np.exp(logits - logits.max(axis=0))
    return exponential / exponential.sum(axis=0)


def joint(data: list[tuple[Any, Any]], labels: int, peaked: bool) -> None:
    """One line for M = `labels`."""
    parameters = CrfParameters.segmentation()
    ours, theirs, furthest, differing, pixels = [], [], 0.0, 0, 0
    for seed, (image, cam) in enumerate(data):
        scores = softmax_scores(cam, labels, peaked, seed)
        call = functools.partial(lambda i, s: DenseCrf(i, parameters).joint(s), image, scores)
        call()
        runs = [seconds(call) for _ in range(3)]
        posterior = runs[0][1]
        ours.append(statistics.median(run[0] for run in runs))
        spent, truth = seconds(
            lambda i=image, s=scores: DenseCrf(i, parameters, "pydensecrf").joint(s)
        )
        theirs.append(spent)
        furthest = max(furthest, float(np.abs(posterior - truth).max()))
        differing += int((posterior.argmax(0) != truth.argmax(0)).sum())
        pixels += truth[0].size
    a, b = statistics.median(ours), statistics.median(theirs)
    kind = "peaked" if peaked else "dense"
    print(
        f"{labels:3} {kind:6} {a:7.3f} {b:7.3f} {b / a:6.1f}x"
        f"   {furthest:.1e} {differing:4} of {pixels}"
    )


def profile(data: list[tuple[Any, Any]], count: int) -> None:
    """CPU milliseconds of every kernel for K = `count`, median over the images."""
    spent: dict[str, float] = {}
    originals = {(m, name): getattr(m, name) for m, names in KERNELS.items() for name in names}

    def timed(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            dimension = ""
            if name in ("splat", "slice_to"):
                dimension = " 5-D" if len(arguments[1]) == 6 else " 2-D"
            if name == "blur":
                dimension = " 5-D" if arguments[1].size == 7 else " 2-D"
            took, result = seconds(lambda: kernel(*arguments))
            spent[name + dimension] = spent.get(name + dimension, 0.0) + took
            return result

        return call

    for (module, name), kernel in originals.items():
        setattr(module, name, timed(name, kernel))
    rows: dict[str, list[float]] = {}
    for image, cam in data:
        u = classes(cam, count)
        for _ in range(3):
            spent.clear()
            call = functools.partial(DenseCrf, image, CrfParameters.ppmg())
            took, crf = seconds(call)
            total = took + seconds(functools.partial(crf.binary, u, (1 - u) ** ALPHA))[0]
        for name, value in (spent | {"everything": total}).items():
            rows.setdefault(name, []).append(value)
    for (module, name), kernel in originals.items():
        setattr(module, name, kernel)
    print(f"\nkernels at K = {count}, ms an image")
    for name, values in rows.items():
        print(f"  {name:16} {statistics.median(values) * 1e3:7.2f}")


PEAK = """
import re, sys
from pathlib import Path
import numpy as np
from pmm_ray.method.crf import CrfParameters, DenseCrf
width, height = int(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(0)
image = np.kron(rng.integers(0, 240, (height // 20, width // 20, 3)), np.ones((20, 20, 1)))
image = (image + rng.integers(0, 12, image.shape, dtype=np.uint8)).astype(np.uint8)
scores = np.full((5, height, width), 0.1, np.float32)
scores[:, : height // 2] = 0.9
DenseCrf(image, CrfParameters.ppmg()).binary(scores, 1 - scores)
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def peak_memory(width: int, height: int) -> None:
    """Peak resident memory of a process that solves five classes, inputs included."""
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
    parser.add_argument("--images", type=Path, help="folder of ID.jpg photographs")
    parser.add_argument("--cams", type=Path, help="folder of ID.npz CAMs (keys, cam)")
    parser.add_argument("--count", type=int, default=9, help="images to use")
    parser.add_argument("--joint-count", type=int, default=3, help="images for joint problems")
    parser.add_argument("--profile", action="store_true", help="print the time of every kernel")
    parser.add_argument("--large", action="store_true", help="also 4000 x 3000 for the memory")
    options = parser.parse_args()
    if (options.images is None) != (options.cams is None):
        parser.error("--images and --cams go together")
    # pydensecrf and our kernels have one thread each; so has OpenCV, which makes the inputs.
    cv2.setNumThreads(1)
    data = load(options)
    print(f"{processor()}; {len(data)} images; kernels ready in {warm_up():.2f} s\n")

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

    print("\njoint (segmenter's CRF), CPU s an image, median")
    print("  M            ours  theirs   ratio   furthest  argmax differs")
    for labels in (21, 91):
        for peaked in (True, False):
            joint(data[: options.joint_count], labels, peaked)

    print("\npeak memory of a process")
    peak_memory(640, 480)
    if options.large:
        peak_memory(4000, 3000)
    if options.profile:
        for count in (1, 4):
            profile(data, count)


if __name__ == "__main__":
    main()
