"""A synthetic data set with exact masks: six kinds of shapes on textured grounds.

It stands in for photographs where none may be shipped: demonstration, tests, benchmarks.
"""

from __future__ import annotations

import io
from functools import partial

import numpy as np
from PIL import Image

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.manifest import CONTENT_KEY
from pmm_ray.runtime.rows.images import encode_mask
from pmm_ray.sources.datasets.shape_images import draw
from pmm_ray.sources.importing.import_report import ImportReport
from pmm_ray.sources.importing.importer import Importer

CLASS_NAMES = ("disc", "square", "triangle", "star", "ring", "cross")
# raised by hand when the same seed draws other pixels: earlier runs must not be resumed then
VERSION = 2

_JPEG_QUALITY = 92


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
