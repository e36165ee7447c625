"""Joint mean field: M labels that compete, the weak ones among them frozen (see `freezing`)."""

# N: pixels; M: labels; L: labels in a block.

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pmm_ray.method.checks import Float32Array
from pmm_ray.method.crf.aligned import aligned
from pmm_ray.method.crf.filter_bank import FilterBank
from pmm_ray.method.crf.freezing import (
    Float64Array,
    growth,
    largest_shares,
    settled_labels,
    weak_labels,
)
from pmm_ray.method.crf.updates import (
    columns,
    freezing_costs,
    grow,
    highest,
    pack,
    padded,
    softmax,
    unpack,
)

# Scores below it count as this much: the released code's clipping of unaries.
FLOOR = np.float32(1e-5)
# Labels in a block: one AVX-512 register or two of AVX2.
_WIDE = 16
# Below this many labels freezing saves nothing.
_WORTH_FREEZING = 9
# Messages up to this leave the softmax within float32 without subtracting the largest one.
_SAFE_MESSAGE = 50.0

Labels = npt.NDArray[np.int64]


def solve_joint(
    bank: FilterBank, scores_MN: Float32Array, iterations: int, tolerance: float
) -> None:
    """Turn clipped scores, float32 [M, N] in raster order, into posteriors, in place."""
    strongest = float(bank.mass().max())
    everything = np.arange(len(scores_MN))
    kept, largest_M = everything, None
    if len(scores_MN) >= _WORTH_FREEZING:
        inverse_N = 1.0 / scores_MN.sum(axis=0)
        largest_M = largest_shares(scores_MN, inverse_N)
        kept = everything[~weak_labels(largest_M, strongest)]
    field = _Field(bank, kept)
    field.load(scores_MN)
    shifted = strongest > _SAFE_MESSAGE
    field.normalize(shifted)
    if iterations > 1 and largest_M is not None and len(kept) >= _WORTH_FREEZING:
        iterations -= 1
        field.filter()
        field = field.without_settled(scores_MN, largest_M, inverse_N)
        field.normalize(shifted)
    for _ in range(iterations):
        previous = field.rows.copy() if tolerance else field.rows
        field.filter()
        field.normalize(shifted)
        if tolerance and float(np.abs(field.rows - previous).max()) <= tolerance:
            break
    field.unload(scores_MN)


class _Block(NamedTuple):
    """Labels whose rows lie together: L lanes, the first row at `offset`."""

    offset: int
    lanes: int
    labels: Labels


