"""Photographs and masks as bytes and arrays: the one place that decodes and encodes them.

Legend: H, W = height, width in pixels.

Pillow decodes, not OpenCV: both give the same pixels for a JPEG (both use libjpeg-turbo; tested
on real photographs), but OpenCV fills the missing rows of a file that was cut with grey and says
nothing. What Pillow does not say of damaged files either, `pixels` finds as far as it can be told.
"""

from __future__ import annotations

import importlib
import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from pmm_ray.labels import IGNORE_16BIT, LabelSpace
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError, MayPassError, RowError
from pmm_ray.runtime.rows.pixels import ORIENTATION, PNG_SIGNATURE, load, orientation, to_rgb
from pmm_ray.runtime.rows.wide_samples import has_16_bits, refuse_black

# Pillow's own limit of a decompression bomb; a larger `max_pixels` has no effect
MAX_PIXELS = 178_956_970
# the headers of nearly all photographs are in their first bytes; the rest need not be read
HEAD_BYTES = 256 * 1024

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "MPO": (".mpo",),  # several JPEGs in one file, the first counts; phones write them as .jpg
    "PNG": (".png", ".apng"),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "JPEG2000": (".jp2", ".j2k", ".jpx"),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
    "JXL": (".jxl",),
}
"""Formats that are read, by Pillow's names, and their endings; the first frame counts. No other
format is tried, whatever an ending says: Pillow hands PostScript to another program."""

EXTRAS = {"HEIF": "pillow_heif", "JXL": "pillow_jxl"}
"""Formats that need a package of the optional extra `photos`."""

UNREAD = (
    *(".cr2", ".cr3", ".crw", ".nef", ".nrw", ".arw", ".srf", ".sr2", ".dng", ".orf", ".raf"),
    *(".rw2", ".rwl", ".raw", ".pef", ".srw", ".3fr", ".iiq", ".x3f", ".gpr", ".mrw", ".kdc"),
    *(".dcr", ".erf", ".mef"),
    *(".psd", ".svg", ".eps", ".pdf", ".tga", ".exr", ".hdr", ".ico", ".dcm"),
)
"""Endings of pictures that are not read: such a file is an error row, never passed over."""

IMAGE_SUFFIXES = (*(e for endings in FORMATS.values() for e in endings), *UNREAD)
"""Endings, in any case, by which a file of a folder counts as a photograph."""

CONVERT = "convert it to JPEG or PNG, for example `magick mogrify -format jpg FILE`"

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
_JXL_SIGNATURES = (b"\xff\n", b"\x00\x00\x00\x0cJXL \r\n\x87\n")

# of the eight orientations, those that exchange height and width begin here
_FIRST_ON_ITS_SIDE = 5
_END_BYTES = 4096
# a PNG begins with its signature and the IHDR chunk: width, height, bit depth, colour type, ...
_PNG_SIZE_AT, _PNG_BIT_DEPTH_AT, _PNG_COLOUR_TYPE_AT, _PNG_HEADER_BYTES = 16, 24, 25, 33
_COLOUR_TYPES = {2: "RGB", 4: "grey with alpha", 6: "RGBA"}


