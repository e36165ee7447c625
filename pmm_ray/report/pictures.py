"""Pictures of reports as data URIs: photographs, maps and masks, and the legend of colours."""

# H, W: pixels. K: the image's classes. h, w: stored CAM size.

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.rows import images

THUMBNAIL = 240
"""Long side of a picture, px."""
_JPEG_QUALITY = 82
_CAM_OPACITY = 0.8
_MASK_OPACITY = 0.55


@dataclass(frozen=True)
class LegendEntry:
    name: str
    colour: str
    """`#rrggbb`."""


def draw_pictures(
    row: dict[str, Any],
    stored: dict[str, dict[str, dict[str, Any]]],
    manifest: Manifest,
    seen: set[int],
) -> dict[str, str | None]:
    """Column -> data URI of one image; `seen` collects the ids that appear in its masks."""
    image_id = row["image_id"]
    space = manifest.label_space
    pictures: dict[str, str | None] = dict.fromkeys(
        ("image", "CAM", "pseudo-mask", "prediction", "truth")
    )
    size = thumbnail_size(row["height"], row["width"])
    with contextlib.suppress(RowError, ValueError):  # a bad image shows as an empty cell
        photo = photograph(row, manifest)
        pictures["image"] = jpeg(photo)
        cam = stored.get("CAM", {}).get(image_id)
        if cam is not None:
            pictures["CAM"] = jpeg(overlay_cam(photo, cam, space))
            seen.update(cam["labels"])
    for name in ("pseudo-mask", "prediction"):
        mask = stored.get(name, {}).get(image_id)
        if mask is not None:
            pictures[name] = mask_picture(images.decode_mask(mask["mask_png"]), size, space, seen)
    if row["ground_truth_uri"]:
        with contextlib.suppress(RowError, ValueError, OSError):
            uri = manifest.locate(row["ground_truth_uri"])
            truth = images.decode_mask(storage.read_bytes(uri))  # contiguous, as all tables
            pictures["truth"] = mask_picture(truth, size, space, seen)
    return pictures


def photograph(row: dict[str, Any], manifest: Manifest) -> Image.Image:
    """A small photograph, of a row of the manifest. Raises RowError."""
    image_HW3 = images.read_image(manifest.locate(row["uri"]), apply_exif=manifest.apply_exif)
    size = thumbnail_size(row["height"], row["width"])
    return Image.fromarray(image_HW3).resize(size, Image.Resampling.LANCZOS)


def overlay_cam(photo: Image.Image, row: dict[str, Any], space: LabelSpace) -> Image.Image:
    """The grey photograph, tinted with each class's palette colour where its map is high.

    Args:
        photo: RGB, of the size to draw.
        row: a row of the cams table.
    """
    grey = photo.convert("L").convert("RGB")
    if not row["labels"]:
        return grey
    stored = np.frombuffer(row["cam"], "<f2").reshape(-1, row["cam_height"], row["cam_width"])
    cam_KHW = np.stack(
        [
            np.asarray(
                Image.fromarray(channel).resize(photo.size, Image.Resampling.BILINEAR), np.float32
            )
            for channel in np.nan_to_num(stored.astype(np.float32))
        ]
    ).clip(0, 1)
    colours_K3 = space.palette[[i % 256 for i in row["labels"]]].astype(np.float32)
    total_HW = cam_KHW.sum(0)
    tint_HW3 = np.tensordot(cam_KHW, colours_K3, (0, 0)) / np.maximum(total_HW, 1e-6)[..., None]
    return _tinted(grey, tint_HW3, _CAM_OPACITY * cam_KHW.max(0))


def overlay_mask(photo: Image.Image, mask_HW: NDArray[Any], space: LabelSpace) -> Image.Image:
    """The photograph, tinted with the palette's colours where the mask has a class.

    Args:
        photo: RGB, of the size to draw.
        mask_HW: ids, [H, W] of any size; 0 is left as it is.
    """
    ids_HW = _resized(mask_HW, photo.size)
    tint_HW3 = space.palette[ids_HW % 256].astype(np.float32)
    return _tinted(photo, tint_HW3, np.where(ids_HW > 0, _MASK_OPACITY, 0.0))


def _tinted(photo: Image.Image, tint_HW3: NDArray[Any], opacity_HW: NDArray[Any]) -> Image.Image:
    """The photograph under colours; opacity 0 shows none of them, 1 nothing else."""
    opacity_HW1 = opacity_HW[..., None]
    blend_HW3 = np.asarray(photo, np.float32) * (1 - opacity_HW1) + tint_HW3 * opacity_HW1
    return Image.fromarray(np.round(blend_HW3).astype(np.uint8))


def _resized(mask_HW: NDArray[Any], size: tuple[int, int]) -> NDArray[np.int32]:
    """A mask of another (width, height)."""
    whole = Image.fromarray(mask_HW.astype(np.int32))
    return np.asarray(whole.resize(size, Image.Resampling.NEAREST))


def mask_picture(
    mask_HW: NDArray[Any], size: tuple[int, int], space: LabelSpace, seen: set[int]
) -> str:
    """A small indexed PNG in the palette's colours."""
    seen.update(np.unique(mask_HW).tolist())
    small_HW = _resized(mask_HW, size)
    colours = np.where(small_HW == space.ignore, 255, small_HW % 256).astype(np.uint8)
    image = Image.fromarray(colours)
    image.putpalette(space.palette.tobytes())
    return _data_uri(image, "PNG", optimize=True)


def thumbnail_size(height: int, width: int) -> tuple[int, int]:
    """(width, height) with the long side at `THUMBNAIL`; small images are enlarged to it."""
    scale = THUMBNAIL / max(height, width)
    return max(1, round(width * scale)), max(1, round(height * scale))


def legend(space: LabelSpace, seen: set[int]) -> Iterator[LegendEntry]:
    """The names and colours of ids that appear in masks."""
    for i in sorted(seen):
        colour = space.palette[255 if i == space.ignore else i % 256]
        name = "not labelled" if i == space.ignore else class_name(space, i)
        yield LegendEntry(name, "#" + bytes(colour).hex())


def class_name(space: LabelSpace, label: int) -> str:
    return space.names[label] if label < space.num_classes else f"unknown {label}"


def jpeg(image: Image.Image) -> str:
    """The picture as a data URI."""
    return _data_uri(image, "JPEG", quality=_JPEG_QUALITY)


def _data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"