class _Field:
    """Scores and posteriors of the labels that are still filtered, in packed blocks.

    Blocks have 16 lanes; the last one has the power of two that holds what is left.

    Attributes:
        rows: Messages or posteriors, flat float32.
    """

    def __init__(self, bank: FilterBank, kept: Labels) -> None:
        self._bank = bank
        self._kept = kept
        pixels = bank.places.size
        self._full = (len(kept) - 1) // _WIDE
        self._blocks = [
            _Block(first * pixels, _WIDE, kept[first : first + _WIDE])
            for first in range(0, self._full * _WIDE, _WIDE)
        ]
        left = kept[self._full * _WIDE :]
        last = _Block(self._full * _WIDE * pixels, padded(len(left)), left)
        self._blocks.append(last)
        self._base = aligned(last.offset + last.lanes * pixels)
        self.rows = aligned(self._base.size)
        self._rest = np.zeros(pixels, np.float32)
        self._scale = np.empty(pixels, np.float32)
        # One after the other: a narrower block's working memory is the start of a wider one's.
        self._scratch = bank.scratch(self._blocks[0].lanes)

    @property
    def total_lanes(self) -> int:
        """The lanes of all blocks together: what an iteration costs."""
        return sum(block.lanes for block in self._blocks)

    def load(self, scores_MN: Float32Array) -> None:
        """Take over the scores, and start without messages."""
        # What pads the last block: a score of nothing.
        self._base[self._blocks[-1].offset :] = 0.0
        self.rows[:] = 0.0
        for block in self._blocks:
            pack(scores_MN, block.labels, self._bank.places, self._base, block.lanes, block.offset)
        self._set_rest(scores_MN)

    def filter(self) -> None:
        """Turn the rows from posteriors into messages."""
        for block in self._blocks:
            self._bank.apply(self.rows, block.offset, block.lanes, 1.0, self._scratch)

    def normalize(self, shifted: bool) -> None:
        """Turn the rows from messages into posteriors; `shifted` for messages of any size."""
        softmax(
            (0,) * _WIDE,
            (0,) * self._blocks[-1].lanes,
            self._full,
            self._base,
            self.rows,
            self._rest,
            self._scale,
            shifted,
        )

    def without_settled(
        self, scores_MN: Float32Array, largest_M: Float64Array, inverse_N: Float32Array
    ) -> _Field:
        """The field of the labels that rule 2 does not settle, its rows still messages.

        The first message of a settled label is multiplied into its score, as the softmax does.
        """
        pixels, lanes = self._bank.places.size, [block.lanes for block in self._blocks]
        highest_L = [np.empty(count, np.float32) for count in lanes]
        for block, peaks in zip(self._blocks, highest_L, strict=True):
            highest((0,) * block.lanes, self.rows, block.offset, pixels, peaks)
        factor_L = [growth(peaks.astype(np.float64)) for peaks in highest_L]
        cost_M = np.full(len(largest_M), np.inf)
        packed_N = np.empty_like(inverse_N)
        packed_N[self._bank.places] = inverse_N
        for block, factors in zip(self._blocks, factor_L, strict=True):
            costs = np.empty(block.lanes, np.float32)
            if np.isfinite(factors[: len(block.labels)]).any():
                sound = np.where(np.isfinite(factors), factors, 0.0).astype(np.float32)
                freezing_costs(
                    (0,) * block.lanes,
                    self._base,
                    self.rows,
                    block.offset,
                    packed_N,
                    sound,
                    costs,
                )
                real = slice(len(block.labels))
                cost_M[block.labels] = np.where(np.isfinite(factors[real]), costs[real], np.inf)
        settled = settled_labels(cost_M, largest_M)[self._kept]
        left = _Field(self._bank, self._kept[~settled])
        return self._move(left, settled, scores_MN) if left.total_lanes < self.total_lanes else self

    def _move(
        self, left: _Field, settled: npt.NDArray[np.bool_], scores_MN: Float32Array
    ) -> _Field:
        """Fill the field of the labels that are left."""
        at, stride = self._columns()
        for source, target in ((self._base, left._base), (self.rows, left.rows)):
            target[left._blocks[-1].offset :] = 0.0
            first = 0
            for block in left._blocks:
                chosen = np.flatnonzero(~settled)[first : first + len(block.labels)]
                columns(
                    source,
                    at[chosen],
                    stride[chosen],
                    self._rest.size,
                    target,
                    block.lanes,
                    block.offset,
                )
                first += len(block.labels)
        for block in self._blocks:
            gone = np.isin(block.labels, left._kept, invert=True)
            if gone.any():
                grow((0,) * block.lanes, self._base, self.rows, block.offset, self._rest.size)
                # Labels that stay are written too: their planes are not read again.
                unpack(
                    self._base,
                    self._bank.places,
                    block.lanes,
                    block.offset,
                    scores_MN,
                    block.labels,
                )
        left._set_rest(scores_MN)
        return left

    def unload(self, posterior_MN: Float32Array) -> None:
        """Write every label's posterior; frozen labels hold their scaled scores until now."""
        scale_N = self._scale[self._bank.places]
        for label in self._frozen(len(posterior_MN)):
            posterior_MN[label] *= scale_N
        for block in self._blocks:
            unpack(
                self.rows,
                self._bank.places,
                block.lanes,
                block.offset,
                posterior_MN,
                block.labels,
            )

    def _frozen(self, count: int) -> Labels:
        return np.setdiff1d(np.arange(count), self._kept)

    def _set_rest(self, scores_MN: Float32Array) -> None:
        """What the frozen labels add to every denominator."""
        frozen = self._frozen(len(scores_MN))
        if len(frozen):
            self._rest[self._bank.places] = sum(scores_MN[label] for label in frozen)

    def _columns(self) -> tuple[Labels, Labels]:
        """Where each kept label's first value lies, and how far apart its values are."""
        at = np.concatenate([block.offset + np.arange(len(block.labels)) for block in self._blocks])
        stride = np.concatenate([np.full(len(block.labels), block.lanes) for block in self._blocks])
        return at, stride
