"""The order in which a lattice is filtered: one sweep over its levels that stays in the cache.

A level holds the vertices of one last coordinate. A simplex reaches over d + 1 levels, a blur along
one of the first d axes over neighbouring levels, along the last axis d levels away. So while levels
are splatted from the highest down, blurring follows a few levels behind, axis after axis, and
slicing behind that; only the levels in between are alive, and their rows fit a ring. A step is a
run of levels: splat, blur and slice work on one step's share at a time.
"""

# d: feature dimensions; M: vertices; S: simplices; T: steps.

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from latticecrf.kernels.cache import kernel

# Pieces of a chain at least this long are not told apart by length.
_LENGTHS = 16
# Slots behind the ring: a row of zeros, a row nobody reads, then the carries.
ZERO, TRASH, CARRY = 0, 1, 2
# Columns of a schedule: each stage's first and last item in a step.
CLEAR, SPLAT, BLUR, SLICE = 0, 2, 4, 6


class Steps(NamedTuple):
    """How the levels are cut into steps.

    Attributes:
        ends: First level after each step, int64 [T].
        sliced: Steps whose segments can be sliced after each step, int64 [T].
        cleared: Vertices whose rows must be cleared before the end of each step, int64 [T].
        ring: Rows of the ring.
    """

    ends: npt.NDArray[np.int64]
    sliced: npt.NDArray[np.int64]
    cleared: npt.NDArray[np.int64]
    ring: int


def cut_steps(levels: npt.NDArray[np.int64], d: int, batch: int) -> Steps:
    """Cut the levels into steps of about `batch` vertices.

    Args:
        levels: First vertex of each level and M, int64 [levels + 1].
        d: Feature dimensions.
        batch: Vertices to a step, at least.
    """
    last = len(levels) - 1
    ends, begun = [], 0
    for level in range(1, last):
        if levels[level] - begun >= batch:
            ends.append(level)
            begun = int(levels[level])
    ends.append(last)
    sliced, cleared, ring, done = [], [], 0, 0
    for end in ends:
        oldest = levels[ends[done - 1]] if done else 0
        cleared.append(int(levels[min(last, end + d)]))
        ring = max(ring, cleared[-1] - int(oldest))
        # Splatting has reached `end`; blurring is 2 d levels behind and a simplex d levels long.
        while end < last and ends[done] - 1 + d < end - 2 * d:
            done += 1
        sliced.append(done if end < last else len(ends))
    return Steps(np.array(ends), np.array(sliced), np.array(cleared), ring)


@kernel
def first_steps(simplices: Any, levels: Any, ends: Any) -> Any:
    """The step in which each simplex is splatted, int32 [S]: that of its highest vertex."""
    step_of_vertex = _by_vertex(levels, ends)
    step_of = np.empty(simplices.shape[0], np.int32)
    for s in range(step_of.size):
        highest = simplices[s, 0]
        for i in range(1, simplices.shape[1]):
            highest = min(highest, simplices[s, i])
        step_of[s] = step_of_vertex[highest]
    return step_of


@kernel
def _by_vertex(levels: Any, ends: Any) -> Any:
    """The first step whose end lies behind each vertex, int32 [M]."""
    step_of = np.empty(levels[-1], np.int32)
    step = 0
    for level in range(levels.size - 1):
        while level >= ends[step]:
            step += 1
        step_of[levels[level] : levels[level + 1]] = step
    return step_of


@kernel
def ring_slots(count: int, ring: int) -> Any:
    """The row of each vertex in the ring, int32 [M]."""
    slot_of = np.empty(count, np.int32)
    slot = 0
    for v in range(count):
        slot_of[v] = slot
        slot = slot + 1 if slot + 1 < ring else 0
    return slot_of


@kernel
def corner_slots(simplices: Any, owner: Any, slot_of: Any) -> Any:
    """The ring slots of each segment's vertices, flat int32; `owner` is its simplex."""
    corners = simplices.shape[1]
    slots = np.empty(owner.size * corners, np.int32)
    for segment in range(owner.size):
        simplex = simplices[owner[segment]]
        for i in range(corners):
            slots[segment * corners + i] = slot_of[simplex[i]]
    return slots


@kernel
def _axis_lines(following: Any, axis: int, levels: Any, reached: Any) -> Any:
    """The next vertex of every vertex in the sweep's direction, and the step that blurs it."""
    reached[-1] = levels.size - 1
    # Levels go up along an axis, but down along the last one.
    last = following.shape[0] - 1
    line = following[axis] if axis < last else _reverse(following[axis])
    return line, _by_vertex(levels, reached)


@kernel
def _chain_starts(line: Any, starts: Any) -> None:
    """Mark the vertices that have a next one along an axis but no previous one."""
    starts[:] = line >= 0
    for v in range(line.size):
        if line[v] >= 0:
            starts[line[v]] = False


@kernel
def _reverse(line: Any) -> Any:
    """The previous vertex of every vertex, -1 where there is none."""
    previous = np.full(line.size, -1, np.int32)
    for v in range(line.size):
        if line[v] >= 0:
            previous[line[v]] = v
    return previous


