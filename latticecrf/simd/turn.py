"""Square tiles of 16 pixels by 16 labels, turned in registers: planes to rows and back.

A tile is a bundle of 16 rows of 16 lanes, see `simd.Corners`.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

# M: labels; N: pixels.

from __future__ import annotations

import functools

from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.extending import intrinsic

from latticecrf.simd.functions import clip_score
from latticecrf.simd.rows import FLOAT, INT, Corners, Rows, by_parts, data_of


def _entry(builder, data, at, step):
    """Element `at + step` of an integer array."""
    return builder.load(builder.gep(data, [builder.add(at, ir.Constant(at.type, step))]))


def _plane_rows(side, context, builder, kinds, planes, labels, pixel):
    """Where each label's values of `side` pixels begin, as pointers to vectors."""
    made = context.make_array(kinds[0])(context, builder, planes)
    pixels = builder.extract_value(made.shape, 1)
    names = data_of(context, builder, kinds[1], labels)
    vector = ir.VectorType(FLOAT, side).as_pointer()
    for k in range(side):
        label = _entry(builder, names, ir.Constant(pixel.type, 0), k)
        at = builder.add(builder.mul(label, pixels), pixel)
        yield builder.bitcast(builder.gep(made.data, [at]), vector)


def _pixel_rows(side, context, builder, kinds, rows, places, pixel):
    """The rows of `side` pixels, and where each of them lies."""
    mine = Rows(context, builder, kinds[0], rows, side)
    where = data_of(context, builder, kinds[1], places)
    for i in range(side):
        yield mine, builder.sext(_entry(builder, where, pixel, i), pixel.type)


@intrinsic
def tile_from_planes(typing, wide, planes, labels, pixel):
    """Row k: `planes[labels[k], pixel : pixel + 16]`; float32 [M, N] and int64 [16]."""
    side = wide.count
    kind = Corners(side, side)

    def generate(context, builder, signature, args):
        bundle = ir.Constant(context.get_value_type(kind), ir.Undefined)
        pointers = _plane_rows(side, context, builder, signature.args[1:3], *args[1:])
        for k, pointer in enumerate(pointers):
            bundle = builder.insert_value(bundle, builder.load(pointer, align=4), [k, 0])
        return bundle

    return kind(wide, planes, labels, types.intp), generate


@intrinsic
def tile_to_planes(typing, bundle, planes, labels, pixel):
    """The inverse of `tile_from_planes`."""
    side = bundle.count

    def generate(context, builder, signature, args):
        pointers = _plane_rows(side, context, builder, signature.args[1:3], *args[1:])
        for k, pointer in enumerate(pointers):
            builder.store(builder.extract_value(args[0], [k, 0]), pointer, align=4)
        return context.get_dummy_value()

    return types.void(bundle, planes, labels, types.intp), generate


@intrinsic
def tile_from_rows(typing, wide, rows, places, pixel):
    """Row i: row `places[pixel + i]` of `rows`; flat float32 [N * 16] and int32 [N]."""
    side = wide.count
    kind = Corners(side, side)

    def generate(context, builder, signature, args):
        bundle = ir.Constant(context.get_value_type(kind), ir.Undefined)
        found = _pixel_rows(side, context, builder, signature.args[1:3], *args[1:])
        for i, (mine, place) in enumerate(found):
            bundle = builder.insert_value(bundle, mine.load(place), i)
        return bundle

    return kind(wide, rows, places, types.intp), generate


@intrinsic
def tile_to_rows(typing, bundle, rows, places, pixel):
    """The inverse of `tile_from_rows`."""
    side = bundle.count

    def generate(context, builder, signature, args):
        found = _pixel_rows(side, context, builder, signature.args[1:3], *args[1:])
        for i, (mine, place) in enumerate(found):
            mine.store(builder.extract_value(args[0], i), place)
        return context.get_dummy_value()

    return types.void(bundle, rows, places, types.intp), generate


@intrinsic
def tile_clip_scores(typing, bundle, floor):
    """Every row limited as by `row_clip_score`."""

    def generate(context, builder, signature, args):
        result = args[0]
        for k in range(signature.args[0].count):
            row = builder.extract_value(result, k)
            row = by_parts(builder, functools.partial(clip_score, builder, args[1]), row)
            result = builder.insert_value(result, row, k)
        return result

    return bundle(bundle, types.float32), generate


@intrinsic
def tile_multiply(typing, bundle, row):
    """Every row times the same row."""

    def generate(context, builder, signature, args):
        result = args[0]
        for k in range(signature.args[0].count):
            product = by_parts(builder, builder.fmul, builder.extract_value(args[0], k), args[1])
            result = builder.insert_value(result, product, k)
        return result

    return bundle(bundle, row), generate


@intrinsic
def tile_turn(typing, bundle):
    """The transposed tile: halves are swapped between rows 1, 2, 4 and 8 apart."""
    side = bundle.count

    def generate(context, builder, signature, args):
        rows = [builder.extract_value(args[0], [k, 0]) for k in range(side)]
        apart = 1
        while apart < side:
            upper = [lane if not lane & apart else side + lane - apart for lane in range(side)]
            lower = [lane + apart if not lane & apart else side + lane for lane in range(side)]
            masks = [ir.Constant(ir.VectorType(INT, side), mask) for mask in (upper, lower)]
            for k in range(side):
                if not k & apart:
                    pair = rows[k], rows[k + apart]
                    rows[k] = builder.shuffle_vector(*pair, masks[0])
                    rows[k + apart] = builder.shuffle_vector(*pair, masks[1])
            apart *= 2
        result = args[0]
        for k, row in enumerate(rows):
            result = builder.insert_value(result, row, [k, 0])
        return result

    return bundle(bundle), generate
