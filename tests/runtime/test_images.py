from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pmm_ray.labels import VOC12, LabelSpace
from pmm_ray.runtime import images
from pmm_ray.runtime.errors import RowError
from pmm_ray.runtime.images import (
    decode_mask,
    decode_rgb,
    encode_mask,
    image_size,
    read_image,
    read_image_size,
    read_mask_size,
)

WIDE = LabelSpace.from_names([f"class {i}" for i in range(300)])


def photo(height: int = 24, width: int = 40) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decode(data: bytes, *, apply_exif: bool = False, **options: int) -> np.ndarray:
    return decode_rgb(data, apply_exif=apply_exif, **options)


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


# decode_rgb


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP"])
def test_lossless_formats_are_exact(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    out = decode(encoded(Image.fromarray(photo()), kind, **options))
    assert np.array_equal(out, photo())
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    assert out.flags.writeable


def test_real_photographs_decode_as_with_opencv(shared: Path) -> None:
    folder = shared / "data"
    voc = sorted(folder.glob("voc12-mini/VOCdevkit/VOC2012/JPEGImages/*.jpg"))[::5]
    coco = sorted(folder.glob("coco14-mini/*2014/*.jpg"))[::2]
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    assert len(voc) >= 50
    assert len(coco) >= 50
    for path in voc + coco:
        data = path.read_bytes()
        expected = cv2.imdecode(np.frombuffer(data, np.uint8), flags)[..., ::-1]
        assert np.array_equal(decode(data), expected), path.name
        assert image_size(data, apply_exif=False) == expected.shape[:2]


@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_decodes_as_with_opencv(subsampling: int, progressive: bool) -> None:
    image = Image.fromarray(photo(37, 51))
    data = encoded(image, "JPEG", subsampling=subsampling, progressive=progressive)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(decode(data), expected)


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_grey_becomes_three_equal_channels(kind: str) -> None:
    out = decode(encoded(Image.fromarray(photo()[..., 0]), kind))
    assert out.shape == (24, 40, 3)
    assert np.array_equal(out[..., 0], out[..., 1])
    assert np.array_equal(out[..., 0], out[..., 2])
    assert np.abs(out[..., 0].astype(int) - photo()[..., 0]).max() <= (0 if kind == "PNG" else 8)


def test_alpha_is_composited_over_white() -> None:
    alpha = np.zeros((24, 40), np.uint8)
    alpha[:, :20] = 255
    expected = np.where(alpha[..., None] == 255, photo(), 255)
    rgba = Image.fromarray(np.dstack([photo(), alpha]))
    assert np.array_equal(decode(encoded(rgba)), expected)
    grey_alpha = Image.fromarray(np.dstack([photo()[..., 0], alpha]))
    assert grey_alpha.mode == "LA"
    assert np.array_equal(decode(encoded(grey_alpha))[..., 0], expected[..., 0])


def test_palette_with_and_without_transparency() -> None:
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    image = Image.fromarray(indices)
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    red, green, blue, white = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]
    assert decode(encoded(image)).tolist() == [[red, green], [blue, green]]
    transparent = decode(encoded(image, transparency=1))
    assert transparent.tolist() == [[red, white], [blue, white]]


def test_one_bit() -> None:
    bits = np.array([[0, 1, 1], [1, 0, 0]], bool)
    assert np.array_equal(decode(encoded(Image.fromarray(bits)))[..., 1], bits * 255)


def test_16_bit_keeps_the_high_byte() -> None:
    grey = np.array([[0, 255, 256, 257], [32768, 40000, 65279, 65535]], np.uint16)
    _, data = cv2.imencode(".png", grey)
    assert np.array_equal(decode(data.tobytes())[..., 2], grey >> 8)
    big_endian = encoded(Image.fromarray(grey), "TIFF")
    assert np.array_equal(decode(big_endian)[..., 0], grey >> 8)
    colour = np.stack([grey, grey[::-1], grey[:, ::-1]], -1)
    _, data = cv2.imencode(".png", colour[..., ::-1])
    assert np.array_equal(decode(data.tobytes()), colour >> 8)


def test_32_bit_is_refused_and_says_why() -> None:
    data = encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(RowError, match="32-bit") as caught:
        decode(data)
    assert caught.value.kind == "decode"


def flat_cmyk() -> np.ndarray:
    # a smooth patch: no JPEG ringing, so colours can be compared
    return np.broadcast_to(np.array([200, 60, 20, 40], np.uint8), (16, 16, 4)).copy()


def test_cmyk_jpeg() -> None:
    data = encoded(Image.fromarray(flat_cmyk(), "CMYK"), "JPEG", quality=98)
    expected = np.asarray(Image.fromarray(flat_cmyk(), "CMYK").convert("RGB")).astype(int)
    assert np.abs(decode(data) - expected).max() <= 3


