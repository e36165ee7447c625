from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pmm_ray.labels import VOC12, LabelSpace
from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.rows.images import decode_mask, decode_rgb, encode_mask, read_mask_size

WIDE = LabelSpace.from_names([f"class {i}" for i in range(300)])


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def grey_png(values: np.ndarray, depth: int) -> bytes:
    """A grey PNG of `depth` bits written by hand: Pillow writes no 2- and 4-bit grey."""

    def chunk(name: bytes, body: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + crc

    bits = (values[..., None] >> np.arange(depth - 1, -1, -1)) & 1
    rows = np.packbits(bits.reshape(len(values), -1).astype(np.uint8), axis=1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], depth, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("space", [VOC12, WIDE])
def test_mask_round_trip(space: LabelSpace) -> None:
    rng = np.random.default_rng(0)
    mask = rng.integers(0, space.num_classes, (33, 47)).astype(np.int64)
    mask[:4] = space.ignore
    data = encode_mask(mask, space)
    out = decode_mask(data)
    assert out.dtype == space.mask_dtype
    assert np.array_equal(out, mask)
    assert encode_mask(mask.astype(space.mask_dtype), space) == data
    assert encode_mask(np.asfortranarray(mask), space) == data


def test_a_mask_is_drawn_in_the_palette() -> None:
    data = encode_mask(np.array([[0, 1, 15, 255]]), VOC12)
    expected = VOC12.palette[[0, 1, 15, 255]]
    assert np.array_equal(decode_rgb(data, apply_exif=False)[0], expected)
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(bgr[0, :, ::-1], expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_grey_masks_of_any_depth_are_exact(depth: int) -> None:
    values = np.arange(2 ** min(depth, 8)).reshape(2, -1)
    if depth == 16:
        values = values * 257
    out = decode_mask(grey_png(values, depth))
    assert np.array_equal(out, values)
    assert out.dtype == (np.uint16 if depth == 16 else np.uint8)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_indexed_masks_of_any_depth_are_exact(bits: int) -> None:
    values = np.arange(2**bits, dtype=np.uint8).reshape(2, -1)
    image = Image.fromarray(values)
    image.putpalette(VOC12.palette.tobytes())
    assert np.array_equal(decode_mask(encoded(image, bits=bits)), values)


def test_colour_masks_are_refused_with_advice(tmp_path: Path) -> None:
    for mode in ("RGB", "RGBA", "LA"):
        path = tmp_path / f"{mode}.png"
        path.write_bytes(encoded(Image.new(mode, (3, 2))))
        advice = rf"{mode}.png is .* indexed \(palette\) or 8-bit grey"
        with pytest.raises(ValueError, match=advice):
            decode_mask(path.read_bytes(), uri=str(path))
        with pytest.raises(ValueError, match=advice):
            read_mask_size(str(path))
    with pytest.raises(ValueError, match="not a PNG"):
        decode_mask(encoded(Image.new("L", (3, 2)), "JPEG"))


def test_size_of_a_mask_file(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(encode_mask(np.zeros((33, 47), np.uint8), VOC12))
    assert read_mask_size(str(path)) == (33, 47)
    with pytest.raises(RowError, match="does not exist"):
        read_mask_size(str(tmp_path / "none.png"))
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(RowError, match="within its header"):
        read_mask_size(str(path))


def test_damaged_masks_are_row_errors() -> None:
    noise = np.random.default_rng(0).integers(0, 21, (64, 64))
    data = encode_mask(noise, VOC12)
    for damaged in (b"", data[:10], data[: len(data) // 2]):
        with pytest.raises(RowError) as caught:
            decode_mask(damaged)
        assert caught.value.kind == "decode"


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.array([[21]]), r"\[21\] are outside 0..20 and 255"),
        (np.array([[-1]]), r"\[-1\] are outside"),
        (np.zeros((0, 3), np.uint8), "integers"),
        (np.zeros((2, 3, 1), np.uint8), "integers"),
        (np.zeros((2, 3)), "integers"),
    ],
)
def test_impossible_masks_are_not_encoded(mask: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        encode_mask(mask, VOC12)


def test_real_masks_survive_a_round_trip(shared: Path) -> None:
    folder = shared / "data/voc12-mini/VOCdevkit/VOC2012/SegmentationClassAug"
    paths = sorted(folder.glob("*.png"))[::25]
    assert paths
    for path in paths:
        mask = decode_mask(path.read_bytes(), uri=str(path))
        expected = np.asarray(Image.open(path))
        assert np.array_equal(mask, expected)
        assert np.array_equal(decode_mask(encode_mask(mask, VOC12)), expected)
