from __future__ import annotations

import contextlib
import io
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.rows import images
from pmm_ray.runtime.rows.images import (
    decode_rgb,
    image_header,
    read_header,
    read_image,
)


def photo(height: int = 24, width: int = 40) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([x * 255 // width, y * 255 // height, (x + y) % 256], -1).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def decode(data: bytes, *, apply_exif: bool = False, **options: int) -> np.ndarray:
    return decode_rgb(data, apply_exif=apply_exif, **options)


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
        assert image_header(data, apply_exif=False).size == expected.shape[:2]


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


@pytest.mark.parametrize("highest", [255, 1023, 4095])
@pytest.mark.parametrize(
    ("ending", "channels"),
    [(".png", 1), (".png", 3), (".png", 4), (".tiff", 1), (".tiff", 3), (".pgm", 1), (".ppm", 3)],
)
def test_10_and_12_bits_in_16_are_refused_and_16_are_not(
    ending: str, highest: int, channels: int
) -> None:
    samples = np.linspace(0, highest, 12).astype(np.uint16).reshape(3, 4)
    planes = np.stack([samples] * channels, -1).squeeze()
    if channels == 4:
        planes[..., 3] = 65535
    with pytest.raises(RowError, match=r"none is above 4095.*multiply 16 FILE") as caught:
        decode(cv2.imencode(ending, planes)[1].tobytes())
    assert caught.value.kind == "decode"
    planes[0, 0] = 5000
    if channels == 4:
        planes[..., 3] = 65535
    assert decode(cv2.imencode(ending, planes)[1].tobytes())[0, 0].tolist() == [19, 19, 19]


def test_a_pgm_says_what_its_white_is() -> None:
    for white in (1023, 4095, 65535):
        head = f"P5\n2 1\n{white}\n".encode()
        data = head + np.array([0, white], ">u2").tobytes()
        assert decode(data)[..., 1].tolist() == [[0, 255]]


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
    assert image_header(data, apply_exif=True).size == upright.shape[:2]
    assert image_header(data, apply_exif=False).size == (24, 40)
    if kind == "JPEG":
        opencv = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert np.array_equal(upright, opencv[..., ::-1])


@pytest.mark.filterwarnings("error")
def test_damaged_exif_leaves_the_photograph_as_stored() -> None:
    data = encoded(Image.fromarray(photo()), "JPEG", exif=b"Exif\0\0MM\0\x2agarbage")
    assert decode(data, apply_exif=True).shape == (24, 40, 3)


def test_other_tags_of_an_orientation_may_be_damaged() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x9000] = b"0230"
    # a tag whose value is a number now holds these bytes
    tags = exif.tobytes().replace(b"\x90\x00\x00\x07", b"\x02\x00\x00\x07")
    data = encoded(Image.fromarray(photo()), "PNG", exif=tags)
    with Image.open(io.BytesIO(data)) as image, pytest.raises(struct.error):
        ImageOps.exif_transpose(image)
    assert np.array_equal(decode(data, apply_exif=True), np.rot90(photo(), -1))


@pytest.mark.parametrize("orientation", [1, 6])
def test_tiff_size_and_pixels_agree(orientation: int) -> None:
    data = encoded(Image.fromarray(photo()), "TIFF", tiffinfo={0x0112: orientation})
    for apply_exif in (False, True):
        out = decode(data, apply_exif=apply_exif)
        assert image_header(data, apply_exif=apply_exif).size == out.shape[:2]


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
    for read in (decode_rgb, image_header):
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
            for read in (decode_rgb, image_header):
                # RowError is the only exception that may leave
                with contextlib.suppress(RowError):
                    read(bytes(damaged), apply_exif=True, max_pixels=10**6)


def test_too_large_is_refused_before_decoding() -> None:
    # a header that declares 60,000 x 60,000 pixels and holds none
    bomb = encoded(Image.new("L", (1, 1)))
    bomb = bomb[:16] + struct.pack(">II", 60_000, 60_000) + bomb[24:]
    bomb = bomb[:29] + struct.pack(">I", zlib.crc32(bomb[12:29])) + bomb[33:]
    for read in (decode_rgb, image_header):
        with pytest.raises(RowError) as caught:
            read(bomb, apply_exif=False)
        assert caught.value.kind == "too_large"
    with pytest.raises(RowError, match="40 x 24 pixels, more than the 959 allowed"):
        decode(encoded(Image.fromarray(photo())), max_pixels=959)
    assert decode(encoded(Image.fromarray(photo())), max_pixels=960).shape == (24, 40, 3)


@pytest.mark.filterwarnings("error")
def test_no_warning_below_the_limit() -> None:
    large = encoded(Image.new("1", (10_000, 9_500)))
    assert image_header(large, apply_exif=False).size == (9_500, 10_000)


def test_one_pixel() -> None:
    data = encoded(Image.fromarray(np.full((1, 1, 3), 7, np.uint8)))
    assert decode(data, apply_exif=True).tolist() == [[[7, 7, 7]]]


def test_read_image_and_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(Image.fromarray(photo())))
    assert np.array_equal(read_image(str(path), apply_exif=False), photo())
    assert read_header(str(path), apply_exif=False).size == (24, 40)
    for read in (read_image, read_header):
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
        assert read_header(str(path), apply_exif=True).size == (50, 60)
    path = tmp_path / "garbage"
    path.write_bytes(b"x" * 1000)
    with pytest.raises(RowError, match="not an image"):
        read_header(str(path), apply_exif=True)


@pytest.mark.parametrize(("kind", "module"), [("HEIF", "pillow_heif"), ("JXL", "pillow_jxl")])
def test_formats_of_the_extra(kind: str, module: str) -> None:
    package = pytest.importorskip(module, reason="pip install 'pmm-ray[photos]'")
    if kind == "HEIF":
        package.register_heif_opener()
    data = encoded(Image.fromarray(photo()), kind, quality=95)
    if kind == "HEIF":
        Image.OPEN.pop(kind)  # as in a process that has seen none
    decoded = decode(data)
    assert decoded.shape == photo().shape
    assert np.abs(decoded.astype(int) - photo()).mean() < 8


def test_a_format_of_the_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    monkeypatch.setattr(images.importlib, "import_module", missing)
    for kind in images.EXTRAS:
        monkeypatch.delitem(Image.OPEN, kind, raising=False)
    for data in (b"\0\0\0\x1cftypheic" + bytes(40), b"\xff\n" + bytes(40)):
        with pytest.raises(RowError, match=r"pip install 'pmm-ray\[photos\]'") as caught:
            decode(data)
        assert caught.value.kind == "decode"


def test_postscript_is_never_handed_to_another_program() -> None:
    with pytest.raises(RowError, match="of a format that is not read"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n")


def test_a_photograph_in_a_place_that_cannot_be_used_is_one_image_s_error() -> None:
    with pytest.raises(RowError, match="https://host cannot be used") as error:
        read_image("https://host/a.jpg", apply_exif=False)
    assert (error.value.kind, error.value.uri) == ("missing", "https://host/a.jpg")
