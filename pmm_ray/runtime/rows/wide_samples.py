"""Photographs with 16-bit samples, and those whose 10 or 12 bits are stored in 16."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, TiffImagePlugin

from pmm_ray.runtime.core.errors import RowError

_MOST_OF_12_BITS = 4095


def has_16_bits(image: ImageFile.ImageFile) -> bool:
    """Whether an image that is not loaded has 16-bit samples; of colours Pillow keeps 8 of them."""
    raw = [str(tile[3]) for tile in image.tile]
    return any(";16" in text or "65535" in text for text in raw) or is_16_bit_grey(image)


def is_16_bit_grey(image: Image.Image) -> bool:
    """Whether an image is grey, with 16-bit samples."""
    # Pillow brings a PGM to 0..65535, whatever its highest value is
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")


def grey_16_bits(image: Image.Image) -> NDArray[np.uint16]:
    """The samples of a loaded image that is grey, with 16 bits: uint16 [H, W], 0 is black."""
    grey = np.asarray(image).astype(np.uint16)
    # a TIFF's 0 may be white; Pillow inverts 8 bits only
    tags = image.tag_v2 if isinstance(image, TiffImagePlugin.TiffImageFile) else {}
    return ~grey if tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0 else grey


def refuse_black(image: Image.Image, uri: str) -> None:
    """Raises RowError of kind `decode` where no sample of a loaded 16-bit image is above 4095."""
    if is_16_bit_grey(image):
        black = int(np.asarray(image).max()) <= _MOST_OF_12_BITS
    else:
        colours = image.convert("RGB") if image.has_transparency_data else image
        highest = np.asarray(colours).max()
        black = int(highest) <= round(_MOST_OF_12_BITS / 257)
    if black:
        raise RowError(
            "decode",
            "16-bit samples of which none is above 4095, nearly black: if they have 12 bits, "
            "`magick mogrify -evaluate multiply 16 FILE` makes them 16 (10 bits: multiply 64); a "
            "photograph that is dark is to be saved with 8 bits",
            uri,
        )
