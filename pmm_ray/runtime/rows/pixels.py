"""From an opened picture to its pixels: none of them missing, wrong or hidden.

Pillow decodes some damaged files without a word. A PNG has checksums, which it passes over, and may
hold fewer rows than it declares. A JPEG has none: only that it ends in zeros, as a copy that was
cut short does, can be told; other pixels than the camera's, or an end marker too early, cannot.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import ExifTags, Image, ImageFile

from pmm_ray.runtime.core.errors import RowError
from pmm_ray.runtime.rows.wide_samples import grey_16_bits, is_16_bit_grey

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTATION = ExifTags.Base.Orientation

# what pixels are before they are decoded
_UNWRITTEN = 165
_END_OF_JPEG = b"\xff\xd9"
# how the pixels of a JPEG begin, with 1 to 4 colours
_SCANS = tuple(b"\xff\xda\x00" + bytes([6 + 2 * n, n]) for n in range(1, 5))


def load(image: ImageFile.ImageFile, data: bytes, uri: str) -> None:
    """Decode all pixels of an opened picture, the bytes of which are `data`.

    Raises:
        RowError: `decode`, where some are missing or, in a PNG, wrong.
    """
    if image.format == "PNG":
        _check_sums(data, uri)
        image.im = Image.new(image.mode, image.size, _UNWRITTEN).im
    image.load()
    if image.format == "PNG":
        _refuse_missing_rows(image, data, uri)
    elif image.format in ("JPEG", "MPO") and not data.endswith(_END_OF_JPEG):
        _refuse_zeros(image, data, uri)


def _check_sums(data: bytes, uri: str) -> None:
    """Refuse a PNG with a wrong checksum of its pixels; Pillow checks what is before them."""
    view, at, name = memoryview(data), len(PNG_SIGNATURE), b""
    while name != b"IEND" and at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        end = at + 8 + length
        if name == b"IDAT" and end + 4 <= len(data):
            (said,) = struct.unpack_from(">I", data, end)
            if zlib.crc32(view[at + 4 : end]) != said:
                text = f"damaged: its pixels at byte {at} have another checksum: copy the file anew"
                raise RowError("decode", text, uri)
        at = end + 4


def _refuse_missing_rows(image: Image.Image, data: bytes, uri: str) -> None:
    """Refuse a PNG whose last pixels were not decoded; Pillow refuses one that ends in a row."""
    width, height = image.size
    unwritten = Image.new(image.mode, (1, 1), _UNWRITTEN).getpixel((0, 0))
    # where lines are interlaced, those of the last row but one may come last
    ends = [image.getpixel((width - 1, y)) for y in (max(0, height - 2), height - 1)]
    if unwritten not in ends:
        return
    # they may be of that very value: then they are so whatever was there before
    with Image.open(io.BytesIO(data), formats=["PNG"]) as again:
        if not np.array_equal(np.asarray(again), np.asarray(image)):
            text = f"fewer rows of pixels than the {height} that it declares: save the file anew"
            raise RowError("decode", text, uri)


def _refuse_zeros(image: Image.Image, data: bytes, uri: str) -> None:
    """Refuse a JPEG without an end whose last bytes are zeros that were decoded as pixels."""
    if data.find(_END_OF_JPEG, max(0, *(data.rfind(scan) for scan in _SCANS))) >= 0:
        return
    # zeros behind the last pixel are no part of it
    with Image.open(io.BytesIO(data.rstrip(b"\0") + _END_OF_JPEG), formats=["JPEG"]) as whole:
        if not np.array_equal(np.asarray(whole), np.asarray(image)):
            raise RowError("decode", "truncated: it ends in zeros: copy the file anew", uri)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation 1..8 of a picture that is opened and not loaded; 1 where there is none.

    It is that of EXIF data before the pixels, where a header has it, too: in a PNG the chunk eXIf.
    A TIFF's own is applied when it is loaded.
    """
    exif = image.info.get("exif")
    if image.format == "TIFF" or not exif:
        return 1

    def tags() -> Image.Exif:
        read = Image.Exif()
        read.load(exif)
        return read

    return stated_orientation(tags)


def stated_orientation(tags: Callable[[], Image.Exif]) -> int:
    """The orientation 1..8 of tags that are read now; 1 where they have none or are damaged."""
    try:
        found = tags().get(ORIENTATION, 1)
    # Pillow's readers of tags raise nearly any type (struct.error, SyntaxError, ...); viewers show
    # a photograph with damaged tags as it is stored, and so do we
    except Exception:
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def to_rgb(image: Image.Image, uri: str) -> Image.Image:
    """A loaded picture in RGB, over white where it is transparent.

    Raises:
        RowError: `decode`, of 32-bit samples, and where nothing but white would be left.
    """
    if is_16_bit_grey(image):
        return Image.fromarray((grey_16_bits(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise RowError("decode", "32-bit samples have no agreed white: store 8 or 16 bits", uri)
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    if not rgba.getchannel("A").getextrema()[1]:
        text = (
            "transparent at every pixel, so that all of it is white: if the colours are the "
            "photograph's, `magick mogrify -alpha off FILE`"
        )
        raise RowError("decode", text, uri)
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
