"""Elementary functions on SIMD rows: the same bits in every lane of every row width."""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

from __future__ import annotations

import functools

from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.extending import intrinsic

from latticecrf.simd.rows import INT, broadcast, by_parts, constant, larger, multiply_add


def _bound(builder, value, low, high):
    lanes = value.type.count
    return bound(builder, value, constant(low, lanes), constant(high, lanes))


def bound(builder, value, low_row, high_row):
    """A vector limited, lane by lane."""
    value = builder.select(builder.fcmp_ordered("<", value, low_row), low_row, value)
    return builder.select(builder.fcmp_ordered(">", value, high_row), high_row, value)


def clip_score(builder, floor, x):
    """See `row_clip_score`; `floor` is a scalar."""
    lanes = x.type.count
    low = builder.extract_value(broadcast(builder, floor, lanes), 0)
    return bound(builder, x, low, constant(1.0, lanes))


def _exp(builder, x):
    """e ** x for x within -60..60, to about 1 unit in the last place.

    x = n ln 2 + r with |r| <= ln 2 / 2 by Cody-Waite reduction; e ** r by its Taylor polynomial
    of degree 6 (relative remainder under 2e-7 / 7!), 2 ** n by adding n to the exponent bits.
    """
    lanes = x.type.count
    magic = 12582912.0  # 1.5 * 2 ** 23: adding it leaves the rounded integer in the low bits
    shifted = multiply_add(builder, x, constant(1.4426950408889634, lanes), constant(magic, lanes))
    n = builder.fsub(shifted, constant(magic, lanes))
    r = multiply_add(builder, n, constant(-0.693359375, lanes), x)
    r = multiply_add(builder, n, constant(2.1219444e-4, lanes), r)
    p = constant(1 / 720, lanes)
    for coefficient in (1 / 120, 1 / 24, 1 / 6, 0.5, 1.0, 1.0):
        p = multiply_add(builder, p, r, constant(coefficient, lanes))
    integers = ir.VectorType(INT, lanes)
    exponent = builder.shl(builder.bitcast(shifted, integers), ir.Constant(integers, [23] * lanes))
    return builder.bitcast(builder.add(builder.bitcast(p, integers), exponent), x.type)


def exp_above(builder, x):
    """e ** x for x up to 60; below -60 it counts as -60."""
    return _exp(builder, larger(builder, x, constant(-60.0, x.type.count)))


def _log(builder, x):
    """See `row_log`."""
    lanes = x.type.count
    integers = ir.VectorType(INT, lanes)

    def same(value):
        return ir.Constant(integers, [value] * lanes)

    bits = builder.bitcast(x, integers)
    # Adding the distance from sqrt(1/2) to 1 makes the exponent round to nearest.
    moved = builder.add(bits, same(0x3F800000 - 0x3F3504F3))
    n = builder.sub(builder.lshr(moved, same(23)), same(127))
    fraction = builder.add(builder.and_(moved, same(0x007FFFFF)), same(0x3F3504F3))
    f = builder.fsub(builder.bitcast(fraction, x.type), constant(1.0, lanes))
    s = builder.fdiv(f, builder.fadd(f, constant(2.0, lanes)))
    z = builder.fmul(s, s)
    p = constant(2 / 9, lanes)
    for coefficient in (2 / 7, 2 / 5, 2 / 3):
        p = multiply_add(builder, p, z, constant(coefficient, lanes))
    tail = builder.fmul(builder.fmul(p, z), s)
    whole = builder.sitofp(n, x.type)
    # ln 2 in two parts, the first exact when multiplied by an exponent.
    low = multiply_add(builder, whole, constant(-2.1219444e-4, lanes), tail)
    low = multiply_add(builder, s, constant(2.0, lanes), low)
    return multiply_add(builder, whole, constant(0.693359375, lanes), low)


@intrinsic
def row_sigmoid(typing, row):
    """Logistic function, its argument limited to -60..60 (no result is subnormal)."""

    def generate(context, builder, signature, args):
        def sigmoid(x):
            one = constant(1.0, x.type.count)
            e = _exp(builder, _bound(builder, builder.fneg(x), -60.0, 60.0))
            return builder.fdiv(one, builder.fadd(one, e))

        return by_parts(builder, sigmoid, args[0])

    return row(row), generate


@intrinsic
def row_exp(typing, row):
    """Exponential, its argument limited to -60..60."""

    def generate(context, builder, signature, args):
        def exponential(x):
            return _exp(builder, _bound(builder, x, -60.0, 60.0))

        return by_parts(builder, exponential, args[0])

    return row(row), generate


@intrinsic
def row_log(typing, row):
    """Natural logarithm of positive, normal numbers, to about 1 unit in the last place.

    x = 2 ** n (1 + f) with 1 + f within sqrt(1/2)..sqrt(2); log(1 + f) = 2 artanh(s) with
    s = f / (2 + f), by the odd series up to s ** 9 (s < 0.172: the rest is under 1e-9).
    """

    def generate(context, builder, signature, args):
        return by_parts(builder, functools.partial(_log, builder), args[0])

    return row(row), generate


@intrinsic
def row_clip_score(typing, row, floor):
    """Lanes limited to floor..1, the range of scores whose logarithm is a unary."""

    def generate(context, builder, signature, args):
        return by_parts(builder, functools.partial(clip_score, builder, args[1]), args[0])

    return row(row, types.float32), generate
