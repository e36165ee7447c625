"""The images of the synthetic data set: objects of six kinds on textured grounds.

They have what makes masks from image-level labels hard. The colours and texture of a class are on a
part of its objects only, the head, so that activation is partial; the coat of the rest is shared
with other classes, and now and then with the ground. Objects touch and hide one another, and the
ground is cluttered.

Legend: H, W = height, width in pixels; coordinates x to the right, y down.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Array = NDArray[np.float64]
Outline = Callable[[Array, Array], NDArray[np.bool_]]
# x, y of its middle, and its radius, px
Circle = tuple[float, float, float]

# how many objects an image has beside its first: none, one, two
_OTHERS = (0.3, 0.5, 0.2)
# of an object's circumcircle, relative to the image's shorter side, before it varies
_RADII = (0.32, 0.32, 0.32, 0.36, 0.32, 0.32)
# of an object's head, relative to its circumcircle
_HEADS = (0.42, 0.5, 0.42, 0.5, 0.42, 0.5)
# how often an object is put beside the one before it
_TOUCHING = 0.8
_PLACEMENT_TRIES = 12
_LARGEST_OCCLUSION = 0.45
_MOST_CLUTTER = 5
# how often the ground has the colour of a coat
_CAMOUFLAGE = 0.5
_NOISE = 0.05
# sub-pixel offsets over which the colour of an edge pixel is averaged
_OFFSETS = (-1 / 3, 0.0, 1 / 3)


def draw(
    index: int, *, size: int, classes: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image `index` of the data set: (uint8 [H, W, 3] RGB, uint8 [H, W] mask of 0..classes)."""
    rng = np.random.default_rng([seed, index])
    height, width = (round(size * share) for share in rng.uniform(0.875, 1.25, 2))
    image = _ground(rng, height, width)
    _add_clutter(rng, image)
    mask = np.zeros((height, width), np.uint8)
    # the first object's class goes round: classes stay balanced in a data set of any size
    first = (index + seed) % classes
    others = rng.integers(0, classes, rng.choice(3, p=_OTHERS))
    placed: Circle | None = None
    areas: list[NDArray[np.bool_]] = []
    for kind in (first, *others.tolist()):
        radius = min(height, width) * rng.uniform(0.8, 1.2) * _RADII[kind]
        for _ in range(_PLACEMENT_TRIES):
            middle = _place(rng, height, width, radius, placed)
            angle = rng.uniform(0, 2 * np.pi)
            coverage, inside = _cover(kind, height, width, middle, radius, angle)
            if all((inside & area).sum() <= _LARGEST_OCCLUSION * area.sum() for area in areas):
                break
        x, y = _local(height, width, middle, radius, angle)
        shade = rng.uniform(0.78, 1.0) + 0.18 * (x * np.cos(angle) - y * np.sin(angle))
        colour = np.clip(_paint(rng, kind, x, y) * shade[..., None], 0, 1)
        image += coverage[..., None] * (colour - image)
        mask[inside] = kind + 1
        areas.append(inside)
        placed = (*middle, radius)
    image += rng.normal(0, _NOISE, image.shape)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8), mask


def _place(
    rng: np.random.Generator, height: int, width: int, radius: float, beside: Circle | None
) -> tuple[float, float]:
    """The middle of an object: more often than not so near to another that they touch."""
    touching = rng.random() < _TOUCHING
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    if beside is not None and touching:
        other_x, other_y, other = beside
        distance, direction = rng.uniform(0.7, 0.95) * (other + radius), rng.uniform(0, 2 * np.pi)
        x, y = other_x + distance * np.cos(direction), other_y + distance * np.sin(direction)
    margin = 0.7 * radius
    return float(np.clip(x, margin, width - margin)), float(np.clip(y, margin, height - margin))


def _add_clutter(rng: np.random.Generator, image: Array) -> None:
    """Things of no class on the ground: small, of any colour and outline."""
    height, width = image.shape[:2]
    for _ in range(int(rng.integers(0, _MOST_CLUTTER + 1))):
        radius = min(height, width) * rng.uniform(0.05, 0.13)
        middle = (rng.uniform(0, width), rng.uniform(0, height))
        kind = int(rng.integers(len(_OUTLINES)))
        coverage, _ = _cover(kind, height, width, middle, radius, rng.uniform(0, 2 * np.pi))
        image += coverage[..., None] * (rng.uniform(0.1, 0.9, 3) - image)


