"""Exported photographs: other programs show the pixels that their masks were made of."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from pmm_ray.commands.export.source import portable
from pmm_ray.runtime.rows.images import decode_rgb

RGB = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
HALF = np.dstack([RGB, np.where(np.arange(40) < 20, 255, 0) * np.ones((24, 1))]).astype(np.uint8)
HALF[:, 20:, :3] = 0
GREY_16 = np.linspace(0, 65535, 24 * 40).astype(np.uint16).reshape(24, 40)


def tags(orientation: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def encoded(array: np.ndarray, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()


def indexed() -> bytes:
    image = Image.fromarray(RGB).quantize(16)
    out = io.BytesIO()
    image.save(out, "PNG", transparency=3)
    return out.getvalue()


def late() -> bytes:
    """A PNG whose EXIF data follows its pixels."""
    data, exif = encoded(RGB, "PNG"), b"eXIf" + tags().tobytes().removeprefix(b"Exif\0\0")
    end = data.index(b"IEND") - 4
    chunk = struct.pack(">I", len(exif) - 4) + exif + struct.pack(">I", zlib.crc32(exif))
    return data[:end] + chunk + data[end:]


def as_text() -> bytes:
    """A PNG whose EXIF data is text, as ImageMagick 6 writes it."""
    exif, info = tags().tobytes(), PngInfo()
    info.add_text("Raw profile type exif", f"\nexif\n{len(exif):8}\n{exif.hex()}\n")
    return encoded(RGB, "PNG", pnginfo=info)


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def shown(data: bytes) -> list[np.ndarray]:
    """What others show: OpenCV, and Pillow as `datasets` uses it."""
    seen = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    with Image.open(io.BytesIO(data)) as image:
        return [seen, np.asarray(ImageOps.exif_transpose(image).convert("RGB"))]


def exported(path: Path, data: bytes, *, apply_exif: bool) -> bytes:
    path.write_bytes(data)
    out, ending = portable(str(path), apply_exif=apply_exif)
    assert ending == (path.suffix if out == data else ".png")
    for seen in shown(out):
        assert np.array_equal(seen, decode_rgb(data, apply_exif=apply_exif))
    return out


@pytest.mark.parametrize("apply_exif", [True, False])
@pytest.mark.parametrize(
    "data",
    [
        encoded(HALF, "PNG"),
        encoded(HALF, "WEBP", lossless=True, exact=True),
        encoded(HALF, "TIFF"),
        indexed(),
        encoded(GREY_16, "PNG"),
        encoded(GREY_16, "TIFF", tiffinfo={262: 0}),
        late(),
        as_text(),
        encoded(RGB, "JPEG", xmp=XMP),
        encoded(RGB, "WEBP", lossless=True, exif=tags()),
        encoded(RGB, "TIFF", tiffinfo={274: 6}),
    ],
    ids=[
        *("PNG with alpha", "WebP with alpha", "TIFF with alpha", "index", "16-bit PNG"),
        *("white is 0", "late EXIF", "EXIF as text", "XMP", "turned WebP", "turned TIFF"),
    ],
)
def test_photographs_that_others_show_otherwise_are_png_of_their_pixels(
    data: bytes, apply_exif: bool, tmp_path: Path
) -> None:
    assert exported(tmp_path / "a.jpg", data, apply_exif=apply_exif) != data


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP"])
def test_others_are_copied(kind: str, tmp_path: Path) -> None:
    for options in ({}, {"exif": tags(1)}) if kind != "BMP" else ({},):
        data = encoded(RGB, kind, **options)
        for apply_exif in (True, False):
            assert exported(tmp_path / "a.x", data, apply_exif=apply_exif) == data


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_those_that_exif_turns_are_copied_where_their_masks_are_turned(
    kind: str, tmp_path: Path
) -> None:
    data = encoded(RGB, kind, exif=tags())
    assert exported(tmp_path / "a.x", data, apply_exif=True) == data
    assert exported(tmp_path / "a.x", data, apply_exif=False) != data


def test_damaged_metadata_turns_nothing(tmp_path: Path) -> None:
    path, data = tmp_path / "a.jpg", encoded(RGB, "JPEG", exif=b"Exif\0\0MM\0\x2agarbage")
    path.write_bytes(data)
    assert portable(str(path), apply_exif=True) == (data, ".jpg")
