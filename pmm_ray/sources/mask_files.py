"""Masks that somebody made: a masks table of ours, or a tree of PNG files; nothing is opened here.

A tree's masks are known by their paths below it, without the ending. `match_masks` pairs two sides
by these, and by names alone only where they are unique.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.files import RECORD_FILE
from pmm_ray.runtime.core.index import TableIndex, index_file, scan_parts
from pmm_ray.runtime.core.manifest import manifest_near
from pmm_ray.runtime.core.storage import Entry
from pmm_ray.runtime.rows.images import IMAGE_SUFFIXES
from pmm_ray.sources.names import (
    Found,
    NameIndex,
    Pairs,
    beaten,
    has_ending,
    is_hidden,
    pair,
    safe_image_id,
    stem_path,
)
from pmm_ray.sources.photographs import beside_table

FILES = tables.columns(image_id=tables.TEXT, uri=tables.TEXT)
_COLUMN = "mask_png"
# what VOC's lists have behind an id, whatever the images are called
_LABELS = ("-1", "0", "1")


@dataclass(frozen=True)
class MaskFiles:
    """Where masks are.

    `index` says where each image's mask is: a row of a masks table, or a row that names a file.
    `fingerprint` changes when a mask is added, removed or written again (sizes and times).
    `files` gives the uri of each path without its ending, empty for a table. `repeated` are files
    whose path another file has already, `broken` what cannot be opened and why, `left_out` the
    names of all other files by reason. `space` is the label space of the manifest beside them, if
    there is one.
    """

    place: str
    is_table: bool
    index: TableIndex
    fingerprint: str
    files: Mapping[str, str] = field(default_factory=dict)
    repeated: tuple[str, ...] = ()
    broken: tuple[Entry, ...] = ()
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    space: LabelSpace | None = None

    @property
    def names(self) -> list[str]:
        """What the masks are known by: ids of a table, paths of a tree."""
        return list(self.files) if not self.is_table else self.index.image_ids

    @property
    def others(self) -> int:
        """Files that were met, beside those of `names`."""
        passed = sum(len(names) for names in self.left_out.values())
        return len(self.repeated) + len(self.broken) + passed


def find_masks(place: str, listing: str) -> MaskFiles:
    """Find masks without reading them.

    Args:
        place: a masks table (a stage's folder, or one Parquet file), or a folder of PNG files,
            which may be in subfolders.
        listing: Parquet file to write the list of PNG files to; not written for a table.

    Raises:
        CannotRunError: nothing there, no masks in it, a run folder (which has several tables), or
            a table without masks.
    """
    place = storage.absolute(place)
    if not storage.exists(place):
        raise CannotRunError(f"nothing is at {place}")
    if has_ending(place, ".parquet"):
        _check_table([place])
        with _readable(place):
            index = index_file(place)
        if len(set(index.image_ids)) < len(index):
            raise CannotRunError(f"{place} holds several masks of one image id: which one counts?")
        return MaskFiles(place, True, index, _fingerprint([place]), space=_space(place))
    parts = [uri for uri in storage.list_files(place, ".parquet") if _base(uri).startswith("part-")]
    if parts:
        _check_table(parts)
        index, broken = scan_parts(place)
        if broken:
            raise CannotRunError(f"{broken[0]} cannot be read: run the stage that made it again")
        others = {"beside a masks table": beside_table(place, parts)}
        fingerprint = _fingerprint(parts)
        return MaskFiles(place, True, index, fingerprint, left_out=others, space=_space(place))
    if storage.exists(storage.join(place, RECORD_FILE)):
        raise CannotRunError(_which(place))
    return _find_files(place, listing)


def _base(uri: str) -> str:
    return uri.rsplit("/", 1)[-1]


def _find_files(place: str, listing: str) -> MaskFiles:
    entries = storage.list_entries(place, recursive=True)
    files: dict[str, str] = {}
    repeated: list[str] = []
    broken: list[Entry] = []
    left_out: dict[str, list[str]] = {}
    for entry in entries:
        reason = _left_out(entry, place)
        if reason:
            left_out.setdefault(reason, []).append(entry.uri.removeprefix(place.rstrip("/") + "/"))
        elif entry.fault:
            broken.append(entry)
        elif files.setdefault(stem_path(entry.uri, place), entry.uri) != entry.uri:
            repeated.append(entry.uri)
    if not files:
        there = [text for names in left_out.values() for text in names]
        there += [f"{entry.uri}: {entry.fault}" for entry in broken]
        shown = storage.printable(", ".join(there[:3])) or "nothing"
        raise CannotRunError(
            f"no masks in {place}: a masks table (part-*.parquet) or PNG files are expected; there "
            f"is {shown}"
        )
    index = write_listing(listing, {safe_image_id(name): uri for name, uri in files.items()})
    return MaskFiles(
        place,
        False,
        index,
        _fingerprint([*files.values(), *repeated]),
        files,
        tuple(repeated),
        tuple(broken),
        left_out,
        _space(place),
    )


def _left_out(entry: Entry, place: str) -> str:
    """Why a file of a tree is passed over; empty for a mask."""
    path = entry.uri.removeprefix(place.rstrip("/") + "/")
    if is_hidden(path):
        return "hidden"
    return "" if has_ending(path, ".png") or entry.folder else "no PNG"


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
        claims: dict[str, tuple[str, Found]] = {}
        for line in dict.fromkeys(wanted):
            try:
                hits = (index.find(way) for way in _spellings(line))
                hit = next(filter(None, hits), None)
            except ValueError as error:
                raise CannotRunError(f"the list: {error}") from error
            if hit is not None:
                claims[line] = (line, hit)
        wrong = beaten(claims)
        if why := next(filter(None, wrong.values()), ""):
            raise CannotRunError(f"the list: {why}")
        for line, (_, hit) in claims.items():
            if line not in wrong:
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


def write_listing(uri: str, by_id: Mapping[str, str]) -> TableIndex:
    """Write ids and places as a table from which a task reads only what it needs; its index."""
    rows = [{"image_id": image_id, "uri": place} for image_id, place in sorted(by_id.items())]
    table = pa.Table.from_pylist(rows, schema=FILES)
    storage.write_bytes(uri, tables.to_bytes(table, row_group_size=tables.MANIFEST_ROW_GROUP))
    return index_file(uri)


@contextmanager
def _readable(uri: str) -> Iterator[None]:
    """Turns damage of a Parquet file into a sentence."""
    try:
        yield
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and not tables.is_damage(error):
            raise
        raise CannotRunError(f"{uri} is not a readable Parquet file: {error}") from error


def _check_table(parts: Sequence[str]) -> None:
    for uri in parts:
        filesystem, path = storage.resolve(uri)
        with _readable(uri):
            names = pq.read_schema(path, filesystem=filesystem).names
        if not {"image_id", _COLUMN} <= set(names):
            raise CannotRunError(f"{uri} holds no masks: it has the columns {', '.join(names)}")


def _which(run_dir: str) -> str:
    filesystem, path = storage.resolve(run_dir)
    names = [info.base_name for info in filesystem.get_file_info(pafs.FileSelector(path))]
    tables_of = [n for n in names if n.startswith(("make_masks", "predict_masks"))]
    choice = [name for name in names if name == "masks"] + sorted(tables_of)
    return f"{run_dir} is the folder of a run: give one of the masks in it, such as " + (
        ", ".join(f"{run_dir}/{name}" for name in choice) or "(there are none yet)"
    )


def _space(place: str) -> LabelSpace | None:
    manifest = manifest_near(place)
    return manifest.label_space if manifest is not None else None


def _fingerprint(uris: Sequence[str]) -> str:
    return storage.fingerprint({uri: uri for uri in uris})
