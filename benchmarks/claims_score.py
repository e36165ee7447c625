"""How `claims.py` compares two sides on the same photographs: cross-fitted exponents, bootstrap."""

# N: photographs; S: exponents; C: classes; R: resamples. Counts are of pixels.

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.method.confusion import from_sparse
from pmm_ray.runtime.core.index import read_all

RESAMPLES = 2000
_INTERVAL = (2.5, 97.5)
Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Scored:
    """Masks of some photographs, scored one by one.

    Attributes:
        counts: photograph -> pixels [3, C]: of the class in both, in the truth, in the mask.
        exponents: photograph -> place of its exponent among those of its stage.
    """

    counts: Mapping[str, Counts]
    exponents: Mapping[str, int]


def half(image_id: str) -> int:
    """The half of the photographs that one belongs to, 0 or 1."""
    return hashlib.sha256(f"claims-{image_id}".encode()).digest()[0] % 2


def three(cells: Sequence[int], counts: Sequence[int], classes: int) -> Counts:
    """[3, C] of one photograph's sparse confusion matrix."""
    matrix = from_sparse(np.asarray(cells, np.int32), np.asarray(counts, np.int64), classes)
    return np.stack([np.diag(matrix), matrix.sum(axis=1), matrix.sum(axis=0)])


def mean_ious(totals_R3C: NDArray[Any]) -> NDArray[np.float64]:
    """mIoU 0..1 [R] over the classes with truth, of summed counts [R, 3, C]."""
    both, truth, found = np.moveaxis(totals_R3C.astype(np.float64), 1, 0)
    there = truth > 0
    iou = np.where(there, both / np.maximum(truth + found - both, 1), 0)
    result: NDArray[np.float64] = iou.sum(axis=1) / np.maximum(there.sum(axis=1), 1)
    return result


def read(uri: str, classes: int) -> Scored:
    """The scores of a finished `evaluate` or `sweep_masks` stage.

    Of a sweep each half of the photographs has the exponent that is best on the other half.
    """
    rows = {row["image_id"]: row for row in read_all(uri).to_pylist()}
    found = {}
    for image_id, row in sorted(rows.items()):
        swept = bool(row["cells"]) and isinstance(row["cells"][0], list)
        pairs = zip(row["cells"], row["counts"], strict=True) if swept else [_pair(row)]
        found[image_id] = np.stack([three(cells, counts, classes) for cells, counts in pairs])
    return cross_fitted(found)


def _pair(row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    return row["cells"], row["counts"]


def cross_fitted(counts_S3C: Mapping[str, Counts]) -> Scored:
    """The counts [S, 3, C] of every photograph -> those of the other half's best exponent."""
    best = []
    for side in (0, 1):
        others = [counts for image_id, counts in counts_S3C.items() if half(image_id) != side]
        scores = mean_ious(np.sum(others, axis=0)) if others else np.zeros(1)
        best.append(int(np.argmax(scores)))
    exponents = {image_id: best[half(image_id)] for image_id in counts_S3C}
    chosen = {image_id: counts[exponents[image_id]] for image_id, counts in counts_S3C.items()}
    return Scored(chosen, exponents)


def compare(seeds: Sequence[tuple[Scored, Scored]]) -> dict[str, Any]:
    """A paired bootstrap over photographs.

    Args:
        seeds: of each seed the scores after and before. All seeds have the same photographs.

    Returns:
        In points of mIoU: `after` and `before` of each seed, `gain`, their mean difference, and
        `low` and `high`, its 95 % interval; `photographs`, those that all sides have; `classes`,
        IoU % after and before, mean over seeds, None without truth.
    """
    ids = set.intersection(*(set(side.counts) for pair in seeds for side in pair))
    order = sorted(ids)
    random = np.random.default_rng(0)
    weights_RN = random.multinomial(len(order), [1 / len(order)] * len(order), RESAMPLES)
    gains_R, found, per_class = np.zeros(RESAMPLES), [], []
    for pair in seeds:
        counts = [np.stack([side.counts[i] for i in order]) for side in pair]
        after, before = (mean_ious(of_N3C.sum(axis=0)[None])[0] for of_N3C in counts)
        sampled = [mean_ious(np.tensordot(weights_RN, of_N3C, 1)) for of_N3C in counts]
        gains_R += (sampled[0] - sampled[1]) / len(seeds)
        found.append((after, before))
        per_class.append([_iou(of_N3C.sum(axis=0)) for of_N3C in counts])
    low, high = np.percentile(100 * gains_R, _INTERVAL)
    return {
        "after": [100 * after for after, _ in found],
        "before": [100 * before for _, before in found],
        "gain": 100 * float(np.mean([after - before for after, before in found])),
        "low": float(low),
        "high": float(high),
        "photographs": len(order),
        "classes": [
            [None if np.isnan(v) else round(100 * float(v), 1) for v in side]
            for side in np.mean(per_class, axis=0)
        ],
    }


def _iou(counts_3C: Counts) -> NDArray[np.float64]:
    both, truth, found = counts_3C.astype(np.float64)
    return np.where(truth > 0, both / np.maximum(truth + found - both, 1), np.nan)


def verdict(compared: Mapping[str, Any] | None, reason: str = "") -> str:
    """What a row says.

    Args:
        compared: of `compare`; None: not run.
        reason: why it says nothing here; empty: it does.
    """
    if compared is None:
        return "not run"
    if reason:
        return f"not measurable here: {reason}"
    if compared["low"] > 0:
        return "holds"
    return "does not" if compared["high"] < 0 else "not decided here"


def changes(after: Scored, before: Scored) -> list[tuple[float, str]]:
    """(change of a photograph's own mIoU in points, its id), the largest loss first."""
    ids = sorted(set(after.counts) & set(before.counts))
    scores = [
        mean_ious(np.stack([side.counts[i] for i in ids])) if ids else np.zeros(0)
        for side in (after, before)
    ]
    return sorted(zip((100 * (scores[0] - scores[1])).tolist(), ids, strict=True))
