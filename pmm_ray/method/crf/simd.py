"""Explicit SIMD for Numba kernels: fixed-width rows of float32 kept in registers.

Two Numba types: a *row* is the L channels of one pixel or vertex, and *corners* are the rows of
the d + 1 vertices of one simplex. Both widths come from the types of the tuples `lanes` (length
L) and `corners` (length d + 1) that a kernel is called with, so each pair compiles its own code.

Every operation works lane by lane in a fixed order and none is reassociated: a channel's result
does not depend on how many channels share its row.
"""


# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

from __future__ import annotations

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.extending import intrinsic, models, register_model

_FLOAT = ir.FloatType()
_INT = ir.IntType(32)


class Row(types.Type):  # type: ignore[misc, unused-ignore]
    """L float32 lanes."""

    def __init__(self, lanes: int) -> None:
        self.lanes = lanes
        super().__init__(name=f"Row({lanes})")


class Corners(types.Type):  # type: ignore[misc, unused-ignore]
    """One row per vertex of a simplex."""

    def __init__(self, count: int, lanes: int) -> None:
        self.count = count
        self.lanes = lanes
        super().__init__(name=f"Corners({count}, {lanes})")


@register_model(Row)
class _RowModel(models.PrimitiveModel):  # type: ignore[misc, unused-ignore]
    def __init__(self, manager: Any, kind: Row) -> None:
        super().__init__(manager, kind, ir.VectorType(_FLOAT, kind.lanes))


@register_model(Corners)
class _CornersModel(models.PrimitiveModel):  # type: ignore[misc, unused-ignore]
    def __init__(self, manager: Any, kind: Corners) -> None:
        row = ir.VectorType(_FLOAT, kind.lanes)
        super().__init__(manager, kind, ir.ArrayType(row, kind.count))


def _data(context, builder, kind, array):
    return context.make_array(kind)(context, builder, array).data


def _address(builder, data, index, lanes):
    pointer = builder.gep(data, [index])
    return builder.bitcast(pointer, ir.VectorType(_FLOAT, lanes).as_pointer())


def _load(builder, data, index, lanes):
    return builder.load(_address(builder, data, index, lanes), align=4)


def _store(builder, value, data, index, lanes):
    builder.store(value, _address(builder, data, index, lanes), align=4)


def _broadcast(builder, scalar, lanes):
    kind = ir.VectorType(_FLOAT, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, _INT(0))
    mask = ir.Constant(ir.VectorType(_INT, lanes), [0] * lanes)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), mask)


def _constant(value, lanes):
    return ir.Constant(ir.VectorType(_FLOAT, lanes), [value] * lanes)


def _multiply_add(builder, a, b, c):
    """`a * b + c`, rounded once where the CPU can (every x86-64 server since 2013)."""
    kind = a.type
    name = f"llvm.fmuladd.v{kind.count}f32"
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, [a, b, c])


def _bound(builder, value, low, high):
    lanes = value.type.count
    low_row, high_row = _constant(low, lanes), _constant(high, lanes)
    value = builder.select(builder.fcmp_ordered("<", value, low_row), low_row, value)
    return builder.select(builder.fcmp_ordered(">", value, high_row), high_row, value)


def _exp(builder, x):
    """e ** x for x within -60..60, to about 1 unit in the last place.

    x = n ln 2 + r with |r| <= ln 2 / 2 by Cody-Waite reduction; e ** r by its Taylor polynomial
    of degree 6 (relative remainder under 2e-7 / 7!), 2 ** n by adding n to the exponent bits.
    """
    lanes = x.type.count
    magic = 12582912.0  # 1.5 * 2 ** 23: adding it leaves the rounded integer in the low bits
    shifted = _multiply_add(
        builder, x, _constant(1.4426950408889634, lanes), _constant(magic, lanes)
    )
    n = builder.fsub(shifted, _constant(magic, lanes))
    r = _multiply_add(builder, n, _constant(-0.693359375, lanes), x)
    r = _multiply_add(builder, n, _constant(2.1219444e-4, lanes), r)
    p = _constant(1 / 720, lanes)
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        p = _multiply_add(builder, p, r, _constant(coefficient, lanes))
    integers = ir.VectorType(_INT, lanes)
    exponent = builder.shl(builder.bitcast(shifted, integers), ir.Constant(integers, [23] * lanes))
    return builder.bitcast(builder.add(builder.bitcast(p, integers), exponent), x.type)


@intrinsic
def row_zero(typing, lanes):
    """A row of zeros."""
    kind = Row(lanes.count)
    return kind(lanes), lambda context, builder, signature, args: _constant(0.0, kind.lanes)


