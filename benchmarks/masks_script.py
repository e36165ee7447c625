"""The script that a user would write today: a pool over images, pydensecrf per class, one PNG each.

The other side of `masks_pipeline.py script`. It imports nothing of this project.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pydensecrf.densecrf as dcrf
from numpy.typing import NDArray
from PIL import Image
from pydensecrf.utils import unary_from_softmax

ALPHA, SMOOTHING, THRESHOLD = 11, 0.3, 0.05


def start_script() -> None:
    """One thread for OpenCV: the pool has a process for every core."""
    cv2.setNumThreads(0)


def palette() -> list[int]:
    """VOC's colours."""
    colours = np.zeros((256, 3), np.uint8)
    for i in range(256):
        for bit in range(8):
            for channel in range(3):
                colours[i, channel] |= ((i >> (3 * bit + channel)) & 1) << (7 - bit)
    return [int(value) for value in colours.ravel()]


PALETTE = palette()


def crf(image: NDArray[np.uint8], foreground: NDArray[np.float32]) -> NDArray[np.float32]:
    """Posterior of one class against its background."""
    height, width = image.shape[:2]
    scores = np.stack([(1 - foreground) ** ALPHA, foreground])
    solver = dcrf.DenseCRF2D(width, height, 2)
    solver.setUnaryEnergy(unary_from_softmax(scores, clip=1e-5))
    solver.addPairwiseGaussian(sxy=3, compat=10)
    solver.addPairwiseBilateral(sxy=80, srgb=13, rgbim=image, compat=10)
    return np.array(solver.inference(10)).reshape(2, height, width)[1]


def script_mask(job: tuple[str, str, str, str]) -> str:
    """Read one photograph and its CAM, write its mask.

    Args:
        job: id, VOC2012 folder, folder of ID.npz, folder for ID.png.
    """
    stem, voc, cams, out = job
    image = np.ascontiguousarray(cv2.imread(f"{voc}/JPEGImages/{stem}.jpg")[..., ::-1])
    height, width = image.shape[:2]
    stored = np.load(f"{cams}/{stem}.npz")
    shares = [np.zeros((height, width))]
    for cam in stored["cam"]:
        full = cv2.resize(cam.astype(np.float32), (width, height)).clip(0, 1)
        selected = full[full > THRESHOLD]
        variation = np.std(selected) / np.mean(selected + 1e-8) if selected.size else 0.0
        smoothed = np.where(full < THRESHOLD, 0, full) ** (1 - SMOOTHING * variation)
        inside = crf(image, smoothed.astype(np.float32)) > 0.5
        shares.append(inside * (full / (1 + (full * inside).sum())))
    ids = np.concatenate([[0], stored["keys"] + 1]).astype(np.uint8)
    mask = Image.fromarray(ids[np.argmax(shares, axis=0)], mode="P")
    mask.putpalette(PALETTE)
    mask.save(Path(out) / f"{stem}.png")
    return stem
