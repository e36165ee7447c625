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

FLOAT = ir.FloatType()
INT = ir.IntType(32)


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
        super().__init__(manager, kind, ir.VectorType(FLOAT, kind.lanes))


@register_model(Corners)
class _CornersModel(models.PrimitiveModel):  # type: ignore[misc, unused-ignore]
    def __init__(self, manager: Any, kind: Corners) -> None:
        row = ir.VectorType(FLOAT, kind.lanes)
        super().__init__(manager, kind, ir.ArrayType(row, kind.count))


def data_of(context, builder, kind, array):
    return context.make_array(kind)(context, builder, array).data


def address(builder, data, index, lanes):
    pointer = builder.gep(data, [index])
    return builder.bitcast(pointer, ir.VectorType(FLOAT, lanes).as_pointer())


def load(builder, data, index, lanes):
    return builder.load(address(builder, data, index, lanes), align=4)


def store(builder, value, data, index, lanes):
    builder.store(value, address(builder, data, index, lanes), align=4)


def broadcast(builder, scalar, lanes):
    kind = ir.VectorType(FLOAT, lanes)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, INT(0))
    mask = ir.Constant(ir.VectorType(INT, lanes), [0] * lanes)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), mask)


def constant(value, lanes):
    return ir.Constant(ir.VectorType(FLOAT, lanes), [value] * lanes)


def multiply_add(builder, a, b, c):
    """`a * b + c`, rounded once where the CPU can (every x86-64 server since 2013)."""
    kind = a.type
    name = f"llvm.fmuladd.v{kind.count}f32"
    function = builder.module.globals.get(name)
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(kind, [kind] * 3), name)
    return builder.call(function, [a, b, c])


@intrinsic
def row_zero(typing, lanes):
    """A row of zeros."""
    kind = Row(lanes.count)
    return kind(lanes), lambda context, builder, signature, args: constant(0.0, kind.lanes)


@intrinsic
def row_load(typing, lanes, array, index):
    """The row that starts at flat position `index` of a contiguous float32 array."""
    kind = Row(lanes.count)

    def generate(context, builder, signature, args):
        data = data_of(context, builder, signature.args[1], args[1])
        return load(builder, data, args[2], kind.lanes)

    return kind(lanes, array, types.intp), generate


@intrinsic
def row_store(typing, array, index, row):
    """Write a row to flat position `index`."""

    def generate(context, builder, signature, args):
        data = data_of(context, builder, signature.args[0], args[0])
        store(builder, args[2], data, args[1], signature.args[2].lanes)
        return context.get_dummy_value()

    return types.void(array, types.intp, row), generate


@intrinsic
def row_add(typing, a, b):
    """Lane-wise sum."""
    return a(a, a), lambda context, builder, signature, args: builder.fadd(*args)


@intrinsic
def row_multiply(typing, a, b):
    """Lane-wise product."""
    return a(a, a), lambda context, builder, signature, args: builder.fmul(*args)


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
        return builder.fmul(args[0], broadcast(builder, args[1], signature.args[0].lanes))

    return row(row, types.float32), generate


@intrinsic
def row_shift(typing, row, offset):
    """Row plus scalar."""

    def generate(context, builder, signature, args):
        return builder.fadd(args[0], broadcast(builder, args[1], signature.args[0].lanes))

    return row(row, types.float32), generate


@intrinsic
def row_divide(typing, a, b):
    """Lane-wise quotient."""
    return a(a, a), lambda context, builder, signature, args: builder.fdiv(*args)


@intrinsic
def prefetch(typing, array, index):
    """Ask for the cache line of an element that will be read soon."""

    def generate(context, builder, signature, args):
        byte = ir.IntType(8).as_pointer()
        name = "llvm.prefetch.p0"
        function = builder.module.globals.get(name)
        if function is None:
            kind = ir.FunctionType(ir.VoidType(), [byte, INT, INT, INT])
            function = ir.Function(builder.module, kind, name)
        data = data_of(context, builder, signature.args[0], args[0])
        pointer = builder.bitcast(builder.gep(data, [args[1]]), byte)
        builder.call(function, [pointer, INT(0), INT(3), INT(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), generate


def _fold(builder, row, combine):
    """Combine the lanes of a row (a power of two of them) pairwise, halves first."""
    lanes = row.type.count
    undefined = ir.Constant(row.type, ir.Undefined)
    half = lanes // 2
    while half:
        mask = ir.Constant(
            ir.VectorType(INT, lanes), [(lane + half) % lanes for lane in range(lanes)]
        )
        row = combine(row, builder.shuffle_vector(row, undefined, mask))
        half //= 2
    return builder.extract_element(row, INT(0))


@intrinsic
def row_total(typing, row):
    """Sum of the lanes, float32."""

    def generate(context, builder, signature, args):
        return _fold(builder, args[0], builder.fadd)

    return types.float32(row), generate


@intrinsic
def row_widen(typing, wide, row):
    """The row with zeros behind it: as wide as the tuple `wide`."""
    result = Row(wide.count)

    def generate(context, builder, signature, args):
        lanes = args[1].type.count
        zeros = ir.Constant(args[1].type, [0.0] * lanes)
        chosen = [min(lane, lanes) for lane in range(result.lanes)]
        mask = ir.Constant(ir.VectorType(INT, result.lanes), chosen)
        return builder.shuffle_vector(args[1], zeros, mask)

    return result(wide, row), generate


@intrinsic
def row_peak(typing, row):
    """Largest lane, float32."""

    def generate(context, builder, signature, args):
        def larger(a, b):
            return builder.select(builder.fcmp_ordered(">", a, b), a, b)

        return _fold(builder, args[0], larger)

    return types.float32(row), generate