@intrinsic
def row_load(typing, lanes, array, index):
    """The row that starts at flat position `index` of a contiguous float32 array."""
    kind = Row(lanes.count)

    def generate(context, builder, signature, args):
        data = _data(context, builder, signature.args[1], args[1])
        return _load(builder, data, args[2], kind.lanes)

    return kind(lanes, array, types.intp), generate


@intrinsic
def row_store(typing, array, index, row):
    """Write a row to flat position `index`."""

    def generate(context, builder, signature, args):
        data = _data(context, builder, signature.args[0], args[0])
        _store(builder, args[2], data, args[1], signature.args[2].lanes)
        return context.get_dummy_value()

    return types.void(array, types.intp, row), generate


@intrinsic
def row_add(typing, a, b):
    """Lane-wise sum."""
    return a(a, a), lambda context, builder, signature, args: builder.fadd(*args)


@intrinsic
def row_max(typing, a, b):
    """Lane-wise maximum."""

    def generate(context, builder, signature, args):
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return a(a, a), generate


@intrinsic
def row_scale(typing, row, factor):
    """Row times scalar."""

    def generate(context, builder, signature, args):
        return builder.fmul(args[0], _broadcast(builder, args[1], signature.args[0].lanes))

    return row(row, types.float32), generate


@intrinsic
def row_shift(typing, row, offset):
    """Row plus scalar."""

    def generate(context, builder, signature, args):
        return builder.fadd(args[0], _broadcast(builder, args[1], signature.args[0].lanes))

    return row(row, types.float32), generate


@intrinsic
def row_sigmoid(typing, row):
    """Logistic function, its argument limited to -60..60 (no result is subnormal)."""

    def generate(context, builder, signature, args):
        one = _constant(1.0, signature.args[0].lanes)
        e = _exp(builder, _bound(builder, builder.fneg(args[0]), -60.0, 60.0))
        return builder.fdiv(one, builder.fadd(one, e))

    return row(row), generate


@intrinsic
def row_exp(typing, row):
    """Exponential, its argument limited to -60..60."""

    def generate(context, builder, signature, args):
        return _exp(builder, _bound(builder, args[0], -60.0, 60.0))

    return row(row), generate


@intrinsic
def row_divide(typing, a, b):
    """Lane-wise quotient."""
    return a(a, a), lambda context, builder, signature, args: builder.fdiv(*args)


@intrinsic
def row_clip_score(typing, row):
    """Lanes limited to 1e-5..1, the range of scores whose logarithm is a unary."""
    return row(row), lambda context, builder, signature, args: _bound(builder, args[0], 1e-5, 1.0)


@intrinsic
def row_log(typing, row):
    """Natural logarithm of positive, normal numbers, to about 1 unit in the last place.

    x = 2 ** n (1 + f) with 1 + f within sqrt(1/2)..sqrt(2); log(1 + f) = 2 artanh(s) with
    s = f / (2 + f), by the odd series up to s ** 9 (s < 0.172: the rest is under 1e-9).
    """

    def generate(context, builder, signature, args):
        lanes = signature.args[0].lanes
        integers = ir.VectorType(_INT, lanes)

        def same(value):
            return ir.Constant(integers, [value] * lanes)

        bits = builder.bitcast(args[0], integers)
        # Adding the distance from sqrt(1/2) to 1 makes the exponent round to nearest.
        moved = builder.add(bits, same(0x3F800000 - 0x3F3504F3))
        n = builder.sub(builder.lshr(moved, same(23)), same(127))
        fraction = builder.add(builder.and_(moved, same(0x007FFFFF)), same(0x3F3504F3))
        f = builder.fsub(builder.bitcast(fraction, args[0].type), _constant(1.0, lanes))
        s = builder.fdiv(f, builder.fadd(f, _constant(2.0, lanes)))
        z = builder.fmul(s, s)
        p = _constant(2 / 9, lanes)
        for coefficient in (2 / 7, 2 / 5, 2 / 3):
            p = _multiply_add(builder, p, z, _constant(coefficient, lanes))
        tail = builder.fmul(builder.fmul(p, z), s)
        whole = builder.sitofp(n, args[0].type)
        # ln 2 in two parts, the first exact when multiplied by an exponent.
        low = _multiply_add(builder, whole, _constant(-2.1219444e-4, lanes), tail)
        low = _multiply_add(builder, s, _constant(2.0, lanes), low)
        return _multiply_add(builder, whole, _constant(0.693359375, lanes), low)

    return row(row), generate


