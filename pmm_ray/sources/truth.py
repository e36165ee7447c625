"""Ground truth that cannot mean what its values say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.labels import IGNORE_8BIT, LabelSpace
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.rows.images import decode_mask, decode_rgb, encode_mask, is_colour, read_file

# masks that are opened at an import: the first and last, and those between at equal steps
_LOOKED_INTO = 16


def check_truth_values(uris: Sequence[str], space: LabelSpace) -> str:
    """Refuse masks that say nothing but 0 and the ignore value, of images that have labels.

    Args:
        uris: masks of images with labels, any number: a few are opened.
        space: what their values mean.

    Returns:
        What to say of values that mean nothing; empty where there are none.

    Raises:
        CannotRunError: not one of them holds a class.
    """
    step = max(1, len(uris) // _LOOKED_INTO)
    values: set[int] = set()
    for uri in uris[::step][:_LOOKED_INTO]:
        try:
            values |= set(np.unique(decode_mask(read_file(uri), uri=uri)).tolist())
        # the stage that reads a mask makes an error row of what is wrong with it
        except (RowError, ValueError):
            continue
    if space.ignore in values and values <= {0, space.ignore}:
        raise CannotRunError(
            f"{uris[0]} and its like hold only 0 and {space.ignore}, and {space.ignore} means 'not "
            "labelled': save the class as 1 (its id), or leave the masks out"
        )
    strange = sorted(values - {*range(space.num_classes), space.ignore})
    if not strange:
        return ""
    return (
        f"masks hold {strange[:10]}, which are no classes: 0..{space.num_foreground} and "
        f"{space.ignore} are; such an image is not scored"
    )


@dataclass(frozen=True)
class ColourMasks:
    """Turns masks of colours into indexed ones, by the colours that a class list names.

    Args:
        space: the classes.
        colours: (r, g, b) by contiguous id.
        out: folder for the indexed masks.
    """

    space: LabelSpace
    colours: tuple[tuple[int, ...], ...]
    out: str

    def indexed(self, uri: str, image_id: str) -> str:
        """The uri of a mask whose values are ids: the file itself unless it is one of colours.

        Raises:
            ValueError: a colour that no class has.
            RowError: a file that cannot be read.
        """
        if not self.colours:
            return uri
        data = read_file(uri)
        known = {(r << 16) + (g << 8) + b: i for i, (r, g, b) in enumerate(self.colours)}
        rgb = decode_rgb(data, apply_exif=False, uri=uri).astype(np.int32)
        codes = rgb @ np.array([1 << 16, 1 << 8, 1], np.int32)
        if not is_colour(uri):
            _check_palette(data, uri, codes, known)
            return uri
        found, places = np.unique(codes, return_inverse=True)
        strange = [(int(c) >> 16, int(c) >> 8 & 255, int(c) & 255) for c in found]
        strange = [c for c, code in zip(strange, found.tolist(), strict=True) if code not in known]
        if strange:
            raise ValueError(f"the mask {uri} has the colours {strange[:5]}, which no class has")
        values = np.array([known[code] for code in found.tolist()], np.int64)
        mask = values[places.reshape(codes.shape)]
        place = storage.join(self.out, "masks", f"{image_id}.png")
        storage.write_bytes(place, encode_mask(mask, self.space))
        return place


def _check_palette(data: bytes, uri: str, codes: NDArray[Any], known: Mapping[int, int]) -> None:
    """Refuse an indexed mask whose colours are those of other classes than its indices.

    Programs that make files smaller write masks of colours so.

    Args:
        codes: the colour of each pixel, [H, W].
        known: class by colour.

    Raises:
        ValueError: it is such a mask, or none.
    """
    mask = decode_mask(data, uri=uri)
    labelled = mask != IGNORE_8BIT
    pairs = np.unique(np.stack([mask[labelled], codes[labelled]]), axis=1)
    used = pairs[0].tolist()
    ids = [known.get(code) for code in pairs[1].tolist()]
    # colours that several indices share tell nothing
    if None not in ids and len(set(ids)) == len(used) and ids != used:
        raise ValueError(
            f"the indices {used[:5]} of the mask {uri} have the colours of the classes {ids[:5]} "
            "in the label map: write its values as the ids, or as RGB colours"
        )
