"""The classes that can matter to the CRF, chosen on a GPU: see `latticecrf.merge_weak_labels`.

The same choice in torch, without a word to the CPU until all of an image is done. On CPUs the
NumPy function is faster, since it may look at what it has found.
"""

# C: classes; H, W: image; K: classes that stay.

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latticecrf.mean_field.binary_updates import FLOOR
from latticecrf.mean_field.merging import can_win
from pmm_ray.nets.transfer import OnTheWay
from pmm_ray.runtime.core.errors import RowError


@dataclass(frozen=True)
class SplitScores:
    """Scores of an image on their way to the CPU.

    Attributes:
        decision: which classes are merged, bool [C], and each class's largest share, float32 [C].
        planes: float16 [C, H, W], on the device; those that stay come first.
        rest: the sum of the others, float16 [H, W], on the device.
    """

    decision: OnTheWay
    planes: Tensor
    rest: Tensor

    def fetch(self) -> tuple[NDArray[np.int64], NDArray[np.float16]]:
        """The classes that stay, ascending, [K]; and their planes, then the sum of the others'
        where there are any: [K, H, W] or [K + 1, H, W].

        Raises:
            RowError: `nonfinite`.
        """
        merged_C, largest_C = self.decision.arrays()
        if not np.isfinite(largest_C).all():
            raise RowError("nonfinite", "the segmenter's output is not finite")
        kept = np.flatnonzero(~merged_C)
        planes = [self.planes[: len(kept)]]
        if len(kept) < len(merged_C):
            planes.append(self.rest[None])
        with torch.cuda.stream(_copies(self.rest.device)) if self.rest.is_cuda else nullcontext():
            on_the_way = OnTheWay(*planes)
        return kept, np.concatenate(on_the_way.arrays())


@cache
def _copies(device: torch.device) -> torch.cuda.Stream:
    """The stream of the copies: they need not wait for the next image's passes."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@torch.inference_mode()
def split_scores(scores_CHW: Tensor, share: float) -> SplitScores:
    """Add up the weakest classes for as long as they cannot matter.

    Args:
        scores_CHW: probabilities, float32; clipped in place to 1e-5..1.
        share: of a pixel that the sum may have at most, from `mergeable_share`.

    Source: decision 006.
    """
    classes = len(scores_CHW)
    clipped = scores_CHW.clamp_(float(FLOOR), 1.0)
    total_HW = clipped.sum(0)
    largest_C = (clipped / total_HW).amax((1, 2))
    stays_C = torch.zeros(classes, dtype=torch.bool, device=clipped.device)
    if can_win(share, classes):
        stays_C = stays_C.scatter(0, clipped.argmax(0).flatten(), True)
    order_C = largest_C.masked_fill(stays_C, torch.inf).argsort(stable=True)
    sums_CHW = clipped.index_select(0, order_C).cumsum_(0)
    # of the first class, of the first two, ...: grows until the share is exceeded
    fits_C = (sums_CHW / total_HW).amax((1, 2)) <= share
    fits_C &= ~stays_C.index_select(0, order_C)
    count_1 = fits_C.sum(0, keepdim=True)
    count_1 = count_1 * (count_1 > 1)  # one class merges with nothing
    fits_C &= count_1 > 0
    rest_HW = sums_CHW.index_select(0, (count_1 - 1).clamp(min=0))[0].half()
    merged_C = torch.zeros_like(fits_C).scatter(0, order_C, fits_C)
    kept_first = merged_C.to(torch.uint8).argsort(stable=True)
    planes_CHW = clipped.index_select(0, kept_first).half()
    # last of all: when the decision has arrived, the planes are there, too
    return SplitScores(OnTheWay(merged_C, largest_C), planes_CHW, rest_HW)
