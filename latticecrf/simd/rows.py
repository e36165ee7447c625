"""Explicit SIMD for Numba kernels: fixed-width rows of float32 kept in registers.

Two Numba types: a *row* is the L channels of one pixel or vertex, and *corners* are the rows of
the d + 1 vertices of one simplex. Both widths come from the types of the tuples `lanes` (length
L) and `corners` (length d + 1) that a kernel is called with, so each pair compiles its own code.

Every operation works lane by lane in a fixed order and none is reassociated: a channel's result
does not depend on how many channels share its row.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

from __future__ import annotations

import functools
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.extending import intrinsic, models, register_model

FLOAT = ir.FloatType()
INT = ir.IntType(32)
# The widest SIMD value: one AVX-512 register or two of AVX2.
WIDEST = 16
WIDE = (0,) * WIDEST


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


def parts_of(lanes: int) -> list[int]:
    """Widths of the SIMD values that make up a row: one, or 16 lanes and a shorter tail."""
    return [lanes] if lanes <= WIDEST else [WIDEST, lanes - WIDEST]


def row_type(lanes: int) -> ir.Type:
    """The LLVM type of a row: a structure of its parts."""
    return ir.LiteralStructType([ir.VectorType(FLOAT, part) for part in parts_of(lanes)])


@register_model(Row)
class _RowModel(models.PrimitiveModel):  # type: ignore[misc, unused-ignore]
    def __init__(self, manager: Any, kind: Row) -> None:
        super().__init__(manager, kind, row_type(kind.lanes))


@register_model(Corners)
class _CornersModel(models.PrimitiveModel):  # type: ignore[misc, unused-ignore]
    def __init__(self, manager: Any, kind: Corners) -> None:
        super().__init__(manager, kind, ir.ArrayType(row_type(kind.lanes), kind.count))


def by_parts(builder, combine, *rows):
    """Apply a function of vectors to the parts of rows, one after the other."""
    result = ir.Constant(rows[0].type, ir.Undefined)
    for part in range(len(rows[0].type.elements)):
        value = combine(*(builder.extract_value(row, part) for row in rows))
        result = builder.insert_value(result, value, part)
    return result


def data_of(context, builder, kind, array):
    return context.make_array(kind)(context, builder, array).data


class Rows:
    """An array of rows of one width, as a kernel sees it.

    Rows of more than 16 lanes lie in two parts: the 16-lane starts of all rows, then their tails.
    So neither crosses a cache line.
    """

    def __init__(self, context, builder, kind, array, lanes):
        self._builder = builder
        self._lanes = lanes
        made = context.make_array(kind)(context, builder, array)
        self.starts = [made.data]
        if lanes > WIDEST:
            count = builder.udiv(made.nitems, ir.Constant(made.nitems.type, lanes))
            first = builder.mul(count, ir.Constant(count.type, WIDEST))
            self.starts.append(builder.gep(made.data, [first]))

    def load(self, index):
        """Row number `index`."""
        row = ir.Constant(row_type(self._lanes), ir.Undefined)
        for part, pointer in enumerate(self.pointers(index)):
            row = self._builder.insert_value(row, self._builder.load(pointer, align=4), part)
        return row

    def store(self, row, index):
        """Write row number `index`."""
        for part, pointer in enumerate(self.pointers(index)):
            self._builder.store(self._builder.extract_value(row, part), pointer, align=4)

    def pointers(self, index):
        for start, width in zip(self.starts, parts_of(self._lanes), strict=True):
            at = self._builder.mul(index, ir.Constant(index.type, width))
            pointer = self._builder.gep(start, [at])
            yield self._builder.bitcast(pointer, ir.VectorType(FLOAT, width).as_pointer())


def broadcast(builder, scalar, lanes):
    """The row that holds a scalar in every lane."""
    row = ir.Constant(row_type(lanes), ir.Undefined)
    for part, width in enumerate(parts_of(lanes)):
        kind = ir.VectorType(FLOAT, width)
        first = builder.insert_element(ir.Constant(kind, ir.Undefined), scalar, INT(0))
        mask = ir.Constant(ir.VectorType(INT, width), [0] * width)
        value = builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), mask)
        row = builder.insert_value(row, value, part)
    return row


def constant(value, lanes):
    """A vector with the same value in every lane."""
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

    def generate(context, builder, signature, args):
        return ir.Constant(row_type(kind.lanes), None)

    return kind(lanes), generate


@intrinsic
def row_one(typing, lanes):
    """A row of ones."""
    kind = Row(lanes.count)

    def generate(context, builder, signature, args):
        return broadcast(builder, FLOAT(1.0), kind.lanes)

    return kind(lanes), generate


@intrinsic
def row_load(typing, lanes, array, index):
    """Row number `index` of a contiguous float32 array, see `Rows`."""
    kind = Row(lanes.count)

    def generate(context, builder, signature, args):
        rows = Rows(context, builder, signature.args[1], args[1], kind.lanes)
        return rows.load(args[2])

    return kind(lanes, array, types.intp), generate


@intrinsic
def row_store(typing, array, index, row):
    """Write row number `index` of an array."""

    def generate(context, builder, signature, args):
        rows = Rows(context, builder, signature.args[0], args[0], signature.args[2].lanes)
        rows.store(args[2], args[1])
        return context.get_dummy_value()

    return types.void(array, types.intp, row), generate


@intrinsic
def row_add(typing, a, b):
    """Lane-wise sum."""
    return a(a, a), lambda context, builder, _, args: by_parts(builder, builder.fadd, *args)


@intrinsic
def row_multiply(typing, a, b):
    """Lane-wise product."""
    return a(a, a), lambda context, builder, _, args: by_parts(builder, builder.fmul, *args)


@intrinsic
def row_max(typing, a, b):
    """Lane-wise maximum."""

    def generate(context, builder, signature, args):
        return by_parts(builder, functools.partial(larger, builder), *args)

    return a(a, a), generate


def _by_scalar(operation: str) -> Any:
    """Code of an operation between a row and a scalar."""

    def generate(context, builder, signature, args):
        scalar = broadcast(builder, args[1], signature.args[0].lanes)
        return by_parts(builder, getattr(builder, operation), args[0], scalar)

    return generate


@intrinsic
def row_scale(typing, row, factor):
    """Row times scalar."""
    return row(row, types.float32), _by_scalar("fmul")


@intrinsic
def row_shift(typing, row, offset):
    """Row plus scalar."""
    return row(row, types.float32), _by_scalar("fadd")


@intrinsic
def row_lower(typing, a, b):
    """Lane-wise difference."""
    return a(a, a), lambda context, builder, _, args: by_parts(builder, builder.fsub, *args)


@intrinsic
def row_divide(typing, a, b):
    """Lane-wise quotient."""
    return a(a, a), lambda context, builder, _, args: by_parts(builder, builder.fdiv, *args)


def _prefetch(context, builder, pointer):
    """Ask for the cache line of an address, into the second-level cache."""
    byte = ir.IntType(8).as_pointer()
    name = "llvm.prefetch.p0"
    function = builder.module.globals.get(name)
    if function is None:
        kind = ir.FunctionType(ir.VoidType(), [byte, INT, INT, INT])
        function = ir.Function(builder.module, kind, name)
    builder.call(function, [builder.bitcast(pointer, byte), INT(0), INT(2), INT(1)])
    return context.get_dummy_value()


@intrinsic
def prefetch(typing, array, index):
    """Ask for the cache line of an element that will be read soon."""

    def generate(context, builder, signature, args):
        data = data_of(context, builder, signature.args[0], args[0])
        return _prefetch(context, builder, builder.gep(data, [args[1]]))

    return types.void(array, types.intp), generate


@intrinsic
def row_prefetch(typing, lanes, array, index):
    """Ask for a row that will be read soon."""
    count = lanes.count

    def generate(context, builder, signature, args):
        rows = Rows(context, builder, signature.args[1], args[1], count)
        for pointer in rows.pointers(args[2]):
            _prefetch(context, builder, pointer)
        return context.get_dummy_value()

    return types.void(lanes, array, types.intp), generate


def larger(builder, a, b):
    """The larger of two vectors, lane by lane."""
    return builder.select(builder.fcmp_ordered(">", a, b), a, b)


def _fold(builder, row, combine):
    """Combine the lanes of a row (each part a power of two of them) pairwise, halves first."""
    folded = None
    for part in range(len(row.type.elements)):
        value = builder.extract_value(row, part)
        lanes = value.type.count
        undefined = ir.Constant(value.type, ir.Undefined)
        half = lanes // 2
        while half:
            turned = [(lane + half) % lanes for lane in range(lanes)]
            mask = ir.Constant(ir.VectorType(INT, lanes), turned)
            value = combine(value, builder.shuffle_vector(value, undefined, mask))
            half //= 2
        single = builder.extract_element(value, INT(0))
        folded = single if folded is None else combine(folded, single)
    return folded


@intrinsic
def row_total(typing, row):
    """Sum of the lanes, float32."""

    def generate(context, builder, signature, args):
        return _fold(builder, args[0], builder.fadd)

    return types.float32(row), generate


def _widened(builder, value, lanes):
    """The vector with zeros behind it."""
    zeros = ir.Constant(value.type, [0.0] * value.type.count)
    chosen = [min(lane, value.type.count) for lane in range(lanes)]
    return builder.shuffle_vector(value, zeros, ir.Constant(ir.VectorType(INT, lanes), chosen))


@intrinsic
def row_widen(typing, wide, row):
    """The row with zeros behind it: as wide as the tuple `wide`, 16 lanes. Parts are added up."""
    result = Row(wide.count)

    def generate(context, builder, signature, args):
        parts = range(len(args[1].type.elements))
        widened = [
            _widened(builder, builder.extract_value(args[1], part), result.lanes) for part in parts
        ]
        total = functools.reduce(builder.fadd, widened)
        return builder.insert_value(ir.Constant(row_type(result.lanes), ir.Undefined), total, 0)

    return result(wide, row), generate


@intrinsic
def row_peak(typing, row):
    """Largest lane, float32."""

    def generate(context, builder, signature, args):
        return _fold(builder, args[0], functools.partial(larger, builder))

    return types.float32(row), generate
