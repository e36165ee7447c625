"""Compile or load every CRF kernel ahead of time, and say how the cache stands."""

from __future__ import annotations

import fcntl
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from latticecrf.dense_crf import DenseCrf
from latticecrf.kernels.cache import cache_folder
from latticecrf.parameters import CrfParameters
from latticecrf.pydensecrf.densecrf import DenseCRF2D

_LOCK = "lock"
_DONE = "warm"


@dataclass(frozen=True)
class CacheStatus:
    """The on-disk cache of compiled CRF kernels.

    Attributes:
        folder: Where it is; None when no place will do, so every process compiles anew.
        kernels: Compiled kernels in it.
        size: Their total size, bytes.
        warm: Whether `warm_up` has completed there with this version on this kind of CPU.
    """

    folder: Path | None
    kernels: int
    size: int
    warm: bool


def cache_status() -> CacheStatus:
    """Look at the cache without compiling anything."""
    folder = cache_folder()
    if folder is None:
        return CacheStatus(None, 0, 0, False)
    files = list(folder.glob("*.kernel"))
    size = sum(file.stat().st_size for file in files)
    return CacheStatus(folder, len(files), size, (folder / _DONE).exists())


def warm_up() -> float:
    """Make the kernels ready in this process, compiling what the cache lacks.

    All that `DenseCrf` needs, and the drop-in with a Gaussian and a bilateral term, step by step
    too. The drop-in compiles on first use what a bilateral term alone, three or more terms, and
    features of other than two or five dimensions need.

    When many processes of a machine start at once, one compiles and the others wait and load.

    Returns:
        Seconds it took.
    """
    start = time.perf_counter()
    folder = cache_folder()
    if folder is None or (folder / _DONE).exists():
        _touch_all()
    else:
        with ExitStack() as held:
            # Where there are no locks, or nothing is written, the worst is work done twice.
            with suppress(OSError):
                lock = held.enter_context((folder / _LOCK).open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX)
            _touch_all()
            with suppress(OSError):
                (folder / _DONE).touch()
    return time.perf_counter() - start


def _touch_all() -> None:
    image_HW3 = np.zeros((4, 5, 3), np.uint8)
    # Two iterations and labels next to nothing, so that labels are frozen after the first.
    parameters = CrfParameters(2, 3.0, 3.0, 80.0, 13.0, 4.0)
    crf = DenseCrf(image_HW3, parameters)
    for count in (1, 2, 4, 8, 16, 17, 21, 25):
        scores = np.full((count, 4, 5), 1e-3, np.float32)
        scores[0] = 0.5
        crf.joint(scores)
        if count <= 16:
            crf.binary(scores, scores)
    # No label is frozen here, and one is implied: rows of 2 and of 16 lanes.
    for count in (3, 17):
        crf.joint(np.full((count, 4, 5), 1 / count, np.float32))
    for labels in (1, 2, 3, 5, 9):  # rows of 1 to 16 lanes
        steps = DenseCRF2D(5, 4, labels)
        steps.addPairwiseGaussian(3, 3)
        steps.addPairwiseBilateral(80, 13, image_HW3, 4)
        steps.stepInference(steps.startInference()[0], None, None)
    # A lattice that is filtered in several steps needs kernels of its own for narrow rows.
    noise_HW3 = np.random.default_rng(0).integers(0, 256, (80, 80, 3), dtype=np.uint8)
    crf = DenseCrf(noise_HW3, CrfParameters(1, 3.0, 3.0, 3.0, 3.0, 4.0))
    for count in (1, 2, 4, 8):
        scores = np.full((count, 80, 80), 0.5, np.float32)
        crf.binary(scores, scores)