def test_ycck_jpeg() -> None:
    # libjpeg defines R = 255 - C, and Adobe stores C inverted: so the C, M, Y that are meant stand
    # for R, G, B in the conversion. Pillow writes inverted planes; the marker says transform 2
    ycc = np.asarray(Image.fromarray(flat_cmyk()[..., :3].copy()).convert("YCbCr"))
    planes = np.dstack([255 - ycc, flat_cmyk()[..., 3]])
    data = bytearray(encoded(Image.fromarray(planes, "CMYK"), "JPEG", quality=98))
    data[data.index(b"Adobe") + 11] = 2
    expected = np.asarray(Image.fromarray(flat_cmyk(), "CMYK").convert("RGB")).astype(int)
    opencv = cv2.imdecode(np.frombuffer(bytes(data), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.abs(opencv.astype(int) - expected).max() <= 4
    assert np.abs(decode(bytes(data)) - expected).max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation(orientation: int, kind: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(photo()), kind, exif=exif.tobytes(), **options)
    stored = decode(data)
    upright = decode(data, apply_exif=True)
    assert stored.shape == (24, 40, 3)
    expected = {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.transpose(1, 0, 2),
        6: np.rot90(stored, -1),
        7: stored.transpose(1, 0, 2)[::-1, ::-1],
        8: np.rot90(stored),
    }[orientation]
    assert np.array_equal(upright, expected)
    assert upright.flags.c_contiguous
    assert image_size(data, apply_exif=True) == upright.shape[:2]
    assert image_size(data, apply_exif=False) == (24, 40)
    if kind == "JPEG":
        opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert np.array_equal(upright, opencv[..., ::-1])


@pytest.mark.filterwarnings("error")
def test_damaged_exif_leaves_the_photograph_as_stored() -> None:
    data = encoded(Image.fromarray(photo()), "JPEG", exif=b"Exif\0\0MM\0\x2agarbage")
    assert decode(data, apply_exif=True).shape == (24, 40, 3)


@pytest.mark.parametrize("orientation", [1, 6])
def test_tiff_size_and_pixels_agree(orientation: int) -> None:
    data = encoded(Image.fromarray(photo()), "TIFF", tiffinfo={0x0112: orientation})
    for apply_exif in (False, True):
        out = decode(data, apply_exif=apply_exif)
        assert image_size(data, apply_exif=apply_exif) == out.shape[:2]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_truncated_files_are_decode_errors(kind: str, share: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(RowError) as caught:
        decode(data[: int(len(data) * share)])
    assert caught.value.kind == "decode"


def test_a_jpeg_cut_by_its_last_bytes_is_detected() -> None:
    data = encoded(Image.fromarray(photo()), "JPEG")
    for cut in (1, 2, 10, 100):
        with pytest.raises(RowError, match="truncated"):
            decode(data[:-cut])


@pytest.mark.parametrize(
    "data", [b"", b"hello, I am no image", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"]
)
def test_other_bytes_are_decode_errors(data: bytes) -> None:
    for read in (decode_rgb, image_size):
        with pytest.raises(RowError) as caught:
            read(data, apply_exif=True, uri="a.jpg")
        assert caught.value.kind == "decode"
        assert caught.value.uri == "a.jpg"


def test_damage_anywhere_never_escapes_as_another_exception() -> None:
    rng = np.random.default_rng(1)
    whole = [encoded(Image.fromarray(photo()), kind) for kind in ("JPEG", "PNG", "TIFF", "WEBP")]
    for data in whole:
        for _ in range(60):
            damaged = bytearray(data)
            damaged[int(rng.integers(len(data)))] ^= int(rng.integers(1, 256))
            for read in (decode_rgb, image_size):
                # RowError is the only exception that may leave
                with contextlib.suppress(RowError):
                    read(bytes(damaged), apply_exif=True, max_pixels=10**6)


def test_too_large_is_refused_before_decoding() -> None:
    # a header that declares 60,000 x 60,000 pixels and holds none
    bomb = grey_png(np.zeros((1, 1), np.uint8), 8)
    bomb = bomb[:16] + struct.pack(">II", 60_000, 60_000) + bomb[24:]
    bomb = bomb[:29] + struct.pack(">I", zlib.crc32(bomb[12:29])) + bomb[33:]
    for read in (decode_rgb, image_size):
        with pytest.raises(RowError) as caught:
            read(bomb, apply_exif=False)
        assert caught.value.kind == "too_large"
    with pytest.raises(RowError, match="40 x 24 pixels, more than the 959 allowed"):
        decode(encoded(Image.fromarray(photo())), max_pixels=959)
    assert decode(encoded(Image.fromarray(photo())), max_pixels=960).shape == (24, 40, 3)


@pytest.mark.filterwarnings("error")
def test_no_warning_below_the_limit() -> None:
    large = encoded(Image.new("1", (10_000, 9_500)))
    assert image_size(large, apply_exif=False) == (9_500, 10_000)


def test_one_pixel() -> None:
    data = encoded(Image.fromarray(np.full((1, 1, 3), 7, np.uint8)))
    assert decode(data, apply_exif=True).tolist() == [[[7, 7, 7]]]


# files


def test_read_image_and_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(photo())))
    assert np.array_equal(read_image(str(path), apply_exif=False), photo())
    assert read_image_size(str(path), apply_exif=False) == (24, 40)
    for read in (read_image, read_image_size):
        with pytest.raises(RowError) as caught:
            read(str(tmp_path / "none.png"), apply_exif=False)
        assert caught.value.kind == "missing"
        assert caught.value.uri.endswith("none.png")
        with pytest.raises(RowError) as caught:
            read(str(tmp_path), apply_exif=False)
        assert caught.value.kind == "missing"


def test_size_of_a_file_whose_header_is_not_at_its_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "HEAD_BYTES", 64)
    noise = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    for kind in ("JPEG", "TIFF", "PNG"):
        path = tmp_path / kind
        path.write_bytes(encoded(Image.fromarray(noise), kind))
        assert read_image_size(str(path), apply_exif=True) == (50, 60)
    path = tmp_path / "garbage"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(RowError, match="not an image"):
        read_image_size(str(path), apply_exif=True)


# masks


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
    assert np.array_equal(decode(data)[0], expected)
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
        (np.array([[21]]), r"\[21\] lie outside 0..20 and 255"),
        (np.array([[-1]]), r"\[-1\] lie outside"),
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
