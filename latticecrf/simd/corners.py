"""SIMD rows of all vertices of a simplex at once: load, collect, mix, add back."""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

from __future__ import annotations

import functools

from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.extending import intrinsic

from latticecrf.simd.rows import (
    Corners,
    Row,
    Rows,
    broadcast,
    by_parts,
    data_of,
    multiply_add,
)


@intrinsic
def corners_zero(typing, corners, lanes):
    """Rows of zeros, one per vertex."""
    kind = Corners(corners.count, lanes.count)

    def generate(context, builder, signature, args):
        return ir.Constant(context.get_value_type(kind), None)

    return kind(corners, lanes), generate


def _vertex(builder, context, signature, args, which, simplex_at, corner):
    """The number of a vertex's row."""
    data = data_of(context, builder, signature.args[which], args[which])
    slot = builder.add(simplex_at, ir.Constant(simplex_at.type, corner))
    return builder.sext(builder.load(builder.gep(data, [slot])), simplex_at.type)


@intrinsic
def corners_load(typing, corners, lanes, values, simplices, at):
    """The rows of the vertices `simplices[at], ..., simplices[at + d]` (flat, int32)."""
    kind = Corners(corners.count, lanes.count)

    def generate(context, builder, signature, args):
        rows = Rows(context, builder, signature.args[2], args[2], kind.lanes)
        bundle = ir.Constant(context.get_value_type(kind), ir.Undefined)
        for corner in range(kind.count):
            vertex = _vertex(builder, context, signature, args, 3, args[4], corner)
            row = rows.load(vertex)
            bundle = builder.insert_value(bundle, row, corner)
        return bundle

    return kind(corners, lanes, values, simplices, types.intp), generate


@intrinsic
def corners_add_to(typing, bundle, values, simplices, at):
    """Add each row to the row of its vertex in `values`."""

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        rows = Rows(context, builder, signature.args[1], args[1], kind.lanes)
        for corner in range(kind.count):
            vertex = _vertex(builder, context, signature, args, 2, args[3], corner)
            row = rows.load(vertex)
            row = by_parts(builder, builder.fadd, row, builder.extract_value(args[0], corner))
            rows.store(row, vertex)
        return context.get_dummy_value()

    return types.void(bundle, values, simplices, types.intp), generate


def _weight(builder, data, at, corner, lanes):
    slot = builder.add(at, ir.Constant(at.type, corner))
    return broadcast(builder, builder.load(builder.gep(data, [slot])), lanes)


@intrinsic
def corners_collect(typing, bundle, weights, at, row):
    """Splat: add `weights[at + j] * row` to corner j."""

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        data = data_of(context, builder, signature.args[1], args[1])
        bundle = args[0]
        multiply = functools.partial(multiply_add, builder)
        for corner in range(kind.count):
            weight = _weight(builder, data, args[2], corner, kind.lanes)
            total = builder.extract_value(bundle, corner)
            total = by_parts(builder, multiply, weight, args[3], total)
            bundle = builder.insert_value(bundle, total, corner)
        return bundle

    return bundle(bundle, weights, types.intp, row), generate


@intrinsic
def corners_mix(typing, bundle, weights, at):
    """Slice: the sum of `weights[at + j]` times corner j, as a row."""
    result = Row(bundle.lanes)

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        data = data_of(context, builder, signature.args[1], args[1])
        weight = _weight(builder, data, args[2], 0, kind.lanes)
        total = by_parts(builder, builder.fmul, weight, builder.extract_value(args[0], 0))
        multiply = functools.partial(multiply_add, builder)
        for corner in range(1, kind.count):
            weight = _weight(builder, data, args[2], corner, kind.lanes)
            row = builder.extract_value(args[0], corner)
            total = by_parts(builder, multiply, weight, row, total)
        return total

    return result(bundle, weights, types.intp), generate