def _local(
    height: int, width: int, middle: tuple[float, float], radius: float, angle: float
) -> tuple[Array, Array]:
    """Pixel centres in an object's own frame, [H, W] each: its circumcircle has radius 1."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    x, y = (x - middle[0]) / radius, (y - middle[1]) / radius
    cos, sin = np.cos(angle), np.sin(angle)
    return x * cos + y * sin, y * cos - x * sin


def _cover(
    kind: int, height: int, width: int, middle: tuple[float, float], radius: float, angle: float
) -> tuple[Array, NDArray[np.bool_]]:
    """(the covered share of each pixel, whether its centre is inside), [H, W] each."""
    outline = _OUTLINES[kind]
    coverage = np.zeros((height, width))
    for dx in _OFFSETS:
        for dy in _OFFSETS:
            moved = (middle[0] - dx, middle[1] - dy)
            inside = outline(*_local(height, width, moved, radius, angle))
            coverage += inside / len(_OFFSETS) ** 2
            if dx == dy == 0:
                centre = inside
    return coverage, centre


def _star(x: Array, y: Array) -> NDArray[np.bool_]:
    # five points: the straight edge from a tip (radius 1) to the next notch (radius 0.45)
    sector = np.pi / 5
    phi = np.abs(np.mod(np.arctan2(y, x), 2 * sector) - sector)
    r = np.hypot(x, y)
    notch, tip = (0.45, 0.0), (np.cos(sector), np.sin(sector))
    px, py = r * np.cos(phi), r * np.sin(phi)
    cross = (tip[0] - notch[0]) * (py - notch[1]) - (tip[1] - notch[1]) * (px - notch[0])
    return np.asarray(cross >= 0)


def _triangle(x: Array, y: Array) -> NDArray[np.bool_]:
    sides = [x * np.cos(a) + y * np.sin(a) for a in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
    return np.asarray(np.max(sides, axis=0) <= 0.5)


_OUTLINES: tuple[Outline, ...] = (
    lambda x, y: np.hypot(x, y) <= 0.85,
    lambda x, y: np.maximum(abs(x), abs(y)) <= 0.72,
    _triangle,
    _star,
    lambda x, y: abs(np.hypot(x, y) - 0.7) <= 0.25,
    lambda x, y: (np.minimum(abs(x), abs(y)) <= 0.27) & (np.maximum(abs(x), abs(y)) <= 0.9),
)

# two colours (RGB 0..1) of each class; its texture mixes them
_COLOURS = np.array(
    [
        [(0.86, 0.16, 0.14), (0.98, 0.62, 0.52)],
        [(0.13, 0.30, 0.82), (0.72, 0.84, 0.98)],
        [(0.10, 0.58, 0.22), (0.74, 0.90, 0.36)],
        [(0.96, 0.78, 0.10), (0.80, 0.46, 0.04)],
        [(0.58, 0.18, 0.70), (0.94, 0.68, 0.94)],
        [(0.06, 0.62, 0.66), (0.04, 0.24, 0.34)],
    ]
)


# each is shared by several classes: a coat alone does not tell a class, the head does
_COATS = np.array([(0.55, 0.40, 0.30), (0.74, 0.62, 0.46), (0.44, 0.36, 0.36)])


def _paint(rng: np.random.Generator, kind: int, x: Array, y: Array) -> Array:
    """The colours of an object of a class, [H, W, 3] in about 0..1: spotted coat and head."""
    coat = _COATS[(kind + int(rng.integers(2))) % len(_COATS)] + rng.normal(0, 0.05, 3)
    spots = np.sin(7 * x + rng.uniform(0, 6)) * np.sin(7 * y + rng.uniform(0, 6))
    body = coat + 0.14 * spots[..., None]
    head = np.hypot(x - 0.8 + _HEADS[kind], y) <= _HEADS[kind]
    return np.where(head[..., None], _texture(rng, kind, x, y), body)


def _texture(rng: np.random.Generator, kind: int, x: Array, y: Array) -> Array:
    """What no other class has, [H, W, 3] in about 0..1: two colours and how they mix."""
    phase = rng.uniform(0, 2 * np.pi)
    scale = rng.uniform(0.85, 1.2)
    mix = (
        lambda: np.cos(9 * scale * x + phase) * np.cos(9 * scale * y) > 0.45,  # dots
        lambda: (np.floor(4 * scale * x) + np.floor(4 * scale * y)) % 2,  # chequers
        lambda: np.sin(14 * scale * x + phase) > 0.1,  # stripes
        lambda: np.hypot(x, y) * scale,  # a glow
        lambda: np.sin(7 * np.arctan2(y, x) + phase) > 0,  # spokes
        lambda: np.sin(11 * scale * (x + y) + phase) * np.sin(11 * scale * (x - y)) > 0,  # weave
    )[kind]()
    first, second = np.clip(_COLOURS[kind] + rng.normal(0, 0.045, (2, 3)), 0, 1)
    share = np.clip(mix, 0, 1).astype(np.float64)[..., None]
    return np.asarray(first * (1 - share) + second * share)


def _ground(rng: np.random.Generator, height: int, width: int) -> Array:
    """A dull, textured ground, [H, W, 3] in 0..1: cloud, stripes, gradient or chequers."""
    x, y = _local(height, width, (width / 2, height / 2), height / 2, rng.uniform(0, 2 * np.pi))
    frequency = rng.uniform(5, 12)
    cloud = _cloud(rng, height, width)
    pattern = (
        lambda: cloud,
        lambda: 0.5 + 0.5 * np.sin(frequency * x + 2 * cloud),
        lambda: 0.5 + 0.35 * x,
        lambda: (np.floor(frequency * x / 3) + np.floor(frequency * y / 3)) % 2,
    )[int(rng.integers(4))]()
    share = np.clip(0.75 * pattern + 0.25 * cloud, 0, 1)[..., None]
    grey = rng.uniform(0.25, 0.8, 2)
    if abs(grey[0] - grey[1]) < 0.12:
        grey[1] = grey[0] + 0.15
    # little colour: the classes must not be told from the ground by hue alone, nor hide in it
    first, second = grey[:, None] + rng.uniform(-0.09, 0.09, (2, 3))
    # and now and then it has the colour of a coat
    if rng.random() < _CAMOUFLAGE:
        first = _COATS[int(rng.integers(len(_COATS)))] + rng.normal(0, 0.06, 3)
    return np.asarray(np.clip(first * (1 - share) + second * share, 0, 1))


def _cloud(rng: np.random.Generator, height: int, width: int) -> Array:
    """Smooth noise of three octaves, [H, W] in 0..1."""
    total = np.zeros((height, width))
    for octave, weight in ((4, 0.55), (9, 0.3), (24, 0.15)):
        coarse = Image.fromarray(rng.random((octave, octave)).astype(np.float32))
        fine = coarse.resize((width, height), Image.Resampling.BICUBIC)
        total += weight * np.asarray(fine, np.float64)
    return np.clip((total - 0.5) * 1.6 + 0.5, 0, 1)
