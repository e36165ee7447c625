"""Damaged files: what Pillow decodes without a word is refused, and what is whole is read."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.rows.images import decode_mask, decode_rgb

HEIGHT, WIDTH = 48, 64
NOISE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
MASK = NOISE[..., 0] % 21
# x, y, and the steps of the seven passes of a picture that is interlaced
PASSES = (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2)
PASSES += ((0, 1, 1, 2),)


def encoded(array: np.ndarray, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, kind, **options)
    return out.getvalue()


def rgb(data: bytes) -> np.ndarray:
    return decode_rgb(data, apply_exif=False)


def png(array: np.ndarray, rows: int | None = None, *, interlaced: bool = False) -> bytes:
    """An 8-bit PNG that declares all of the array and holds its first rows, as they are stored."""
    parts = [array[y::dy, x::dx] for x, y, dx, dy in PASSES] if interlaced else [array]
    stored = [b"\0" + row.tobytes() for part in parts for row in part]
    kind = 2 if array.ndim == 3 else 0
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 8, kind, 0, 0, interlaced)
    chunks = ("IHDR", header), ("IDAT", zlib.compress(b"".join(stored[:rows]))), ("IEND", b"")
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in chunks:
        named = name.encode() + body
        data += struct.pack(">I", len(body)) + named + struct.pack(">I", zlib.crc32(named))
    return data


@pytest.mark.parametrize("read", [rgb, decode_mask])
def test_a_png_with_a_wrong_bit_in_its_pixels_is_refused(
    read: Callable[[bytes], np.ndarray],
) -> None:
    whole = encoded(MASK)
    begin, end = whole.index(b"IDAT") + 4, whole.index(b"IEND") - 4
    for place in np.linspace(begin, end - 1, 40).astype(int):
        damaged = bytearray(whole)
        damaged[place] ^= 16
        with pytest.raises(RowError, match=f"at byte {begin - 8} have another checksum") as caught:
            read(bytes(damaged))
        assert caught.value.kind == "decode"


@pytest.mark.parametrize("array", [MASK, NOISE], ids=["grey", "colours"])
@pytest.mark.parametrize("interlaced", [False, True])
def test_a_png_of_fewer_rows_than_it_declares_is_refused(
    array: np.ndarray, interlaced: bool
) -> None:
    read = rgb if array.ndim == 3 else decode_mask
    assert np.array_equal(read(png(array, interlaced=interlaced)), array)
    for rows in (1, HEIGHT // 2, HEIGHT - 1):
        with pytest.raises(RowError, match="fewer rows of pixels than the 48"):
            read(png(array, rows, interlaced=interlaced))


@pytest.mark.parametrize("value", [0, 165, 255])
def test_a_png_of_one_value_is_whole_whatever_the_value(value: int) -> None:
    array = np.full((HEIGHT, WIDTH), value, np.uint8)
    assert np.array_equal(decode_mask(png(array)), array)
    colours = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    colours[..., 0] = value
    assert np.array_equal(rgb(png(colours)), colours)


def test_a_png_whose_end_is_missing_is_read_where_its_pixels_are_whole() -> None:
    data = encoded(MASK)
    for cut in (1, 12, 14, 16):  # within IEND, all of it, and the checksum of the pixels
        assert np.array_equal(decode_mask(data[:-cut]), MASK)


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
def test_a_jpeg_whose_second_half_is_zeros_is_refused(kind: str) -> None:
    data = encoded(NOISE, kind)
    for share in (0.3, 0.5, 0.9):
        kept = int(len(data) * share)
        with pytest.raises(RowError, match="truncated: it ends in zeros"):
            rgb(data[:kept] + bytes(len(data) - kept))


@pytest.mark.parametrize("trailer", [bytes(512), b"\0\xff\xda\0", b"MP4 \xff\xda\x12" * 99])
def test_a_jpeg_that_is_whole_is_read_whatever_follows(trailer: bytes) -> None:
    data = encoded(NOISE, "JPEG")
    whole = rgb(data)
    assert np.array_equal(rgb(data + trailer), whole)
    # cameras that write no end marker
    assert np.array_equal(rgb(data[:-2] + bytes(512)), whole)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "GIF"])
def test_a_picture_that_is_transparent_everywhere_is_refused(kind: str) -> None:
    hidden = np.dstack([NOISE, np.zeros((HEIGHT, WIDTH), np.uint8)])
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    with pytest.raises(RowError, match=r"transparent at every pixel.*-alpha off FILE") as caught:
        rgb(encoded(hidden, kind, **options))
    assert caught.value.kind == "decode"
    hidden[:9, :9, 3] = 255
    assert (rgb(encoded(hidden, kind, **options))[9:] == 255).all()


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
def test_white_may_be_0_in_a_tiff_of_16_bits(compression: str) -> None:
    grey = np.linspace(0, 65535, HEIGHT * WIDTH).astype(np.uint16).reshape(HEIGHT, WIDTH)
    options = {"tiffinfo": {262: 0}, "compression": compression}
    assert np.array_equal(rgb(encoded(grey, "TIFF", **options))[..., 0], ~grey >> 8)
    with pytest.raises(RowError, match="none is above 4095"):
        rgb(encoded(grey // 16, "TIFF", **options))
