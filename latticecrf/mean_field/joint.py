"""Joint mean field: M labels that compete, the weak ones among them frozen (see `freezing`).

Posteriors add up to one, so the messages of all labels add up to that of a label certain
everywhere. Where that saves lanes, one label is not filtered: its message is what the others leave.
"""

# N: pixels; M: labels; L: labels in a block.

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from latticecrf.checks import Float32Array
from latticecrf.mean_field.binary_updates import padded, unpack
from latticecrf.mean_field.filter_bank import FilterBank
from latticecrf.mean_field.freezing import (
    Float64Array,
    growth,
    largest_shares,
    settled_labels,
    weak_labels,
)
from latticecrf.mean_field.joint_packing import columns, load_scores, unload
from latticecrf.mean_field.joint_softmax import softmax
from latticecrf.mean_field.joint_updates import (
    fill_implied,
    freezing_costs,
    grow,
    highest,
    invert_sums,
)
from latticecrf.simd.aligned import aligned
from latticecrf.simd.rows import WIDE

# Labels in a block: one AVX-512 register or two of AVX2.
_WIDE = len(WIDE)
# Below this many labels freezing saves nothing.
_WORTH_FREEZING = 9
# Messages up to this leave the softmax within float32 without subtracting the largest one.
_SAFE_MESSAGE = 50.0

Labels = npt.NDArray[np.int64]


def solve_joint(
    bank: FilterBank,
    scores_MN: Float32Array,
    floor: np.float32,
    weights: Sequence[float],
    iterations: int,
    posterior_MN: Float32Array,
) -> None:
    """Turn scores into posteriors, both float32 [M, N] in raster order.

    Args:
        bank: The filters.
        scores_MN: Scores, at most 1.
        floor: Scores below it count as this much, > 0.
        weights: The Potts weight of each kernel, >= 0.
        iterations: Mean-field iterations.
        posterior_MN: Receives the posteriors.
    """
    mass_N = bank.mass(weights)
    strongest = float(mass_N.max())
    inverse_N = np.empty_like(mass_N)
    invert_sums(WIDE, (0,), scores_MN, floor, inverse_N)
    largest_M = largest_shares(scores_MN, floor, inverse_N)
    kept = np.arange(len(scores_MN))
    if len(kept) >= _WORTH_FREEZING:
        kept = kept[~weak_labels(largest_M, strongest)]
    implied = None
    if len(kept) == len(scores_MN) and _lanes(len(kept) - 1) < _lanes(len(kept)):
        # The strongest label is never frozen.
        implied = int(largest_M.argmax())
        kept = np.delete(kept, implied)
    single = len(kept) == len(scores_MN) - 1
    filters = _Filters(bank, weights, floor)
    field = _Field(filters, kept, implied, mass_N if single else mass_N[:0])
    field.load(scores_MN, inverse_N, posterior_MN)
    shifted = strongest > _SAFE_MESSAGE
    if iterations > 1 and len(kept) >= _WORTH_FREEZING:
        iterations -= 1
        field.filter()
        field = field.without_settled(scores_MN, largest_M, inverse_N, posterior_MN)
        field.normalize(shifted)
    for _ in range(iterations):
        field.filter()
        field.normalize(shifted)
    field.unload(posterior_MN)


def _tail(count: int) -> int:
    """Lanes of the last block of `count` labels: a power of two, not under 4 beside a full one."""
    last = padded((count - 1) % _WIDE + 1)
    return max(last, 4) if count > _WIDE else last


def _lanes(count: int) -> int:
    """The lanes of all blocks of `count` labels together: what an iteration costs."""
    return (count - 1) // _WIDE * _WIDE + _tail(count) if count else 1


class _Filters(NamedTuple):
    """What does not change while labels are frozen: filters, their weights, the lowest score."""

    bank: FilterBank
    weights: Sequence[float]
    floor: np.float32


class _Block(NamedTuple):
    """Labels whose rows lie together: L lanes, the first row at `offset`."""

    offset: int
    lanes: int
    labels: Labels


