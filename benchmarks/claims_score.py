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
        return cls(counts, _best(np.stack([*counts.values()])))


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
        IoU % after and before, mean over seeds, None without truth; `objects`, % of the pixels of
        all classes but the background that have their class and that have any, after and before,
        mean over seeds; `parts`, (gain, low, high, photographs) of the photographs with one class
        and of those with several, each part with its own best exponents.
    """
    ids = set.intersection(*(set(side.counts) for pair in seeds for side in pair))
    pairs = [[np.stack([side.counts[i] for i in sorted(ids)]) for side in pair] for pair in seeds]
    best = [[side[:, _best(side)] for side in pair] for pair in pairs]  # [N, 3, C] each
    found = np.array([[mean_ious(side.sum(axis=0)[None])[0] for side in pair] for pair in best])
    per_class = [[_iou(side.sum(axis=0)) for side in pair] for pair in best]
    gain, low, high, photographs = _gain(pairs)
    several_N = (pairs[0][0][:, 0, 1, 1:] > 0).sum(axis=1) > 1
    parts = {"one class": ~several_N, "several": several_N}
    return {
        "after": (100 * found[:, 0]).tolist(),
        "before": (100 * found[:, 1]).tolist(),
        "gain": gain,
        "low": low,
        "high": high,
        "photographs": photographs,
        "classes": [
            [None if np.isnan(v) else round(100 * float(v), 1) for v in side]
            for side in np.mean(per_class, axis=0)
        ],
        "objects": np.mean([[_objects(side) for side in pair] for pair in best], axis=0).tolist(),
        "parts": {
            name: _gain([[side[chosen_N] for side in pair] for pair in pairs])
            for name, chosen_N in parts.items()
            if chosen_N.any()
        },
    }


def _gain(pairs: Sequence[Sequence[Counts]]) -> tuple[float, float, float, int]:
    """(mean gain, low, high: points of mIoU; photographs) of (after, before), [N, S, 3, C] each."""
    count = len(pairs[0][0])
    random = np.random.default_rng(0)
    weights_RN = random.multinomial(count, [1 / count] * count, RESAMPLES)
    ones_1N = np.ones((1, count), np.int64)
    gain, gains_R = 0.0, np.zeros(RESAMPLES)
    for after, before in pairs:
        gain += float((_best_ious(ones_1N, after) - _best_ious(ones_1N, before))[0]) / len(pairs)
        gains_R += (_best_ious(weights_RN, after) - _best_ious(weights_RN, before)) / len(pairs)
    low, high = np.percentile(100 * gains_R, _INTERVAL)
    return 100 * gain, float(low), float(high), count


def _best(counts_NS3C: Counts) -> int:
    return int(np.argmax(mean_ious(counts_NS3C.sum(axis=0))))


def _objects(counts_N3C: Counts) -> tuple[float, float]:
    """(% of the objects' pixels that have their class; pixels of any object, % of the objects')."""
    both, truth, found = counts_N3C.sum(axis=0)[:, 1:].sum(axis=1).astype(float)
    return 100 * both / max(truth, 1), 100 * found / max(truth, 1)


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
