"""Joint mean field: M labels that compete, the weak ones among them frozen.

A frozen label takes part in every softmax with a logit that no longer changes, so filtering it is
saved. Two rules decide, both with a proven bound on what that can change. Notation: Q is a label's
posterior, Q0 its normalized score, m its message (the weighted sum of its filtered posteriors).

Messages are never negative, so the denominator of the softmax never falls below that of Q0, and
`Q <= Q0 exp(m)` at every pixel and iteration. Freezing the message anywhere between 0 and its true
value changes the denominator by a share of at most `Q0 (exp(m) - 1)`.

1. Before filtering: with W the message of a label that is certain everywhere and q the largest Q0,
   `m <= W max Q`; hence `Q <= q exp(e q W)` for ever as long as `e q W <= 1`.
2. After the first iteration: filters are linear and positive, so `m <= exp(max m) m1` with m1 the
   first message; hence `m <= exp(e max m1) m1` for ever as long as `e max m1 <= 1`.
"""

# N: pixels; M: labels; L: labels in a block.

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from pmm_ray.method.checks import Float32Array
from pmm_ray.method.crf.filter_bank import FilterBank
from pmm_ray.method.crf.updates import pack, softmax, unpack

# Scores below it count as this much: the released code's clipping of unaries.
FLOOR = np.float32(1e-5)
# How much the frozen labels together may change a softmax denominator, as a share of it.
_BUDGET_BEFORE = 1e-6
_BUDGET_AFTER = 5e-4
# The logit of the padding in a row: its posterior is nothing.
_NEVER = np.float32(-1e30)
# Below this many labels one block holds them all and freezing saves nothing.
_WORTH_FREEZING = 9

Labels = npt.NDArray[np.int64]


def solve_joint(
    bank: FilterBank, scores_MN: Float32Array, iterations: int, tolerance: float
) -> None:
    """Turn clipped scores, float32 [M, N] in raster order, into posteriors, in place."""
    kept = np.flatnonzero(~weak_labels(scores_MN, float(bank.mass().max())))
    field = _Field(bank, scores_MN, kept)
    field.normalize()
    if iterations > 1 and len(kept) >= _WORTH_FREEZING:
        iterations -= 1
        field.filter()
        settled = field.settled(scores_MN)
        if _total_lanes(len(kept) - int(settled.sum())) < _total_lanes(len(kept)):
            field = field.without(settled, scores_MN)
        field.normalize()
    for _ in range(iterations):
        previous = field.rows.copy() if tolerance else field.rows
        field.filter()
        field.normalize()
        if tolerance and float(np.abs(field.rows - previous).max()) <= tolerance:
            break
    field.unload(scores_MN)


def weak_labels(scores_MN: Float32Array, strongest: float) -> npt.NDArray[np.bool_]:
    """Labels to freeze before filtering, with no message at all (rule 1).

    Args:
        scores_MN: Clipped scores, float32 [M, N].
        strongest: The W of rule 1.

    Returns:
        bool [M]; the strongest label is never frozen.
    """
    total_N = scores_MN.sum(axis=0)
    largest_M = np.array([float((plane / total_N).max()) for plane in scores_MN])
    first_M = math.e * largest_M * strongest
    message_M = strongest * largest_M * np.exp(np.minimum(first_M, 1.0))
    return _within(largest_M * np.expm1(message_M), first_M <= 1.0, largest_M, _BUDGET_BEFORE)


def _within(
    cost_M: npt.NDArray[np.float64],
    allowed_M: npt.NDArray[np.bool_],
    size_M: npt.NDArray[np.float64],
    budget: float,
) -> npt.NDArray[np.bool_]:
    """The cheapest allowed labels whose costs fit the budget, never the largest one."""
    chosen_M = np.zeros(len(cost_M), np.bool_)
    cheapest_first = np.argsort(cost_M, kind="stable")
    cheapest_first = cheapest_first[cheapest_first != size_M.argmax()]
    fits = np.cumsum(cost_M[cheapest_first]) <= budget
    chosen_M[cheapest_first[fits & allowed_M[cheapest_first]]] = True
    return chosen_M


def padded(count: int) -> int:
    """The smallest power of two that holds `count` channels."""
    return 1 << (count - 1).bit_length()


