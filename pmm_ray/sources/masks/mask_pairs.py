"""Ground truth of masks or images: paired by paths, by names alone only where these are unique."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa
import pyarrow.compute as pc

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import TableIndex
from pmm_ray.runtime.rows.images import IMAGE_SUFFIXES
from pmm_ray.sources.importing.photographs import LEFT_OUT
from pmm_ray.sources.masks.mask_files import MaskFiles, find_masks, write_listing
from pmm_ray.sources.reading.names import (
    NameIndex,
    Pairs,
    has_ending,
    pair,
    safe_image_id,
    stem_path,
)

# what VOC's lists have behind an id, whatever the images are called
_LABELS = ("-1", "0", "1")


@dataclass(frozen=True)
class Matched:
    """Two sides, paired.

    `masks` and `truth` are indices of the pairs' common ids; `lacking` says by id what one side
    lacks, `unsure` by id which masks may be meant, `unasked` are ids that the list of images does
    not name; `notes` count pairs found by another rule.
    """

    masks: TableIndex
    truth: TableIndex
    image_ids: tuple[str, ...]
    lacking: dict[str, str]
    unsure: dict[str, str]
    unasked: tuple[str, ...]
    notes: tuple[str, ...]
    found: int
    """What was met, counted from both sides: a mask and its truth are one, as is a line of the
    list that names neither."""


def match_masks(
    masks: MaskFiles, truth: MaskFiles, listings: tuple[str, str], wanted: Sequence[str] | None
) -> Matched:
    """Pair masks with their ground truth.

    Args:
        masks, truth: the two sides.
        listings: Parquet files to write the pairs' files to, of masks and truth.
        wanted: lines of a list of images that count: a name, or VOC's `ID ...` and `PATH PATH`;
            None: all.

    Raises:
        CannotRunError: a line that may mean several masks, or holds several ids.
    """
    pairs = _pair_sides(masks, truth)
    lacking: dict[str, str] = {}
    found: dict[str, int] = {}
    kept = {*masks.names, *truth.names}
    met = len(masks.names) + len(truth.names) - len(pairs.of)
    if wanted is not None:
        for side in (masks, truth):
            _refuse_several_ids(wanted, set(side.names))
        kept, nowhere, found = _select(wanted, (NameIndex(masks.names), NameIndex(truth.names)))
        lacking |= {safe_image_id(x): f"the list names {x!r}: neither side has it" for x in nowhere}
        met += len(lacking)
    # a table's ids are fixed, a tree's are ours to give
    ids = {m: safe_image_id(t if truth.is_table else m) for m, t in pairs.of.items()}
    of = {m: t for m, t in pairs.of.items() if m in kept or t in kept}
    paired = (set(pairs.of), set(pairs.of.values()))
    unasked = [ids[m] for m in pairs.of if m not in of]
    rivals = {t: m for m, several in pairs.several.items() for t in several}
    unsure: dict[str, str] = {}
    sides: tuple[tuple[MaskFiles, MaskFiles, str, Mapping[str, str | Sequence[str]]], ...] = (
        (masks, truth, "ground truth", pairs.several),
        (truth, masks, "mask", rivals),
    )
    for (side, other, what, several), known in zip(sides, paired, strict=True):
        for name in side.names:
            image_id = safe_image_id(name)
            if name in known:
                continue
            if name not in kept:
                unasked.append(image_id)
            elif name in several:
                unsure[image_id] = _several(name, several[name])
            else:
                lacking[image_id] = f"no {what} of that name in {other.place}"
    masks_index, truth_index = (
        side.index.select([ids[m] for m in of])
        if side.is_table
        else write_listing(listing, {ids[m]: side.files[(m, t)[number]] for m, t in of.items()})
        for number, (side, listing) in enumerate(zip((masks, truth), listings, strict=True))
    )
    notes = (
        *(f"pairs found {rule}: {count}" for rule, count in pairs.how.items()),
        *(f"names of the list found {rule}: {count}" for rule, count in found.items()),
    )
    image_ids = tuple(sorted(ids[m] for m in of))
    return Matched(masks_index, truth_index, image_ids, lacking, unsure, tuple(unasked), notes, met)


def _several(name: str, others: str | Sequence[str]) -> str:
    listed = others if isinstance(others, str) else ", ".join(others)
    return (
        f"{name} may go with {listed}, and more than one fits: make the paths of both sides alike"
    )


def _pair_sides(masks: MaskFiles, truth: MaskFiles) -> Pairs:
    """The pairs of two sides; where one is a table, first by the ids made of the other's paths."""
    of: dict[str, str] = {}
    if masks.is_table != truth.is_table:
        tree, table = (truth, set(masks.names)) if masks.is_table else (masks, set(truth.names))
        made = {safe_image_id(name): name for name in tree.names}
        both = {image_id: name for image_id, name in made.items() if image_id in table}
        of = both if masks.is_table else {name: image_id for image_id, name in both.items()}
    taken = set(of.values())
    rest = pair([n for n in masks.names if n not in of], [n for n in truth.names if n not in taken])
    return Pairs(of | rest.of, rest.how, rest.several)


