"""Ground truth as the pipeline reads it: masks whose values are contiguous ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.labels import IGNORE_8BIT, LabelSpace, voc_palette
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.rows.images import (
    decode_mask,
    decode_rgba,
    encode_mask,
    is_colour,
    mask_palette,
    read_file,
)

MASK_SUFFIX = re.compile(r"[_.-](?:mask|masks|seg|label|labels|labelids|gt)$", re.IGNORECASE)
"""What tools add to the name of a photograph for its mask."""
# masks that are opened at an import: the first and last, and those between at equal steps
_LOOKED_INTO = 16
_Colour = tuple[int, ...]


class PaletteError(ValueError):
    """A mask whose palette says other classes than its values."""


def look_into(uris: Sequence[str]) -> dict[str, set[int]]:
    """The values of a few masks, at equal steps among them; of those that can be read.

    Args:
        uris: any number of masks.
    """
    places = np.linspace(0, len(uris) - 1, min(len(uris), _LOOKED_INTO)).round().astype(int)
    values: dict[str, set[int]] = {}
    for uri in (uris[place] for place in places):
        try:
            values[uri] = set(np.unique(decode_mask(read_file(uri), uri=uri)).tolist())
        # the stage that reads a mask makes an error row of what is wrong with it
        except (RowError, ValueError):
            continue
    return values


def check_truth_values(
    labelled: Mapping[str, set[int]], others: Mapping[str, set[int]], space: LabelSpace
) -> list[str]:
    """Refuse masks that say nothing but 0 and the ignore value.

    Args:
        labelled: values of masks of images with labels, by uri: some, see `look_into`.
        others: the same of images without.
        space: its contiguous ids are the values that mean something.

    Returns:
        What to say of values that mean nothing.

    Raises:
        CannotRunError: no mask holds a class, or none of those of images with labels.
    """
    text = f"and its like hold only 0 and {space.ignore}, and {space.ignore} means 'not labelled'"
    both = {**labelled, **others}
    notes = []
    if uri := _without_class(labelled, space) or _without_class(both, space):
        raise CannotRunError(f"{uri} {text}: save the class as 1 (its id), or leave the masks out")
    if uri := _without_class(others, space):
        notes.append(
            f"masks of images without labels: {uri} {text}: if it is the class, save it as its id"
        )
    values = set[int]().union(*both.values())
    strange = sorted(values - {*range(space.num_classes), space.ignore})
    if strange:
        notes.append(
            f"masks hold {strange[:10]}, which are no classes: 0..{space.num_foreground} and "
            f"{space.ignore} are; such an image is not scored"
        )
    return notes


def _without_class(masks: Mapping[str, set[int]], space: LabelSpace) -> str:
    """One of the masks with the ignore value, where not one has another one but 0; else empty."""
    if not set[int]().union(*masks.values()) <= {0, space.ignore}:
        return ""
    return next((uri for uri, values in masks.items() if space.ignore in values), "")


@dataclass(frozen=True)
class TruthMasks:
    """Reads the masks of a folder: of a class list's ids, or of the colours that it names.

    Args:
        space: the classes; its dataset ids are the values of the masks.
        colours: (r, g, b) by contiguous id.
        out: folder for the masks that are not yet of contiguous ids.
    """

    space: LabelSpace
    colours: tuple[_Colour, ...]
    out: str

    def contiguous(self, uri: str, image_id: str) -> str:
        """The uri of a mask whose values are contiguous ids: the file itself, if it has such.

        Raises:
            ValueError: a colour or value that no class has.
            RowError: a file that cannot be read.
            CannotRunError: the file would be overwritten by such a mask.
        """
        if self.colours and is_colour(uri):
            mask = self._of_colours(uri)
        elif self.space.dataset_ids != tuple(range(self.space.num_classes)):
            values = decode_mask(read_file(uri), uri=uri)
            try:
                mask = self.space.to_contiguous(values)
            except ValueError as error:
                raise ValueError(f"the mask {uri}: {error}, as the class list says") from error
        else:
            return uri
        folder = storage.join(self.out, "masks")
        if storage.is_below(uri, folder):
            raise CannotRunError(
                f"{uri} has to be written anew with other values, and {folder} is where such masks "
                "go: choose another --out"
            )
        place = storage.join(folder, f"{image_id}.png")
        storage.write_bytes(place, encode_mask(mask, self.space))
        return place

    def check_palette(self, uri: str) -> None:
        """Refuse an indexed mask with the colours of other classes than its values.

        The colours are those of the label map, else VOC's.

        Raises:
            PaletteError: it is such a mask.
            RowError: a file that cannot be read.
        """
        if self.colours:
            known = {colour: i for i, colour in enumerate(self.colours)}
            data = read_file(uri)
            if not is_colour(uri):
                _check_palette(data, uri, known, self.space, "the label map")
        else:
            check_voc_palette(read_file(uri), uri, self.space)

    def _of_colours(self, uri: str) -> NDArray[Any]:
        """The mask that colours mean, contiguous ids [H, W]."""
        known = {_code(colour): i for i, colour in enumerate(self.colours)}
        rgba = decode_rgba(read_file(uri), uri=uri)
        if rgba[..., 3].min() < 255:
            raise ValueError(
                f"the mask {uri} has transparent parts, whose colour no class has: fill them with "
                f"the background's, {self.colours[0]}, and save the mask without transparency"
            )
        codes = rgba[..., :3].astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        found, places = np.unique(codes, return_inverse=True)
        strange = [code for code in found.tolist() if code not in known]
        if strange:
            colours = [(code >> 16, code >> 8 & 255, code & 255) for code in strange[:5]]
            raise ValueError(f"the mask {uri} has the colours {colours}, which no class has")
        values = np.array([known[code] for code in found.tolist()], np.int64)
        return values[places.reshape(codes.shape)]


def check_voc_palette(data: bytes, uri: str, space: LabelSpace) -> None:
    """Refuse an indexed mask whose colours are those of VOC's palette, at other indices.

    Programs that make files smaller write such. Only colours of the space's dataset ids count.

    Raises:
        PaletteError: it is such a mask.
        RowError: `decode` or `too_large`.
    """
    palette = mask_palette(data, uri=uri)
    if palette is None:
        return
    values = (value for value in (*space.dataset_ids, IGNORE_8BIT) if value <= IGNORE_8BIT)
    known = {tuple(voc_palette()[value].tolist()): value for value in values}
    if any(known.get(tuple(c), i) != i for i, c in enumerate(palette.tolist())):
        _check_palette(data, uri, known, space, "VOC's palette")


def _check_palette(
    data: bytes, uri: str, known: Mapping[_Colour, int], space: LabelSpace, source: str
) -> None:
    """Refuse a mask whose colours are those of other classes than its indices.

    Args:
        known: value by colour.
        source: what says so, for the message.

    Raises:
        PaletteError: it is such a mask.
        ValueError: it is none.
    """
    used = [v for v in np.unique(decode_mask(data, uri=uri)).tolist() if v != IGNORE_8BIT]
    palette = mask_palette(data, uri=uri)
    if palette is None:
        palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    colours = palette.tolist()
    ids = [known.get(tuple(colours[v])) if v < len(colours) else None for v in used]
    # colours that several indices share tell nothing
    if None in ids or len(set(ids)) < len(used) or ids == used:
        return
    index, value = next((v, i) for v, i in zip(used, ids, strict=True) if v != i and i is not None)
    raise PaletteError(
        f"the indices {used[:5]} of the mask {uri} have the colours of the classes {ids[:5]} in "
        f"{source}, such as {meaning(index, space)} that of {meaning(value, space)}: write its "
        "values as the ids, or, if they are, without these colours"
    )


def meaning(value: int, space: LabelSpace) -> str:
    """A value of the masks of a source with what it means: `2 (cat)`."""
    if value in space.dataset_ids:
        return f"{value} ({space.names[space.dataset_ids.index(value)]})"
    return f"{value} ({'not labelled' if value == space.ignore else 'no class'})"


def _code(colour: _Colour) -> int:
    red, green, blue = colour
    return (red << 16) + (green << 8) + blue
