"""A synthetic data set with exact masks: six kinds of shapes on textured grounds.

It stands in for photographs where none may be shipped: demonstration, tests, benchmarks. A class
differs in outline, colour and texture, so a small ImageNet network learns it from image-level
labels; grounds, sizes, rotations, colours and occlusion vary, so that it is no toy.

Legend: H, W = height, width in pixels; coordinates x to the right, y down.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.manifest import CONTENT_KEY
from pmm_ray.runtime.rows.images import encode_mask
from pmm_ray.sources.importing import Importer, ImportReport

CLASS_NAMES = ("disc", "square", "triangle", "star", "ring", "cross")
# raised by hand when the same seed draws other pixels: earlier runs must not be resumed then
VERSION = 1

Array = NDArray[np.float64]
Outline = Callable[[Array, Array], NDArray[np.bool_]]

_JPEG_QUALITY = 92
_PLACEMENT_TRIES = 12
_LARGEST_OCCLUSION = 0.45
# sub-pixel offsets over which the colour of an edge pixel is averaged
_OFFSETS = (-1 / 3, 0.0, 1 / 3)


def make_shapes(
    out: str,
    *,
    images: int = 120,
    size: int = 128,
    classes: int = 4,
    seed: int = 0,
    val_share: float = 0.25,
) -> ImportReport:
    """Draw the data set: `images/ID.jpg`, `masks/ID.png` and `manifest.parquet` below `out`.

    The same arguments draw the same pixels; image i depends on (seed, i) and on `size` and
    `classes`, not on `images`. An object that others hide wholly is no label.

    Args:
        out: folder or uri.
        images: number of images, all splits together, at least 4.
        size: typical side in pixels, at least 48; sides are 0.875 to 1.25 times it.
        classes: number of foreground classes, 2..6, in the order of `CLASS_NAMES`.
        seed: of all randomness.
        val_share: share of the images in split `val`, in (0, 1); the others are `train`.

    Raises:
        ValueError: an argument out of range.
    """
    if not 2 <= classes <= len(CLASS_NAMES):
        raise ValueError(f"classes must be 2..{len(CLASS_NAMES)}, got {classes}")
    if images < 4 or size < 48 or not 0 < val_share < 1:
        raise ValueError(
            "needs images >= 4, size >= 48 and 0 < val_share < 1, "
            f"got {images}, {size}, {val_share}"
        )
    space = LabelSpace.from_names(CLASS_NAMES[:classes], name="shapes")
    out = storage.absolute(out)
    importer = Importer(out, space, source="shapes", exif="ignore")
    validation = min(images - 1, max(1, round(images * val_share)))
    lines = ["image_id,labels,split"]
    for index in range(images):
        image_id = f"shapes-{index:05}"
        image_uri = storage.join(out, "images", f"{image_id}.jpg")
        mask_uri = storage.join(out, "masks", f"{image_id}.png")
        image_HW3, mask_HW = draw(index, size=size, classes=classes, seed=seed)
        jpeg = io.BytesIO()
        Image.fromarray(image_HW3).save(jpeg, "JPEG", quality=_JPEG_QUALITY)
        storage.write_bytes(image_uri, jpeg.getvalue())
        storage.write_bytes(mask_uri, encode_mask(mask_HW, space))
        split = "train" if index < images - validation else "val"
        present = np.unique(mask_HW[mask_HW > 0]).tolist()
        importer.add(image_id, image_uri, split, partial(tuple, present), mask_uri)
        lines.append(f"{image_id},{';'.join(space.names[label] for label in present)},{split}")
    # so that the folder is what `sources.folder` reads as well
    for name, text in (("labels.csv", lines), ("classes.txt", space.names[1:])):
        storage.write_bytes(storage.join(out, name), ("\n".join(text) + "\n").encode())
    content = f"shapes version {VERSION} size {size} classes {classes} seed {seed}"
    return importer.finish(metadata={CONTENT_KEY: content})


def draw(
    index: int, *, size: int, classes: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Image `index` of the data set: (uint8 [H, W, 3] RGB, uint8 [H, W] mask of 0..classes)."""
    rng = np.random.default_rng([seed, index])
    height, width = (round(size * share) for share in rng.uniform(0.875, 1.25, 2))
    image = _ground(rng, height, width)
    mask = np.zeros((height, width), np.uint8)
    # the first object's class goes round: classes stay balanced in a data set of any size
    first = (index + seed) % classes
    others = rng.integers(0, classes, rng.choice(3, p=(0.45, 0.35, 0.2)))
    areas: list[NDArray[np.bool_]] = []
    for kind in (first, *others.tolist()):
        radius = min(height, width) * rng.uniform(0.2, 0.36)
        for _ in range(_PLACEMENT_TRIES):
            middle = (
                rng.uniform(0.7 * radius, width - 0.7 * radius),
                rng.uniform(0.7 * radius, height - 0.7 * radius),
            )
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
    image += rng.normal(0, 0.02, image.shape)
    return np.round(np.clip(image, 0, 1) * 255).astype(np.uint8), mask


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


def _paint(rng: np.random.Generator, kind: int, x: Array, y: Array) -> Array:
    """The colours of an object of a class, [H, W, 3] in about 0..1."""
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
    return np.asarray(np.clip(first * (1 - share) + second * share, 0, 1))


def _cloud(rng: np.random.Generator, height: int, width: int) -> Array:
    """Smooth noise of three octaves, [H, W] in 0..1."""
    total = np.zeros((height, width))
    for octave, weight in ((4, 0.55), (9, 0.3), (24, 0.15)):
        coarse = Image.fromarray(rng.random((octave, octave)).astype(np.float32))
        fine = coarse.resize((width, height), Image.Resampling.BICUBIC)
        total += weight * np.asarray(fine, np.float64)
    return np.clip((total - 0.5) * 1.6 + 0.5, 0, 1)
