"""Hours that the CRF of all of COCO val takes on 16 cores, ours beside pydensecrf's.

    flock LOCK python benchmarks/coco_val_crf.py                    # shared coco14-mini
    python benchmarks/coco_val_crf.py --coco DIR --seconds 600      # any COCO tree
    python benchmarks/coco_val_crf.py --scores DIR                  # a segmenter's logits, ID.npy

40,137 images of 81 classes are made from the photographs and outlines of a small COCO, over and
over in their own sizes, each with noise of its own: about 4 TB of scores. They are streamed: a
process makes one image, refines it, and forgets it. A slice in random order is measured, by as many
processes as there are cores at once, until the CPU seconds a megapixel are steady; every side gets
the same images. What is timed is the CRF from softmax scores to labels: `pmm refine`'s, with the
classes that can hardly matter added up, and pydensecrf as deeplab-pytorch calls it, with all 81.
The hours of the whole set are seconds a megapixel times its megapixels.

How many classes can matter is the segmenter's: `sure` gives absent classes 3e-5 of a pixel each,
`unsure` up to 1e-3 where classes meet, so that nearly all of them stay. pydensecrf takes both
alike.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import crf_inputs
import cv2
import numpy as np
from crf import processor

from latticecrf import DenseCrf, Preset, merge_weak_labels
from latticecrf.kernels.warm import warm_up
from pmm_ray.labels import COCO14

IMAGES, CORES = 40_137, 16
LABELS = COCO14.num_classes
PARAMETERS = Preset.EXCEL.value.parameters
# A slice is steady when the standard error of its mean is this share of it, after this many images.
STEADY, LEAST = 0.03, 12
STRIDE = 4


@dataclass(frozen=True)
class Photo:
    """A photograph of the small set, and its outlines by contiguous class."""

    path: str
    height: int
    width: int
    outlines: tuple[tuple[int, tuple[Any, ...]], ...]


def read_photos(root: Path) -> list[Photo]:
    """All photographs of a COCO tree."""
    photos = []
    for split in ("val2014", "train2014"):
        content = json.loads((root / f"annotations/instances_{split}.json").read_text())
        outlines: dict[int, list[Any]] = defaultdict(list)
        for one in content["annotations"]:
            if isinstance(one["segmentation"], list):
                label = COCO14.dataset_ids.index(one["category_id"])
                outlines[one["image_id"]].append((label, tuple(map(tuple, one["segmentation"]))))
        photos += [
            Photo(
                str(root / split / image["file_name"]),
                image["height"],
                image["width"],
                tuple(outlines[image["id"]]),
            )
            for image in content["images"]
        ]
    return photos


def logits(photo: Photo, seed: int, kind: str) -> Any:
    """Logits of a segmenter, float32 [81, h, w] at stride 4; see the top for `kind`.

    Outlines are blurred, so that edges are wrong by some pixels; absent classes have smooth noise;
    a few classes are confused with what is there.
    """
    rng = np.random.default_rng(seed)
    height, width = -(-photo.height // STRIDE), -(-photo.width // STRIDE)
    coarse = rng.normal(0, 1, (LABELS, 7, 9)).astype(np.float32)
    noise = np.stack([cv2.resize(plane, (width, height)) for plane in coarse])
    planes = np.zeros_like(noise)
    for label, polygons in photo.outlines:
        plane = np.zeros((height, width), np.float32)
        for polygon in polygons:
            points = (np.array(polygon).reshape(-1, 2) / STRIDE).round().astype(np.int32)
            cv2.fillPoly(plane, [points], 1.0)
        planes[label] = np.maximum(planes[label], cv2.GaussianBlur(plane, (0, 0), 3))
    planes[0] = 1 - planes[1:].max(axis=0)
    confused = rng.integers(1, LABELS, 1 + len({label for label, _ in photo.outlines}))
    for label in confused:
        planes[label] = np.maximum(planes[label], planes[1:].max(axis=0) * 0.3 * rng.random())
    if kind == "unsure":
        return noise - 8 + 13 * planes
    return np.log(planes + 3e-5 * np.exp(0.7 * noise))


def softmax(logits_Mhw: Any, height: int, width: int) -> Any:
    """Probabilities at the size of the photograph, float32 [M, H, W]."""
    scores = np.stack([cv2.resize(plane, (width, height)) for plane in logits_Mhw])
    scores -= scores.max(axis=0)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=0)
    return scores


def ours(image: Any, scores: Any) -> Any:
    """What `pmm refine` does."""
    kept, planes = merge_weak_labels(scores, PARAMETERS)
    posterior = DenseCrf(image, PARAMETERS).joint(planes) if len(planes) > 1 else planes
    return kept[posterior[: len(kept)].argmax(0)], len(planes)


def theirs(image: Any, scores: Any) -> Any:
    """What deeplab-pytorch does."""
    import pydensecrf.densecrf as dcrf
    from pydensecrf.utils import unary_from_softmax

    height, width = image.shape[:2]
    crf = dcrf.DenseCRF2D(width, height, len(scores))
    crf.setUnaryEnergy(np.ascontiguousarray(unary_from_softmax(scores)))
    p = PARAMETERS
    crf.addPairwiseGaussian(sxy=p.gaussian_sigma, compat=p.gaussian_weight)
    crf.addPairwiseBilateral(
        sxy=p.bilateral_sigma,
        srgb=p.bilateral_color_sigma,
        rgbim=np.ascontiguousarray(image),
        compat=p.bilateral_weight,
    )
    posterior = np.array(crf.inference(p.iterations)).reshape(scores.shape)
    return posterior.argmax(0), len(scores)


SIDES = {
    "ours, sure": (ours, "sure"),
    "ours, unsure": (ours, "unsure"),
    "pydensecrf": (theirs, "unsure"),
}


@dataclass(frozen=True)
class Sample:
    """One image: its number, megapixels, labels in the CRF, seconds, and the labels' bytes."""

    number: int
    megapixels: float
    labels: int
    cpu: float
    wall: float
    chosen: bytes


