"""How `claims.py` compares two sides on the same photographs: best exponents, bootstrap."""

# N: photographs; S: exponents; C: classes; R: resamples. Counts are of pixels.

from __future__ import annotations

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
        counts: photograph -> pixels [S, 3, C] under each exponent, one where there is none: of the
            class in both, in the truth, in the mask.
        best: place of the exponent with the highest mIoU on all of them.
    """

    counts: Mapping[str, Counts]
    best: int

    @classmethod
    def of(cls, counts: Mapping[str, Counts]) -> Scored:
        """With the best exponent."""
        return cls(counts, int(np.argmax(mean_ious(np.sum([*counts.values()], axis=0)))))


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
    """The scores of a finished `evaluate` or `sweep_masks` stage."""
    found = {}
    for row in read_all(uri).to_pylist():
        swept = bool(row["cells"]) and isinstance(row["cells"][0], list)
        pairs = zip(row["cells"], row["counts"], strict=True) if swept else [_pair(row)]
        counts = np.stack([three(cells, counts, classes) for cells, counts in pairs])
        found[row["image_id"]] = counts
    return Scored.of(found)


def _pair(row: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    return row["cells"], row["counts"]


def compare(seeds: Sequence[tuple[Scored, Scored]]) -> dict[str, Any]:
    """A paired bootstrap over photographs; each side has its best exponent in each resample.

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
        counts = [np.stack([side.counts[i] for i in order]) for side in pair]  # [N, S, 3, C]
        totals = [of.sum(axis=0) for of in counts]
        best = [int(np.argmax(mean_ious(total))) for total in totals]
        sampled = [_best_ious(weights_RN, of) for of in counts]
        gains_R += (sampled[0] - sampled[1]) / len(seeds)
        after, before = (mean_ious(t)[k] for t, k in zip(totals, best, strict=True))
        found.append((after, before))
        per_class.append([_iou(t[k]) for t, k in zip(totals, best, strict=True)])
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


def _best_ious(weights_RN: NDArray[Any], counts_NS3C: Counts) -> NDArray[np.float64]:
    """mIoU 0..1 [R] of resampled photographs under the exponent that is best for each resample."""
    under = [
        mean_ious(np.tensordot(weights_RN, counts_NS3C[:, s].astype(np.float64), 1))
        for s in range(counts_NS3C.shape[1])
    ]
    best: NDArray[np.float64] = np.max(under, axis=0)
    return best


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
        mean_ious(np.stack([side.counts[i][side.best] for i in ids])) if ids else np.zeros(0)
        for side in (after, before)
    ]
    return sorted(zip((100 * (scores[0] - scores[1])).tolist(), ids, strict=True))