def _block_width(count: int) -> int:
    """Labels in a block: the least padding, and the wider block where that is equal."""
    if count <= 8:
        return padded(count)
    return 8 if -(-count // 8) % 2 else 16


def _total_lanes(count: int) -> int:
    """The lanes of all blocks together: what an iteration costs."""
    return -(-count // _block_width(count)) * _block_width(count)


class _Field:
    """Logits and posteriors of the labels that are still filtered, in packed blocks."""

    def __init__(self, bank: FilterBank, scores_MN: Float32Array, kept: Labels) -> None:
        pixels = bank.places.size
        self._bank = bank
        self._kept = kept
        self._lanes = _block_width(len(kept))
        self._blocks = [
            (first * pixels, kept[first : first + self._lanes])
            for first in range(0, len(kept), self._lanes)
        ]
        frozen_M = np.ones(len(scores_MN), np.bool_)
        frozen_M[kept] = False
        self._frozen = np.flatnonzero(frozen_M)
        self._rest = np.empty(pixels, np.float32)
        self._rest[bank.places] = scores_MN.sum(axis=0, where=frozen_M[:, None])
        self._base = np.full(len(self._blocks) * self._lanes * pixels, _NEVER, np.float32)
        for offset, labels in self._blocks:
            pack(np.log(scores_MN[labels]), bank.places, self._base, self._lanes, offset)
        self.rows = np.zeros_like(self._base)
        self._scale = np.empty(pixels, np.float32)
        self._scratches = bank.scratches(self._lanes)

    def filter(self) -> None:
        """Turn the rows from posteriors into messages."""
        for offset, _ in self._blocks:
            self._bank.apply(self.rows, offset, self._lanes, 1.0, self._scratches)

    def normalize(self) -> None:
        """Turn the rows from messages into posteriors."""
        softmax((0,) * self._lanes, self._base, self.rows, self._rest, self._scale)

    def settled(self, scores_MN: Float32Array) -> npt.NDArray[np.bool_]:
        """Which kept labels to freeze at the first message, which the rows hold (rule 2)."""
        total_N = scores_MN.sum(axis=0)
        cost, highest, largest = [], [], []
        for _, message_N, label in self._planes():
            share_N = scores_MN[label] / total_N
            top = float(message_N.max())
            bound = np.expm1(np.float32(math.exp(min(math.e * top, 1.0))) * message_N)
            cost.append(float((share_N * bound).max()))
            highest.append(math.e * top)
            largest.append(float(share_N.max()))
        return _within(np.array(cost), np.array(highest) <= 1.0, np.array(largest), _BUDGET_AFTER)

    def without(self, settled: npt.NDArray[np.bool_], scores_MN: Float32Array) -> _Field:
        """The field of the labels left, its rows still messages.

        The first message of a settled label is multiplied into its score, as the softmax does.
        """
        messages = []
        for index, message_N, label in self._planes():
            if settled[index]:
                scores_MN[label] *= np.exp(message_N)
            else:
                messages.append(message_N.copy())
        left = _Field(self._bank, scores_MN, self._kept[~settled])
        for offset, labels in left._blocks:
            planes, messages = messages[: len(labels)], messages[len(labels) :]
            pack(np.stack(planes), self._bank.places, left.rows, left._lanes, offset)
        return left

    def _planes(self) -> Iterator[tuple[int, Float32Array, int]]:
        """Index among the kept labels, row values in raster order, and label, one by one.

        The values are only valid until the next one is asked for.
        """
        planes = np.empty((self._lanes, self._bank.places.size), np.float32)
        index = 0
        for offset, labels in self._blocks:
            some = planes[: len(labels)]
            unpack(self.rows, self._bank.places, self._lanes, offset, some)
            for plane_N, label in zip(some, labels.tolist(), strict=True):
                yield index, plane_N, label
                index += 1

    def unload(self, posterior_MN: Float32Array) -> None:
        """Write every label's posterior; frozen labels hold their scaled scores until now."""
        scale_N = self._scale[self._bank.places]
        for frozen in self._frozen:
            posterior_MN[frozen] *= scale_N
        for _, plane_N, label in self._planes():
            posterior_MN[label] = plane_N