@intrinsic
def prefetch(typing, array, index):
    """Ask for the cache line of an element that will be read soon."""

    def generate(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(ir.VoidType(), [byte, _INT, _INT, _INT])
            function = ir.Function(builder.module, kind, name)
        data = _data(context, builder, signature.args[0], args[0])
        pointer = builder.bitcast(builder.gep(data, [args[1]]), byte)
        builder.call(function, [pointer, _INT(0), _INT(3), _INT(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def _fold(builder, row, combine):
    """Combine the lanes of a row (a power of two of them) pairwise, halves first."""
    lanes = row.type.count
    undefined = ir.Constant(row.type, ir.Undefined)
    half = lanes // 2
    while half:
        mask = ir.Constant(
            ir.VectorType(_INT, lanes), [(lane + half) % lanes for lane in range(lanes)]
        )
        row = combine(row, builder.shuffle_vector(row, undefined, mask))
        half //= 2
    return builder.extract_element(row, _INT(0))


@intrinsic
def row_total(typing, row):
    """Sum of the lanes, float32."""

    def generate(context, builder, signature, args):
        return _fold(builder, args[0], builder.fadd)

    return types.float32(row), generate


@intrinsic
def row_peak(typing, row):
    """Largest lane, float32."""

    def generate(context, builder, signature, args):
        def larger(a, b):
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        return _fold(builder, args[0], larger)

    return types.float32(row), generate


@intrinsic
def corners_zero(typing, corners, lanes):
    """Rows of zeros, one per vertex."""
    kind = Corners(corners.count, lanes.count)

    def generate(context, builder, signature, args):
        return ir.Constant(context.get_value_type(kind), None)

    return kind(corners, lanes), generate


def _vertex(builder, context, signature, args, which, simplex_at, corner, lanes):
    """Flat position of a vertex's row: its number times the row width."""
    data = _data(context, builder, signature.args[which], args[which])
    slot = builder.add(simplex_at, ir.Constant(simplex_at.type, corner))
    vertex = builder.sext(builder.load(builder.gep(data, [slot])), simplex_at.type)
    return builder.mul(vertex, ir.Constant(vertex.type, lanes))


@intrinsic
def corners_load(typing, corners, lanes, values, simplices, at):
    """The rows of the vertices `simplices[at], ..., simplices[at + d]` (flat, int32)."""
    kind = Corners(corners.count, lanes.count)

    def generate(context, builder, signature, args):
        data = _data(context, builder, signature.args[2], args[2])
        bundle = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for corner in range(kind.count):
            position = _vertex(builder, context, signature, args, 3, args[4], corner, kind.lanes)
            row = _load(builder, data, position, kind.lanes)
            bundle = builder.insert_value(bundle, row, corner)
        return bundle

    return kind(corners, lanes, values, simplices, types.intp), generate


@intrinsic
def corners_add_to(typing, bundle, values, simplices, at):
    """Add each row to the row of its vertex in `values`."""

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        data = _data(context, builder, signature.args[1], args[1])
        for corner in range(kind.count):
            position = _vertex(builder, context, signature, args, 2, args[3], corner, kind.lanes)
            row = _load(builder, data, position, kind.lanes)
            row = builder.fadd(row, builder.extract_value(args[0], corner))
            _store(builder, row, data, position, kind.lanes)
        return context.get_dummy_value()

    return types.void(bundle, values, simplices, types.intp), generate


def _weight(builder, data, at, corner, lanes):
    slot = builder.add(at, ir.Constant(at.type, corner))
    return _broadcast(builder, builder.load(builder.gep(data, [slot])), lanes)


@intrinsic
def corners_collect(typing, bundle, weights, at, row):
    """Splat: add `weights[at + j] * row` to corner j."""

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        data = _data(context, builder, signature.args[1], args[1])
        bundle = args[0]
        for corner in range(kind.count):
            weight = _weight(builder, data, args[2], corner, kind.lanes)
            total = builder.extract_value(bundle, corner)
            total = _multiply_add(builder, weight, args[3], total)
            bundle = builder.insert_value(bundle, total, corner)
        return bundle

    return bundle(bundle, weights, types.intp, row), generate


@intrinsic
def corners_mix(typing, bundle, weights, at):
    """Slice: the sum of `weights[at + j]` times corner j, as a row."""
    result = Row(bundle.lanes)

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        data = _data(context, builder, signature.args[1], args[1])
        weight = _weight(builder, data, args[2], 0, kind.lanes)
        total = builder.fmul(weight, builder.extract_value(args[0], 0))
        for corner in range(1, kind.count):
            weight = _weight(builder, data, args[2], corner, kind.lanes)
            row = builder.extract_value(args[0], corner)
            total = _multiply_add(builder, weight, row, total)
        return total

    return result(bundle, weights, types.intp), generate