def measure(side: str, number: int, photo: Photo, scores: Path | None) -> Sample:
    """Make, refine and forget one image."""
    solve, kind = SIDES[side]
    bgr = cv2.imread(photo.path, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if bgr is None:
        sys.exit(f"cannot read {photo.path}")
    image = np.ascontiguousarray(bgr[..., ::-1])
    if scores is not None:
        stored = np.load(scores / f"{Path(photo.path).stem}.npy").astype(np.float32)
    else:
        stored = logits(photo, number, kind)
    given = softmax(stored, *image.shape[:2])
    wall, cpu = time.perf_counter(), time.thread_time()
    chosen, labels = solve(image, given)
    cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
    return Sample(number, chosen.size / 1e6, labels, cpu, wall, chosen.astype(np.uint8).tobytes())


def start() -> None:
    """Make a worker ready."""
    cv2.setNumThreads(1)
    warm_up()


def steady(samples: list[Sample]) -> bool:
    """Whether the CPU seconds a megapixel are known well enough."""
    return len(samples) >= LEAST and error(samples) < STEADY


def rate(samples: list[Sample]) -> float:
    """CPU seconds a megapixel."""
    return sum(s.cpu for s in samples) / sum(s.megapixels for s in samples)


def error(samples: list[Sample]) -> float:
    """Standard error of `rate`, as a share of it (of a ratio of sums)."""
    mean = rate(samples)
    residuals = [s.cpu - mean * s.megapixels for s in samples]
    spread = math.sqrt(sum(r * r for r in residuals) / (len(samples) - 1))
    return spread / math.sqrt(len(samples)) / statistics.fmean(s.cpu for s in samples)


def slice_of(
    side: str, photos: list[Photo], pool: ProcessPoolExecutor, workers: int, options: Any
) -> Iterator[Sample]:
    """Samples in random order, `workers` at once, until they are steady or the time is over."""
    order = np.random.default_rng(0).permutation(IMAGES)
    samples: list[Sample] = []
    end = time.monotonic() + options.seconds
    at = 0
    while time.monotonic() < end and not steady(samples) and at < IMAGES:
        numbers = [int(number) for number in order[at : at + workers]]
        tasks = [
            pool.submit(measure, side, number, photos[number % len(photos)], options.scores)
            for number in numbers
        ]
        found = [task.result() for task in tasks]
        samples += found
        yield from found
        at += workers


def main() -> None:
    """Measure both sides and print the hours."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--coco", type=Path, help="folder with annotations/, train2014/, val2014/")
    parser.add_argument("--scores", type=Path, help="folder of ID.npy logits [81, h, w]")
    parser.add_argument("--seconds", type=float, default=300, help="at most, for each side")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes at once")
    options = parser.parse_args()
    shared = crf_inputs.shared_data()
    coco = options.coco or (shared / "coco14-mini" if shared else None)
    if coco is None:
        sys.exit("no coco14-mini: give --coco DIR, or set PMM_SHARED")
    photos = read_photos(coco)
    sizes = np.array([photo.height * photo.width for photo in photos]) / 1e6
    total = float(sum(sizes[number % len(photos)] for number in range(IMAGES)))
    print(
        f"{processor()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {options.workers} "
        f"processes at once, one thread each\n{IMAGES:,} images of {LABELS} classes from "
        f"{len(photos)} photographs: {total:,.0f} megapixels, {total * LABELS * 4e6 / 1e12:.1f} TB"
    )
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context, start) as pool:
        found = {
            side: list(slice_of(side, photos, pool, options.workers, options)) for side in SIDES
        }
    print(f"{'':14}images  labels in CRF  s/megapixel     +-  s/image  hours on {CORES} cores")
    hours = {}
    for side, samples in found.items():
        hours[side] = rate(samples) * total / 3600 / CORES
        print(
            f"{side:14}{len(samples):6}  {statistics.fmean(s.labels for s in samples):13.1f}  "
            f"{rate(samples):11.2f}  {error(samples):5.1%}  "
            f"{rate(samples) * total / IMAGES:7.2f}  {hours[side]:8.2f}"
            + ("" if steady(samples) else "  (not steady: more --seconds)")
        )
    *mine, other = hours
    for side in mine:
        print(f"{side}: {hours[other] / hours[side]:.1f}x")
    known = {sample.number: sample for sample in found[mine[-1]]}
    both = [(known[s.number].chosen, s.chosen) for s in found[other] if s.number in known]
    same = [np.frombuffer(a, np.uint8) == np.frombuffer(b, np.uint8) for a, b in both]
    if same:
        alike = np.concatenate(same)
        print(f"labels equal: {alike.mean():.4%} of {alike.size:,} pixels, {len(both)} images")
    print(
        f"basis: CPU seconds of the CRF alone, {options.workers} processes at once; seconds a "
        f"megapixel of the slice times all megapixels; {CORES} cores are {CORES} times one of "
        f"these. Reading, softmax and PNG are not in it, nor what {CORES} cores take from each "
        "other's memory bandwidth"
    )


if __name__ == "__main__":
    main()