def decode_rgb(
    data: bytes, *, apply_exif: bool, max_pixels: int = MAX_PIXELS, uri: str = ""
) -> NDArray[np.uint8]:
    """The pixels of an encoded photograph.

    Transparent pixels are composited over white, as a viewer shows them: what an image hides
    below its alpha is no part of the photograph. Where all are, nothing of it is left. A TIFF's own
    orientation is always applied; it is part of that format.

    16-bit channels keep their high byte, as OpenCV does. Where none is above 4095 that would be
    black, and the photograph is refused: it has 10 or 12 bits, or it is dark, which one photograph
    does not tell.

    Args:
        data: the bytes of a JPEG, PNG, BMP, TIFF, WebP or another file that Pillow reads.
        apply_exif: rotate and flip as the EXIF orientation says (folders), or not (VOC, COCO:
            their masks were made without).
        max_pixels: refuse images that declare more, before any pixel is decoded.
        uri: named in errors.

    Returns:
        uint8 [H, W, 3], RGB, 0..255, C-contiguous, writable.

    Raises:
        RowError: `decode` (cut short, damaged as far as `pixels` can tell, empty, not an image,
            32-bit samples, 16-bit ones up to 4095, transparent everywhere), or `too_large`.
    """
    with _reading(uri), _open(data, max_pixels, uri) as image:
        turn = orientation(image) if apply_exif else 1
        wide = has_16_bits(image)
        load(image, data, uri)
        if wide:
            refuse_black(image, uri)
        rgb = to_rgb(image, uri)
        # nothing but the orientation: Pillow would stumble over any other tag that is damaged
        rgb.info.clear()
        rgb.getexif()[ORIENTATION] = turn
        return np.array(ImageOps.exif_transpose(rgb), np.uint8)


class Header(NamedTuple):
    """What the first bytes of a photograph say.

    `size` is (height, width) as `decode_rgb` returns them, px, `stored_size` before it applies the
    EXIF `orientation`, 1..8, 1 where there is none, or leaves it alone; `content` is a number that
    copies of a file share, and hardly ever two others.
    """

    size: tuple[int, int]
    stored_size: tuple[int, int]
    orientation: int
    content: int


def image_header(
    data: bytes, *, apply_exif: bool, max_pixels: int = MAX_PIXELS, uri: str = ""
) -> Header:
    """The header of an encoded photograph.

    Args:
        data: the file's bytes, or at least those of its header.
        apply_exif, max_pixels, uri: as for `decode_rgb`.

    Raises:
        RowError: `decode` (no readable header) or `too_large`.
    """
    with _reading(uri), _open(data, max_pixels, uri) as image:
        stored = image.size[::-1]
        turn = orientation(image)
    size = stored[::-1] if apply_exif and turn >= _FIRST_ON_ITS_SIDE else stored
    # of the end, where even files of one length and one camera differ
    content = len(data) << 32 | zlib.crc32(data[-_END_BYTES:])
    return Header(size, stored, turn, content)