@kernel
def chain_pieces(following: Any, levels: Any, ends: Any, ring: int) -> Any:
    """Cut each axis into chains of neighbours, and these into the pieces that a step blurs.

    Vertices without a neighbour along an axis are in no chain: blurring leaves them as they are.
    A piece is a list of ring slots: what came before it (a carry, or zeros), its vertices, the
    vertex after it (or zeros), and where its last vertex's old row goes for the chain's next piece.

    Args:
        following: int32 [d + 1, M], see `link_vertices`.
        levels, ends: See `Steps`.
        ring: Rows of the ring.

    Returns:
        starts int64 [pieces + 1]; slots int32; the first piece of each step and the number of
        pieces, int64 [T + 1]; the number of carries.
    """
    axes, count = following.shape
    steps = ends.size
    kinds = _LENGTHS + 1
    # How far behind the splatting each axis is blurred.
    behind = np.arange(1, axes + 1)
    behind[axes - 1] = 2 * (axes - 1)
    pieces_of = np.zeros(steps * axes * kinds + 1, np.int64)
    entries_of = np.zeros(steps * axes * kinds + 1, np.int64)
    begins = np.empty(count, np.bool_)
    slot_of = ring_slots(count, ring)
    # Every piece: its length, its kind and whether the chain goes on; and all slots in that order.
    lengths = np.empty(axes * count, np.int32)
    kind_of = np.empty(axes * count, np.int32)
    goes_on = np.empty(axes * count, np.bool_)
    visited = np.empty(axes * count + 1, np.int32)
    found: Any = np.int64(0)
    filled: Any = np.int64(0)
    for axis in range(axes):
        line, step_of = _axis_lines(following, axis, levels, ends - behind[axis])
        _chain_starts(line, begins)
        for v in range(count):
            at = np.int64(v) if begins[v] else np.int64(-1)
            while at >= 0:
                step, first = step_of[at], filled
                while at >= 0 and step_of[at] == step:
                    visited[filled] = slot_of[at]
                    filled += 1
                    at = np.int64(line[at])
                length = filled - first
                kind = (np.int64(step) * axes + axis) * kinds + min(length, _LENGTHS)
                lengths[found], kind_of[found], goes_on[found] = length, kind, at >= 0
                found += 1
                pieces_of[kind + 1] += 1
                entries_of[kind + 1] += length + 3
    pieces_of = np.cumsum(pieces_of)
    entries_of = np.cumsum(entries_of)
    starts = np.empty(found + 1, np.int64)
    slots = np.empty(entries_of[-1], np.int32)
    follower = np.full(found, -1, np.int32)
    starts[found] = entries_of[-1]
    filled, previous = 0, -1
    for index in range(found):
        kind, length = kind_of[index], np.int64(lengths[index])
        piece, entry = pieces_of[kind], entries_of[kind]
        pieces_of[kind] += 1
        entries_of[kind] += length + 3
        starts[piece] = entry
        slots[entry] = -1
        for i in range(length):
            slots[entry + 1 + i] = visited[filled + i]
        filled += length
        slots[entry + 1 + length] = visited[filled] if goes_on[index] else ring + ZERO
        if previous >= 0:
            follower[previous] = piece
        previous = piece if goes_on[index] else -1
    # After filling, an entry holds where the next kind begins.
    step_starts = np.zeros(steps + 1, np.int64)
    for step in range(steps):
        step_starts[step + 1] = pieces_of[(step + 1) * axes * kinds - 1]
    return starts, slots, step_starts, _assign_carries(starts, slots, follower, ring)


@kernel
def _assign_carries(starts: Any, slots: Any, follower: Any, ring: int) -> Any:
    """Fill in the carries of all pieces; returns how many are in use at a time."""
    free = np.empty(follower.size, np.int32)
    unused, carries = 0, 0
    for piece in range(follower.size):
        first, last = starts[piece], starts[piece + 1] - 1
        carry = slots[first]
        if follower[piece] >= 0:
            if carry < 0 and unused > 0:
                unused -= 1
                carry = free[unused]
            elif carry < 0:
                carry = ring + CARRY + carries
                carries += 1
            slots[starts[follower[piece]]] = carry
            slots[last] = carry
        else:
            slots[last] = ring + TRASH
            if carry >= 0:
                free[unused] = carry
                unused += 1
        if slots[first] < 0:
            slots[first] = ring + ZERO
    return carries


def schedule(
    steps: Steps, segments: npt.NDArray[np.int64], pieces: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """What each step does, int64 [T, 8]: first and last vertex to clear, segment to splat, piece
    to blur and segment to slice.

    Args:
        steps: The steps.
        segments, pieces: The first of each step and their number, int64 [T + 1].
    """
    table = np.empty((len(steps.ends), 8), np.int64)
    sliced = segments[np.concatenate([[0], steps.sliced])]
    for column, bounds in (
        (CLEAR, np.concatenate([[0], steps.cleared])),
        (SPLAT, segments),
        (BLUR, pieces),
        (SLICE, sliced),
    ):
        table[:, column] = bounds[:-1]
        table[:, column + 1] = bounds[1:]
    return table