def _refuse_several_ids(lines: Sequence[str], names: set[str]) -> None:
    """What stands behind an id is not read: it may be labels, but no further ids of one side."""
    for line in lines:
        first, *others = (_stem(word) for word in line.split())
        further = [word for word in others if word in names and word not in (first, *_LABELS)]
        if first in names and further and _stem(line) not in names:
            raise CannotRunError(
                f"the list: the line {line!r} holds several ids ({first}, {further[0]}): write one "
                "id a line"
            )


def _select(
    wanted: Sequence[str], sides: Sequence[NameIndex]
) -> tuple[set[str], list[str], dict[str, int]]:
    """The names that the lines of a list mean, the lines that mean none, and how many were found
    by another rule than as they are written."""
    kept: set[str] = set()
    how_of: dict[str, str] = {}
    for index in sides:
        found, unsure = index.find_all(wanted, _spellings)
        if why := next((one.why for one in unsure.values() if one.why), ""):
            raise CannotRunError(f"the list: {why}")
        for line, hit in found.items():
            kept.add(hit.name)
            how_of[line] = how_of.get(line) or hit.how
    how = Counter(filter(None, how_of.values()))
    return kept, [line for line in wanted if line not in how_of], dict(how)


def _spellings(line: str) -> list[str]:
    """A line as a whole, then by its first word; without an ending, and as an image id."""
    ways = []
    for text in (line, line.split()[0]):
        stem = _stem(text)
        ways += [text, stem, safe_image_id(stem)]
    return list(dict.fromkeys(ways))


def _stem(text: str) -> str:
    return stem_path(text) if has_ending(text, IMAGE_SUFFIXES) else text


@dataclass(frozen=True)
class Truth:
    """Where the ground truth of each image is.

    Attributes:
        index: of all images: a row of a masks table or of a list of files; of an image without
            truth a row whose `uri` is empty.
        fingerprint: of the masks, see `MaskFiles`.
        place: where they are.
        count: images that have one.
        is_table: whether it is a table of ours, which holds contiguous ids.
        wrong: by the id of an image, why a mask that may be its truth is none that counts: it
            cannot be opened, is there twice, or fits several images.
        notes: count pairs found by another rule than one name, and results of ours among the files;
            name folders that cannot be listed.
    """

    index: TableIndex
    fingerprint: str
    place: str
    count: int
    is_table: bool
    wrong: dict[str, str]
    notes: tuple[str, ...]


def find_truth(place: str, images: TableIndex, out: str) -> Truth:
    """Pair the images of a manifest with masks.

    Args:
        place: a masks table, or a folder of PNG files.
        images: index of the manifest.
        out: folder that gets the lists of files; what is below it is no truth.

    Raises:
        CannotRunError: no masks, or not one of an image.
    """
    truth = find_masks(place, storage.join(out, "truth-files.parquet"))
    side = MaskFiles(place, True, images, "")
    listings = (storage.join(out, "unused"), storage.join(out, "truth-pairs.parquet"))
    matched = match_masks(side, truth, listings, None)
    if not matched.image_ids:
        raise CannotRunError(
            f"no image has ground truth of its name in {truth.place}: there are images such as "
            f"{sorted(images.image_ids)[:3]} and truth such as {sorted(truth.names)[:3]}"
        )
    known = matched.truth.locations()
    lacking = [image_id for image_id in images.image_ids if image_id not in known]
    none = write_listing(storage.join(out, "no-truth.parquet"), dict.fromkeys(lacking, ""))
    wrong = {i: text for i, text in matched.unsure.items() if i in set(lacking)}
    faults = {
        stem_path(uri, truth.place): f"{storage.printable(uri)}: {text}"
        for uri, _, text in truth.faults("ground truth")
    }
    faulty = _pair_sides(side, replace(truth, is_table=False, files=faults))
    wrong |= {image_id: faults[name] for image_id, name in faulty.of.items()}
    folders = [
        f"{storage.printable(entry.uri)}: {entry.fault}" for entry in truth.broken if entry.folder
    ]
    index = _joined(matched.truth, none)
    why = LEFT_OUT["results"]
    ours = [name for name in truth.left_out.get(why, ()) if has_ending(name, ".png")]
    notes = [f"left out as {why}: {len(ours)} masks, such as {ours[0]}"] if ours else []
    return Truth(
        index,
        truth.fingerprint,
        truth.place,
        len(known),
        truth.is_table,
        wrong,
        (*matched.notes, *folders, *notes),
    )


def _joined(first: TableIndex, second: TableIndex) -> TableIndex:
    """Two indices as one."""
    moved = pc.add(second.table.column("part"), pa.scalar(len(first.parts), pa.int32()))
    there = second.table.set_column(1, "part", moved)
    return TableIndex((*first.parts, *second.parts), pa.concat_tables([first.table, there]))
