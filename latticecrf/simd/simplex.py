"""Sixteen pixels at a time: where each lies in the permutohedral lattice, in registers.

The arithmetic is Kraehenbuehl's, operation by operation, see `lattice.embedding`.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

# d: feature dimensions; N: pixels; W: pixels of a row of the image, in whole tiles.

from __future__ import annotations

from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.extending import intrinsic

from latticecrf.simd.rows import INT, broadcast, constant, data_of


def _whole(value, lanes):
    return ir.Constant(ir.VectorType(INT, lanes), [value] * lanes)


def _elevate(builder, features, scale):
    """The d + 1 coordinates, which add up to zero."""
    lanes = features[0].type.count
    partial = constant(0.0, lanes)
    elevated = []
    for j in range(len(features), 0, -1):
        component = builder.fmul(features[j - 1], scale[j - 1])
        steps = builder.fmul(constant(float(j), lanes), component)
        elevated.append(builder.fsub(partial, steps))
        partial = builder.fadd(partial, component)
    return [partial, *reversed(elevated)]


def _nearest(builder, value):
    """Rounded to a whole number, halves to even."""
    name = f"llvm.rint.v{value.type.count}f32"
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(value.type, [value.type])
        function = ir.Function(builder.module, kind, name)
    return builder.call(function, [value])


def _order(builder, rest):
    """How many coordinates stand before each one when they are sorted descending, stably."""
    whole = ir.VectorType(INT, rest[0].type.count)
    rank = [_whole(i, whole.count) for i in range(len(rest))]
    for i in range(len(rest)):
        for j in range(i + 1, len(rest)):
            # -1 where the later one is larger and goes first.
            passed = builder.sext(builder.fcmp_ordered("<", rest[i], rest[j]), whole)
            rank[i] = builder.sub(rank[i], passed)
            rank[j] = builder.add(rank[j], passed)
    return rank


def _round(builder, elevated):
    """The corner over d + 1, the rank of each coordinate and the rest over d + 1."""
    count, lanes = len(elevated), elevated[0].type.count
    whole = ir.VectorType(INT, lanes)
    up = constant(float(count), lanes)
    down = builder.fdiv(constant(1.0, lanes), up)
    corner, rest = [], []
    total = _whole(0, lanes)
    for value in elevated:
        nearest = _nearest(builder, builder.fmul(value, down))
        corner.append(builder.fptosi(nearest, whole))
        total = builder.add(total, corner[-1])
        rest.append(builder.fsub(value, builder.fmul(nearest, up)))
    rank = _order(builder, rest)
    # Rounding may have left the plane by a few steps: walk back along the coordinates that
    # were rounded the most.
    for i, value in enumerate(elevated):
        moved = builder.add(rank[i], total)
        below = builder.sext(builder.icmp_signed("<", moved, _whole(0, lanes)), whole)
        above = builder.sext(builder.icmp_signed(">=", moved, _whole(count, lanes)), whole)
        wrap = builder.sub(above, below)
        rank[i] = builder.add(moved, builder.mul(wrap, _whole(count, lanes)))
        corner[i] = builder.add(corner[i], wrap)
        base = builder.fmul(builder.sitofp(corner[i], value.type), up)
        rest[i] = builder.fmul(builder.fsub(value, base), down)
    return corner, rank, rest


def _weigh(builder, rank, rest):
    """Barycentric coordinates, that of the vertex of remainder r at r."""
    count, lanes = len(rank), rest[0].type.count
    ordered = []
    for r in range(count):
        chosen = rest[0]
        for i in range(1, count):
            here = builder.icmp_signed("==", rank[i], _whole(r, lanes))
            chosen = builder.select(here, rest[i], chosen)
        ordered.append(chosen)
    last = builder.fsub(constant(1.0, lanes), ordered[0])
    differences = [
        builder.fsub(ordered[count - 1 - r], ordered[count - r]) for r in range(1, count)
    ]
    return [builder.fadd(ordered[count - 1], last), *differences]


def _pointers(context, builder, kind, array, count, at, lanes):
    """Where the `lanes` elements from `at` on begin in the first lines of an array of two axes."""
    made = context.make_array(kind)(context, builder, array)
    length = builder.extract_value(made.shape, 1)
    tile = ir.VectorType(made.data.type.pointee, lanes).as_pointer()
    for line in range(count):
        first = builder.add(builder.mul(length, ir.Constant(length.type, line)), at)
        yield builder.bitcast(builder.gep(made.data, [first]), tile)


@intrinsic
def place_tile(typing, wide, axes, features, scale, at, corner, rank, weights, pixel):
    """Place the pixels of a tile.

    Args:
        wide, axes: Tuples of length 16 and d.
        features: float32 [d, W].
        scale: Diagonal of the elevation, float32 [d].
        at: The first pixel's place in lines of `features`, `corner` and `rank`.
        corner: Receives the vertex of remainder 0 over d + 1, int32 [d, W].
        rank: Receives the place of each coordinate when sorted descending, int8 [d + 1, W].
        weights: Receives the barycentric coordinates, float32 [d + 1, N and more].
        pixel: The first pixel's place in lines of `weights`.
    """
    lanes, d = wide.count, axes.count

    def generate(context, builder, signature, args):
        def pointers(which, count, place):
            kind = signature.args[which]
            return _pointers(context, builder, kind, args[which], count, place, lanes)

        def store(values, which, place):
            for value, pointer in zip(values, pointers(which, len(values), place), strict=True):
                builder.store(value, pointer, align=1)

        factors = data_of(context, builder, signature.args[3], args[3])
        scales = []
        for i in range(d):
            factor = broadcast(builder, builder.load(builder.gep(factors, [INT(i)])), lanes)
            scales.append(builder.extract_value(factor, 0))
        features = [builder.load(pointer, align=4) for pointer in pointers(2, d, args[4])]
        corners, ranks, rests = _round(builder, _elevate(builder, features, scales))
        small = ir.VectorType(ir.IntType(8), lanes)
        store(corners[:d], 5, args[4])
        store([builder.trunc(rank, small) for rank in ranks], 6, args[4])
        store(_weigh(builder, ranks, rests), 7, args[8])
        return context.get_dummy_value()

    kinds = (wide, axes, features, scale, types.intp, corner, rank, weights, types.intp)
    return types.void(*kinds), generate
