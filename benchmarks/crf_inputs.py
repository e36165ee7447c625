"""Images, CAMs and scores for the CRF benchmark: real ones where they are, else synthetic."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from pmm_ray.method.cams import smooth, upsample_cam

ALPHA = 11


class Example(NamedTuple):
    """One image: its name, pixels, class indices (0-based) and full-size CAMs."""

    name: str
    image: Any
    keys: Any
    cam: Any


def shared_data() -> Path | None:
    """The folder of shared photographs, where there is one."""
    beside = Path(__file__).resolve().parents[2] / "shared"
    shared = Path(os.environ.get("PMM_SHARED", beside)) / "data"
    return shared if (shared / "oracle" / "cams").is_dir() else None


def load(images: Path | None, cams: Path | None, count: int) -> list[Example]:
    """Up to `count` images: from the folders, or the shared ones, or synthetic."""
    shared = shared_data()
    if images is None or cams is None:
        if shared is None:
            return list(_synthetic(count))
        images = shared / "voc12-mini/VOCdevkit/VOC2012/JPEGImages"
        cams = shared / "oracle/cams"
    return list(_photographs(images, cams, count))


def _synthetic(count: int) -> Iterator[Example]:
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
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        yield Example(
            f"synthetic-{seed}", pixels, np.array([3, 11]), upsample_cam(np.stack(cam), 375, 500)
        )


def _photographs(images: Path, cams: Path, count: int) -> Iterator[Example]:
    """Every n-th photograph that has a CAM."""
    files = sorted(cams.glob("*.npz"))
    if not files:
        sys.exit(f"{cams}: no .npz CAMs")
    for at in np.linspace(0, len(files) - 1, min(count, len(files))).round().astype(int):
        file = files[at]
        found = [images / f"{file.stem}{end}" for end in (".jpg", ".jpeg", ".png", ".JPEG")]
        path = next((path for path in found if path.exists()), found[0])
        bgr = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if bgr is None:
            sys.exit(f"cannot read {path}, the photograph of {file}")
        image = np.ascontiguousarray(bgr[..., ::-1])
        with np.load(file) as content:
            cam = upsample_cam(content["cam"], *image.shape[:2])
            yield Example(file.stem, image, content["keys"].astype(int), cam)


def classes(cam_KHW: Any, count: int) -> Any:
    """`count` smoothed class maps: the image's own, then shifted copies."""
    own_KHW = smooth(cam_KHW)
    shifted = [np.roll(own_KHW[k % len(own_KHW)], 37 * k, axis=1) for k in range(count)]
    return np.stack(shifted)


def scores(kind: str, example: Example, labels: int, seed: int, folder: Path | None) -> Any:
    """Softmax scores of `labels` labels, float32 [M, H, W].

    Args:
        kind: `cam`: the image's own CAMs and their background as logits (times 12), absent classes
            at zero; `peaked`: logits with absent labels between 1e-4 and 1e-3, as a trained network
            gives; `dense`: smooth noise lifts every label somewhere, so that none can be left out;
            `given`: ID.npy of `folder`.
        example: The image.
        labels: M.
        seed: Of the noise.
        folder: Scores of a real segmenter, floating [M, h, w] each.
    """
    height, width = example.image.shape[:2]
    if kind == "given" and folder is not None:
        given = np.load(folder / f"{example.name}.npy").astype(np.float32)
        return np.stack([cv2.resize(plane, (width, height)) for plane in given])
    if kind == "cam":
        logits = np.zeros((labels, height, width), np.float32)
        logits[0] = 12 * (1 - example.cam.max(axis=0)) ** ALPHA
        for key, plane in zip(example.keys, example.cam, strict=True):
            logits[1 + key % (labels - 1)] = 12 * plane
    else:
        rng = np.random.default_rng(seed)
        noise = rng.normal(0, 1, (labels, 9, 9)).astype(np.float32)
        logits = np.stack([cv2.resize(plane, (width, height)) for plane in noise])
        peaked = kind == "peaked"
        logits = logits * 0.3 - 9 if peaked else logits * 2
        logits[0] += 8 if peaked else 1
        for k, plane in enumerate(example.cam):
            logits[1 + 3 * k] += 14 * plane if peaked else 3 * plane
    exponential = np.exp(logits - logits.max(axis=0))
    return exponential / exponential.sum(axis=0)


def add_folders(parser: argparse.ArgumentParser) -> None:
    """The options that choose the photographs."""
    parser.add_argument("--images", type=Path, help="folder of ID.jpg photographs")
    parser.add_argument("--cams", type=Path, help="folder of ID.npz CAMs (keys, cam)")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that choose the data."""
    add_folders(parser)
    parser.add_argument("--scores", type=Path, help="folder of ID.npy softmax scores [M, h, w]")
