"""Pictures among photographs that may be their masks, by their names: nothing is opened here.

a.jpg   a_mask.png, a_segmentation_1.jpg, mask_a.png, a.jpg.png, a_gtFine_labelIds.png
image_1.jpg   mask_1.png            1_sat.jpg   1_mask.png
x/a.jpg   x_masks/a.jpg, any/a.png
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from pmm_ray.runtime.rows.images import IMAGE_SUFFIXES
from pmm_ray.sources.reading.names import ending_of, has_ending, stem_path

_MASK = (
    "masks?|segm?|segmentations?|gt|gt_?fine|gt_?coarse|ground[_ ]?truth|label_?(?:train_?)?ids|"
    "trimaps?|mattes?|anno|annot|annotations?|lesion|manual"
)
# words of photographs, too
_OF_A_PNG = f"{_MASK}|labels?|instances?|instance_?ids|semantic|colou?r"
_PHOTO = "image|img|im|photo|picture|pic|rgb|sat|orig|original|leftimg8bit|training|test"


def _affixed(words: str) -> re.Pattern[str]:
    """Words at the beginning of a name or at its end, there with numbers between and behind."""
    return re.compile(
        rf"^(?:{words})(?:[ _.-]+|(?=\d)|$)|[ _.-]+(?:{words})(?:[ _.-]*(?:{words}|[\d()]))*$"
    )


_MASK_NAME, _PNG_NAME, _PHOTO_NAME = map(_affixed, (_MASK, _OF_A_PNG, _PHOTO))
_MASK_FOLDER = re.compile(rf"(?<![a-z])(?:{_MASK}|labels?|segmentation\w*)(?![a-z])")
_HINT = re.compile("mask|seg|gt|truth|label|trimap|matte|anno|lesion|manual|inst|sem|col")


def called_as_masks(folder: str) -> bool:
    """Whether the name of a folder, or of one in its path, says that masks are in it."""
    return _MASK_FOLDER.search(folder.lower()) is not None


class Lookalike(NamedTuple):
    """A picture that may be the mask of a photograph; `named` if its name, or that of its folder,
    says so."""

    name: str
    photograph: str
    named: bool


def lookalikes(names: Iterable[str]) -> list[Lookalike]:
    """The pictures that may be masks of others, each with one of these.

    Args:
        names: of all pictures, paths below one folder.
    """
    pictures = [_picture(name) for name in names]
    plain = [one for one in pictures if one.bare == one.stem]
    outside = {one.stem: one.name for one in plain if not one.in_masks}
    no_png = {one.stem: one.name for one in plain if not has_ending(one.name, ".png")}
    suspects = len(plain) < len(pictures)
    photographs = {_key(one): one.name for one in plain} if suspects else {}
    found = []
    for one in pictures:
        if one.bare != one.stem:
            other = photographs.get(_key(one))
        elif one.in_masks:
            other = outside.get(one.stem)
        else:
            # beside it they are two photographs of one name
            other = no_png.get(one.stem) if one.folder and has_ending(one.name, ".png") else None
        if other is not None:
            found.append(Lookalike(one.name, other, one.named))
    return found


class _Picture(NamedTuple):
    """`stem` is the name without its ending, `bare` that without all that tools add for a mask."""

    name: str
    folder: str
    stem: str
    bare: str
    in_masks: bool = False
    named: bool = False


def _picture(name: str) -> _Picture:
    folder, _, stem = stem_path(name).rpartition("/")
    bare = _without_ending(stem)
    # patterns are of small letters: in any case they take ten times as long
    if not _HINT.search(name.lower()):
        return _Picture(name, folder, stem, bare)
    in_masks = called_as_masks(folder)
    small = bare.lower()
    named = in_masks or _MASK_NAME.search(small) is not None
    pattern = _PNG_NAME if has_ending(name, ".png") else _MASK_NAME
    rest = _without_ending(pattern.sub("", small))
    return _Picture(name, folder, stem, stem if rest == stem.lower() else rest, in_masks, named)


def _key(picture: _Picture) -> str:
    """What a photograph and its masks have in common: of image.png and mask.png their folder."""
    return _PHOTO_NAME.sub("", picture.bare.lower()) or f"{picture.folder}/"


def _without_ending(stem: str) -> str:
    ending = ending_of(stem) if "." in stem else ""
    return stem[: -len(ending)] if ending and ending in IMAGE_SUFFIXES else stem