def read_image(uri: str, *, apply_exif: bool, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """`decode_rgb` of a file. Raises RowError, also of kind `missing` where there is no file."""
    return decode_rgb(read_file(uri), apply_exif=apply_exif, max_pixels=max_pixels, uri=uri)


def read_header(uri: str, *, apply_exif: bool, max_pixels: int = MAX_PIXELS) -> Header:
    """`image_header` of a file, of which only the first bytes are read where they suffice.

    Raises:
        RowError: `missing`, `decode` or `too_large`.
    """
    head = read_file(uri, HEAD_BYTES)
    try:
        return image_header(head, apply_exif=apply_exif, max_pixels=max_pixels, uri=uri)
    except RowError as error:
        if error.kind == "too_large" or len(head) < HEAD_BYTES:
            raise
        # a long colour profile, or a TIFF whose directory is at its end
        return image_header(read_file(uri), apply_exif=apply_exif, max_pixels=max_pixels, uri=uri)


@contextmanager
def opened(data: bytes, *, uri: str = "") -> Iterator[ImageFile.ImageFile]:
    """A photograph whose header is read, for the length of a `with` block.

    Raises:
        RowError: it has no readable header; also of whatever Pillow raises in the block.
    """
    with _reading(uri), _open(data, MAX_PIXELS, uri) as image:
        yield image


def encode_rgb(rgb_HW3: NDArray[np.uint8]) -> bytes:
    """A photograph, uint8 [H, W, 3] RGB, as the bytes of a PNG."""
    return _png(Image.fromarray(rgb_HW3))


def encode_mask(mask_HW: NDArray[Any], label_space: LabelSpace) -> bytes:
    """A mask as PNG bytes; equal masks give equal bytes.

    Args:
        mask_HW: integers [H, W], contiguous ids 0..C or `label_space.ignore`.
        label_space: its palette is written while the mask fits in 8 bits.

    Returns:
        An 8-bit indexed PNG, or 16-bit grey when C > 254.

    Raises:
        ValueError: another shape, an empty mask, or values outside.
    """
    if mask_HW.ndim != 2 or mask_HW.size == 0 or mask_HW.dtype.kind not in "ui":
        raise ValueError(f"a mask is integers [H, W], got {mask_HW.dtype} {list(mask_HW.shape)}")
    valid = (mask_HW >= 0) & (mask_HW <= label_space.num_foreground)
    if not np.all(valid | (mask_HW == label_space.ignore)):
        outside = np.unique(mask_HW[~valid & (mask_HW != label_space.ignore)])[:10].tolist()
        raise ValueError(
            f"mask values {outside} are outside 0..{label_space.num_foreground} "
            f"and {label_space.ignore}"
        )
    image = Image.fromarray(np.ascontiguousarray(mask_HW, label_space.mask_dtype))
    if label_space.ignore != IGNORE_16BIT:
        image.putpalette(label_space.palette.tobytes())
    return _png(image)


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def decode_mask(data: bytes, *, uri: str = "") -> NDArray[Any]:
    """The values of a mask file, exactly: palette indices or grey levels, never colours.

    Args:
        data: an indexed or grey PNG of 1, 2, 4, 8 or 16 bits.
        uri: named in errors.

    Returns:
        uint8 [H, W], or uint16 [H, W] for 16 bits; C-contiguous, writable.

    Raises:
        ValueError: not a PNG, or a PNG of colours; the message says what to do.
        RowError: `decode` or `too_large`.
    """
    _check_mask_format(data, uri)
    with _reading(uri), _open(data, MAX_PIXELS, uri) as image:
        load(image, data, uri)
        values = np.array(image)
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if image.mode == "L":
        # Pillow stretches 2- and 4-bit grey to 0..255; a mask needs the stored values
        depth = data[_PNG_BIT_DEPTH_AT]
        return values // np.uint8(255 // (2**depth - 1))
    return values.astype(np.uint16) if image.mode == "I;16" else values


def decode_rgba(data: bytes, *, uri: str = "") -> NDArray[np.uint8]:
    """The colours of a mask file and how opaque they are, uint8 [H, W, 4]; of 16 bits the high 8.

    Args:
        data: the bytes of any picture.
        uri: named in errors.

    Raises:
        RowError: `decode` or `too_large`.
    """
    with _reading(uri), _open(data, MAX_PIXELS, uri) as image:
        load(image, data, uri)
        return np.array(image.convert("RGBA"))


def mask_palette(data: bytes, *, uri: str = "") -> NDArray[np.uint8] | None:
    """The colours of an indexed mask by index, without its pixels.

    Args:
        data: the bytes of an image, or at least those of its header.
        uri: named in errors.

    Returns:
        uint8 [N, 3] RGB, at most 256 of them; None of an image that is not indexed.

    Raises:
        RowError: `decode` or `too_large`.
    """
    with _reading(uri), _open(data, MAX_PIXELS, uri) as image:
        colours = image.getpalette("RGB") if image.mode == "P" else None
    return None if colours is None else np.array(colours, np.uint8).reshape(-1, 3)


def read_mask_size(uri: str) -> tuple[int, int]:
    """(height, width) of a mask file that `decode_mask` would accept, from its header only.

    Raises:
        ValueError: as `decode_mask`.
        RowError: `missing` or `decode`.
    """
    header = read_file(uri, _PNG_HEADER_BYTES)
    _check_mask_format(header, uri)
    width, height = struct.unpack(">II", header[_PNG_SIZE_AT:_PNG_BIT_DEPTH_AT])
    return height, width


def is_colour(uri: str) -> bool:
    """Whether a file is a PNG of colours, by its header. Raises RowError of kind `missing`."""
    header = read_file(uri, _PNG_HEADER_BYTES)
    kind = header[_PNG_COLOUR_TYPE_AT : _PNG_COLOUR_TYPE_AT + 1]
    return header.startswith(PNG_SIGNATURE) and kind in (b"\x02", b"\x06")


def _check_mask_format(data: bytes, uri: str) -> None:
    if not data:
        raise RowError("decode", "the file is empty (0 bytes)", uri)
    name = f" {uri}" if uri else ""
    if not data.startswith(PNG_SIGNATURE):
        raise ValueError(f"the mask{name} is not a PNG: masks are indexed or grey PNG files")
    if len(data) < _PNG_HEADER_BYTES:
        raise RowError("decode", "the file ends within its header", uri)
    if kind := _COLOUR_TYPES.get(data[_PNG_COLOUR_TYPE_AT]):
        raise ValueError(
            f"the mask{name} is {kind}: colours cannot be read as class ids; "
            "save it as an indexed (palette) or 8-bit grey PNG whose values are the ids"
        )


def read_file(uri: str, limit: int | None = None) -> bytes:
    """The whole file, or its first bytes. Raises RowError of kind `missing`."""
    try:
        return storage.read_bytes(uri, limit)
    except FileNotFoundError as error:
        raise RowError("missing", "the file does not exist", uri) from error
    except MayPassError:
        raise
    except (OSError, CannotRunError) as error:
        raise RowError("missing", f"the file cannot be read: {error}", uri) from error


@contextmanager
def _reading(uri: str) -> Iterator[None]:
    """Turns whatever a decoder raises into a RowError that names the file."""
    try:
        with warnings.catch_warnings():
            # of large sizes (the limit is `max_pixels`) and of damaged metadata, without a name
            warnings.simplefilter("ignore")
            yield
    except RowError:
        raise
    except UnidentifiedImageError as error:
        text = f"not an image, or of a format that is not read: {CONVERT}"
        raise RowError("decode", text, uri) from error
    except (Image.DecompressionBombError, MemoryError) as error:
        raise RowError("too_large", f"too large to decode: {error}", uri) from error
    # Pillow's parsers raise nearly any type on a damaged file: struct.error, SyntaxError, ...
    except Exception as error:
        raise RowError("decode", f"cannot be decoded: {error}", uri) from error


def _open(data: bytes, max_pixels: int, uri: str) -> ImageFile.ImageFile:
    """The image with its header read and its declared size checked."""
    if not data:
        raise RowError("decode", "the file is empty (0 bytes)", uri)
    if stand_in := storage.stand_in(data):
        raise RowError("decode", stand_in, uri)
    kind = _sniff(data)
    if kind is not None and kind not in Image.OPEN:
        _load_opener(kind, uri)
    Image.init()
    image = Image.open(io.BytesIO(data), formats=[name for name in FORMATS if name in Image.OPEN])
    width, height = image.size
    if width * height > max_pixels:
        image.close()
        message = f"declares {width} x {height} pixels, more than the {max_pixels} allowed"
        raise RowError("too_large", message, uri)
    return image


def _sniff(data: bytes) -> str | None:
    """`HEIF` or `JXL` if the content is that, whatever the file is called."""
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS and b"avif" not in data[8:64]:
        return "HEIF"
    return "JXL" if data.startswith(_JXL_SIGNATURES) else None


def _load_opener(kind: str, uri: str) -> None:
    """Make Pillow know a format of the extra. Raises RowError where its package is missing."""
    module = EXTRAS[kind]
    try:
        package = importlib.import_module(module)
    except ImportError as error:
        name = {"HEIF": "HEIC", "JXL": "JPEG XL"}[kind]
        text = f"a {name} photograph: pip install 'pmm-ray[photos]' on every node, or {CONVERT}"
        raise RowError("decode", text, uri) from error
    if kind == "HEIF":
        package.register_heif_opener()
