"""Tiles of 16 pixels: the rows of consecutive pixels, turned so that a register holds one label.

A tile is a bundle (see `simd.Corners`) of L rows of 16 lanes: row k holds lane k of each of the 16
pixels. What is done to all labels of a pixel is then done without crossing lanes.
"""

# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

from __future__ import annotations

from llvmlite import ir  # type: ignore[import-untyped, unused-ignore]
from numba import types
from numba.extending import intrinsic

from latticecrf.simd.functions import exp_above
from latticecrf.simd.rows import (
    FLOAT,
    INT,
    Corners,
    Row,
    data_of,
    larger,
    row_type,
)


def _mask(lanes):
    return ir.Constant(ir.VectorType(INT, len(lanes)), list(lanes))


def _unzip(builder, vectors):
    """Vectors of consecutive rows of `len(vectors)` lanes -> one vector for each lane."""
    if len(vectors) == 1:
        return vectors
    side = vectors[0].type.count
    halves = []
    for odd in (0, 1):
        mask = _mask(range(odd, 2 * side, 2))
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        halves.append(_unzip(builder, [builder.shuffle_vector(a, b, mask) for a, b in pairs]))
    return [vector for pair in zip(*halves, strict=True) for vector in pair]


def _zip(builder, vectors):
    """The inverse of `_unzip`."""
    if len(vectors) == 1:
        return vectors
    side = vectors[0].type.count
    halves = [_zip(builder, vectors[odd::2]) for odd in (0, 1)]
    zipped = []
    for a, b in zip(*halves, strict=True):
        for first in (0, side // 2):
            lanes = [at for i in range(first, first + side // 2) for at in (i, side + i)]
            zipped.append(builder.shuffle_vector(a, b, _mask(lanes)))
    return zipped


def _pointers(context, builder, kind, array, at, count, side):
    """`count` consecutive vectors of an array, from element `at`."""
    data = data_of(context, builder, kind, array)
    vector = ir.VectorType(FLOAT, side).as_pointer()
    for k in range(count):
        place = builder.add(at, ir.Constant(at.type, k * side))
        yield builder.bitcast(builder.gep(data, [place]), vector)


def _rows(builder, bundle):
    return [builder.extract_value(bundle, [k, 0]) for k in range(bundle.type.count)]


def _bundle(context, builder, kind, vectors):
    bundle = ir.Constant(context.get_value_type(kind), ir.Undefined)
    for k, vector in enumerate(vectors):
        bundle = builder.insert_value(bundle, vector, [k, 0])
    return bundle


def _row(builder, vector):
    row = ir.Constant(row_type(vector.type.count), ir.Undefined)
    return builder.insert_value(row, vector, 0)


def _load(turned):
    """Code for `tile_load` and `tile_read`."""

    def generate(context, builder, signature, args):
        kind = signature.return_type
        shape = kind.count, kind.lanes
        pointers = _pointers(context, builder, signature.args[2], args[2], args[3], *shape)
        vectors = [builder.load(pointer, align=4) for pointer in pointers]
        return _bundle(context, builder, kind, _unzip(builder, vectors) if turned else vectors)

    return generate


def _store(turned):
    """Code for `tile_store` and `tile_write`."""

    def generate(context, builder, signature, args):
        kind = signature.args[0]
        shape = kind.count, kind.lanes
        vectors = _rows(builder, args[0])
        pointers = _pointers(context, builder, signature.args[1], args[1], args[2], *shape)
        vectors = _zip(builder, vectors) if turned else vectors
        for vector, pointer in zip(vectors, pointers, strict=True):
            builder.store(vector, pointer, align=4)
        return context.get_dummy_value()

    return generate


@intrinsic
def tile_read(typing, wide, lanes, array, at):
    """The tile of the 16 rows of `len(lanes)` lanes that begin at element `at`."""
    return Corners(lanes.count, wide.count)(wide, lanes, array, types.intp), _load(turned=True)


@intrinsic
def tile_write(typing, tile, array, at):
    """The inverse of `tile_read`."""
    return types.void(tile, array, types.intp), _store(turned=True)


@intrinsic
def tile_load(typing, wide, lanes, array, at):
    """What `tile_store` wrote: a tile as it is."""
    return Corners(lanes.count, wide.count)(wide, lanes, array, types.intp), _load(turned=False)


@intrinsic
def tile_store(typing, tile, array, at):
    """Write a tile as it is, to where `tile_write` would write its rows."""
    return types.void(tile, array, types.intp), _store(turned=False)


def _reduced(combine):
    """Code that combines the rows of a tile pairwise."""

    def generate(context, builder, signature, args):
        vectors = _rows(builder, args[0])
        while len(vectors) > 1:
            half = len(vectors) // 2
            pairs = zip(vectors[:half], vectors[half:], strict=True)
            vectors = [combine(builder, a, b) for a, b in pairs]
        return _row(builder, vectors[0])

    return generate


@intrinsic
def tile_total(typing, tile):
    """Each pixel's sum over the labels, a row."""
    return Row(tile.lanes)(tile), _reduced(lambda builder, a, b: builder.fadd(a, b))


@intrinsic
def tile_peak(typing, tile):
    """Each pixel's largest value, a row."""
    return Row(tile.lanes)(tile), _reduced(larger)


@intrinsic
def tile_lower(typing, tile, row):
    """Every label's values less those of a row."""

    def generate(context, builder, signature, args):
        other = builder.extract_value(args[1], 0)
        vectors = [builder.fsub(vector, other) for vector in _rows(builder, args[0])]
        return _bundle(context, builder, tile, vectors)

    return tile(tile, row), generate


@intrinsic
def tile_grow(typing, base, tile):
    """`base * exp(tile)`, for exponents up to 60; those below -60 count as -60."""

    def generate(context, builder, signature, args):
        pairs = zip(*(_rows(builder, arg) for arg in args), strict=True)
        vectors = [builder.fmul(a, exp_above(builder, b)) for a, b in pairs]
        return _bundle(context, builder, tile, vectors)

    return tile(base, tile), generate