class _Field:
    """Scores and posteriors of the labels that are still filtered, in packed blocks.

    Blocks have 16 lanes; the last one has the power of two that holds what is left. A short last
    block is filtered together with the one before it.

    Attributes:
        rows: Messages or posteriors, flat float32.
    """

    def __init__(
        self, filters: _Filters, kept: Labels, implied: int | None, mass_N: Float32Array
    ) -> None:
        self._filters = filters
        self._bank = bank = filters.bank
        self._kept = kept
        self._implied = implied
        # In use only when one label is left out: then its message is known.
        self._mass = mass_N
        pixels = bank.places.size
        full = (len(kept) - 1) // _WIDE
        self._blocks = [
            _Block(first * pixels, _WIDE, kept[first : first + _WIDE])
            for first in range(0, full * _WIDE, _WIDE)
        ]
        last = _Block(full * _WIDE * pixels, _tail(len(kept)), kept[full * _WIDE :])
        self._blocks.append(last)
        self._base = aligned(last.offset + last.lanes * pixels)
        self.rows = aligned(self._base.size)
        self._rest = np.zeros(pixels, np.float32)
        self._scale = np.empty(pixels, np.float32)
        # What is filtered at once: the rows and their width.
        widths = [block.lanes for block in self._blocks]
        if full and last.lanes < _WIDE:
            widths[-2:] = [_WIDE + last.lanes]
        ends = np.cumsum([0, *widths]) * pixels
        self._units = [(self.rows[ends[i] : ends[i + 1]], width) for i, width in enumerate(widths)]
        # One after the other: a narrower block's working memory is the start of a wider one's.
        self._scratch = bank.scratch(max(widths))

    def load(
        self, scores_MN: Float32Array, inverse_N: Float32Array, posterior_MN: Float32Array
    ) -> None:
        """Take over the scores, and start without messages."""
        for block in self._blocks:
            part = slice(block.offset, block.offset + block.lanes * inverse_N.size)
            load_scores(
                WIDE,
                scores_MN,
                block.labels,
                self._bank.places,
                self._filters.floor,
                inverse_N,
                self._base[part],
                self.rows[part],
                block.lanes,
            )
        for label in self._left_out(len(scores_MN)):
            np.clip(scores_MN[label], self._filters.floor, 1.0, out=posterior_MN[label])
        self._set_rest(posterior_MN)
        self._scale[self._bank.places] = inverse_N

    def filter(self) -> None:
        """Turn the rows from posteriors into messages."""
        for rows, lanes in self._units:
            self._bank.apply(rows, lanes, self._filters.weights, self._scratch)

    def normalize(self, shifted: bool) -> None:
        """Turn the rows from messages into posteriors; `shifted` for messages of any size."""
        softmax(
            WIDE,
            (0,) * self._blocks[-1].lanes,
            self.rows,
            self._base,
            self._rest,
            self._mass,
            self._scale,
            shifted,
        )

    def without_settled(
        self,
        scores_MN: Float32Array,
        largest_M: Float64Array,
        inverse_N: Float32Array,
        posterior_MN: Float32Array,
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
        kept = self._kept[~settled]
        if self._implied is not None:
            kept = np.union1d(kept, [self._implied])
        if _lanes(len(kept)) >= _lanes(len(self._kept)):
            return self
        left = _Field(self._filters, kept, None, self._mass[:0])
        self._move(left, scores_MN, posterior_MN)
        return left

    def _move(self, left: _Field, scores_MN: Float32Array, posterior_MN: Float32Array) -> None:
        """Fill the field of the labels that are left."""
        at_M, stride_M = self._columns(len(scores_MN))
        pixels = self._rest.size
        for block in left._blocks:
            part = slice(block.offset, block.offset + block.lanes * pixels)
            at, stride = at_M[block.labels], stride_M[block.labels]
            for source, target in ((self._base, left._base[part]), (self.rows, left.rows[part])):
                columns(source, at, stride, pixels, target, block.lanes)
            for k in np.flatnonzero(at < 0):
                left._base[part][k :: block.lanes][self._bank.places] = np.clip(
                    scores_MN[block.labels[k]], self._filters.floor, 1.0
                )
                tail = (0,) * self._blocks[-1].lanes
                fill_implied(
                    WIDE, tail, self.rows, self._mass, left.rows[part], block.lanes, int(k)
                )
        for block in self._blocks:
            gone = np.isin(block.labels, left._kept, invert=True)
            if gone.any():
                grow((0,) * block.lanes, self._base, self.rows, block.offset, pixels)
                # Labels that stay are written too: their planes are overwritten at the end.
                self._unpack(self._base, block, posterior_MN)
        left._set_rest(posterior_MN)

    def unload(self, posterior_MN: Float32Array) -> None:
        """Write every label's posterior; those left out hold their scaled scores until now."""
        scale_N = self._scale[self._bank.places]
        for label in self._left_out(len(posterior_MN)):
            posterior_MN[label] *= scale_N
        for block in self._blocks:
            self._unpack(self.rows, block, posterior_MN)

    def _unpack(self, rows: Float32Array, block: _Block, posterior_MN: Float32Array) -> None:
        places = self._bank.places
        if len(block.labels) == _WIDE:
            unload(WIDE, rows[block.offset :], places, posterior_MN, block.labels)
        else:
            unpack(rows, places, block.lanes, block.offset, posterior_MN, block.labels)

    def _left_out(self, count: int) -> Labels:
        return np.setdiff1d(np.arange(count), self._kept)

    def _set_rest(self, posterior_MN: Float32Array) -> None:
        """What the labels that are left out add to every denominator."""
        left_out = self._left_out(len(posterior_MN))
        if len(left_out):
            self._rest[self._bank.places] = sum(posterior_MN[label] for label in left_out)

    def _columns(self, count: int) -> tuple[Labels, Labels]:
        """Where each label's first value lies (-1: nowhere), and how far apart its values are."""
        at_M, stride_M = np.full(count, -1), np.ones(count, np.int64)
        for block in self._blocks:
            at_M[block.labels] = block.offset + np.arange(len(block.labels))
            stride_M[block.labels] = block.lanes
        return at_M, stride_M
