"""Files of CAMs or scores that others made, found and not opened; or a cams table of ours."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.fingerprints import fingerprint
from pmm_ray.runtime.core.index import TableIndex, index_file, part_files, scan_parts
from pmm_ray.runtime.core.storage import Entry
from pmm_ray.sources.cams.plane_files import needs_trust
from pmm_ray.sources.importing.photographs import LEFT_OUT, beside_table
from pmm_ray.sources.importing.results import is_result, results_in
from pmm_ray.sources.reading.names import (
    has_ending,
    is_hidden,
    path_below,
    safe_image_id,
    stem_path,
)
from pmm_ray.sources.reading.pickled import refusal

SUFFIXES = (".npz", ".npy")
FILES = tables.columns(
    image_id=tables.TEXT,
    cam_uri=tables.TEXT,
    classes=pa.list_(tables.INT32),
    class_uris=pa.list_(tables.TEXT),
)
"""Where the CAM of an image is: one file, or a file for each class."""
_PER_CLASS_SUFFIXES = (".png", ".npy")
PER_CLASS = "per-class"
"""The layout of a file for each class."""

# what may be a class number, padded or not: the end of VOC's 2007_000032 is none
_NUMBER = re.compile(r"_(?P<number>\d{1,3})$")
# files looked into to tell whether any needs trust
_TRUST_LOOKED_INTO = 5


@dataclass(frozen=True)
class CamFolder:
    """The CAMs of a folder.

    `index` says where each image's CAM is: a row of the table, or a row that names a file.
    `fingerprint` changes when a file is added, removed or written again (sizes and times).
    `names` gives the path of each image's file without its ending; of a table, the id itself.
    `repeated` are files whose image has another file already, `broken` cannot be opened,
    `left_out` the uris of all other files by reason. `what` is what one is called. `place` is the
    folder.
    """

    is_table: bool
    index: TableIndex
    fingerprint: str
    names: Mapping[str, str]
    repeated: tuple[str, ...] = ()
    left_out: Mapping[str, Sequence[str]] = field(default_factory=dict)
    what: str = "CAM"
    broken: tuple[Entry, ...] = ()
    place: str = ""


def find_cams(
    folder: str, listing: str, *, trust_pickle: bool, layout: str = "", what: str = "CAM"
) -> CamFolder:
    """Find the CAMs of a folder without reading them.

    Args:
        folder: holds `part-*.parquet` (our cams table), `.npz` and `.npy` files, or `ID_k.png`.
        listing: Parquet file to write the list of files to; not written for a table. It is where
            results go: what is there is left out, as are older results below `folder`.
        trust_pickle: whether the user vouches for pickled `.npy` files.
        layout: `per-class` reads `ID_k.npy`, too; see `cam_layouts`.
        what: what one is called: CAM, score file.

    Raises:
        CannotRunError: no such folder, no CAMs, a table with other columns or an unreadable part,
            class numbers of which only some are padded, or pickles that nobody vouched for.
    """
    folder = storage.absolute(folder)
    if parts := part_files(folder):
        index = _index_table(folder, parts)
        names = {i: i for i in index.image_ids}
        beside = {f"no {what}": beside_table(folder, parts)}
        return CamFolder(True, index, _fingerprint(parts), names, left_out=beside, what=what)
    entries = storage.list_entries(folder, recursive=True)
    if not entries:
        storage.refuse_no_folder(folder)
    results = results_in((entry.uri for entry in entries), folder, storage.parent(listing))
    ours = {entry.uri for entry in entries if is_result(entry.uri, folder, results)}
    others = [entry for entry in entries if entry.uri not in ours]
    seen = [entry for entry in others if not is_hidden(path_below(entry.uri, folder))]
    files = [entry.uri for entry in seen if not entry.fault]
    found = [uri for uri in files if has_ending(uri, SUFFIXES)]
    rule = None
    if layout == PER_CLASS or not found:
        rule = _class_rule([entry.uri for entry in seen], folder)
        found = _class_files(files, folder, rule)
    if not found:
        there = ", ".join(path_below(entry.uri, folder) for entry in others[:3])
        raise CannotRunError(
            f"no {what}s in {folder}: part-*.parquet (a table of ours), .npz or .npy files, or a "
            "PNG file per class, ID_k.png, are expected; there is "
            f"{storage.printable(there) or 'nothing'}"
            + (f", and {len(ours)} {LEFT_OUT['results']}" if ours else "")
        )
    pickles = [uri for uri in found if has_ending(uri, ".npy")][:_TRUST_LOOKED_INTO]
    pickle = None if trust_pickle else next(filter(needs_trust, pickles), None)
    if pickle is not None:
        raise CannotRunError(refusal(pickle))
    by_id, names, repeated = _by_image(found, folder, rule)
    rows = [
        {"image_id": image_id, "cam_uri": next(iter(uris.values()))}
        | ({"classes": list(uris), "class_uris": list(uris.values())} if rule else {})
        for image_id, uris in sorted(by_id.items())
    ]
    tables.write_rows(listing, rows, FILES)
    faulty = [entry.uri for entry in seen if entry.fault]
    suffixed = [uri for uri in faulty if has_ending(uri, SUFFIXES)]
    named = set(_class_files(faulty, folder, rule) if rule else suffixed)
    broken = [entry for entry in seen if entry.fault and (entry.folder or entry.uri in named)]
    used = {*found, *(entry.uri for entry in broken)}
    left_out = {
        f"no {what}": [entry.uri for entry in others if entry.uri not in used],
        LEFT_OUT["results"]: sorted(ours),
    }
    index, marks = index_file(listing), _fingerprint(found)
    return CamFolder(
        False, index, marks, names, tuple(repeated), left_out, what, tuple(broken), folder
    )


def _class_files(files: Sequence[str], folder: str, rule: re.Pattern[str]) -> list[str]:
    """The files of one class each."""
    return [
        uri
        for uri in files
        if has_ending(uri, _PER_CLASS_SUFFIXES) and rule.match(stem_path(uri, folder))
    ]


def _class_rule(files: Sequence[str], folder: str) -> re.Pattern[str]:
    """How the names of files of one class each end: in a number below 10,000, which has leading
    zeros up to the width of those that have any.

    Raises:
        CannotRunError: some numbers have leading zeros, and others lack them.
    """
    stems = [stem_path(uri, folder) for uri in files if has_ending(uri, _PER_CLASS_SUFFIXES)]
    # the picture of a_1 beside its class a_1_14 tells nothing
    images = {stem.rpartition("_")[0] for stem in stems}
    told = {stem: m["number"] for stem in stems if (m := _NUMBER.search(stem))}
    told = {stem: number for stem, number in told.items() if stem not in images}
    padded = next((stem for stem, n in told.items() if len(n) > 1 and n[0] == "0"), "")
    width = len(told[padded]) if padded else 1
    rule = re.compile(rf"^(?P<image>.+)_(?P<number>\d{{{width}}}|[1-9]\d{{{width},3}})$")
    other = next((stem for stem in told if not rule.match(stem)), None)
    if other is not None:
        raise CannotRunError(
            f"{folder}: the end of {storage.printable(padded)} is a class number with leading "
            f"zeros, that of {storage.printable(other)} lacks them or has others: name all files "
            "in one way (ID_06 or ID_6), or move away those that are no maps"
        )
    return rule


def _by_image(
    found: Sequence[str], folder: str, rule: re.Pattern[str] | None
) -> tuple[dict[str, dict[int, str]], dict[str, str], list[str]]:
    """Files of each image by class number (0 where there is one file), its path, second files."""
    by_id: dict[str, dict[int, str]] = {}
    names: dict[str, str] = {}
    repeated = []
    for uri in found:
        stem, number = stem_path(uri, folder), 0
        if rule and (match := rule.match(stem)):
            stem, number = match["image"], int(match["number"])
        image_id = safe_image_id(stem)
        names.setdefault(image_id, stem)
        if by_id.setdefault(image_id, {}).setdefault(number, uri) != uri:
            repeated.append(uri)
    return by_id, names, repeated


def _index_table(folder: str, parts: list[str]) -> TableIndex:
    index, broken = scan_parts(folder)
    if broken:
        raise CannotRunError(
            f"{broken[0]} is not a readable part of a cams table: make it again, or move it away"
        )
    for uri in parts:
        lacking = sorted(set(tables.CAMS.names) - set(tables.schema_of(uri).names))
        if lacking:
            raise CannotRunError(f"{uri} is no part of a cams table: it lacks {', '.join(lacking)}")
    return index


def _fingerprint(uris: list[str]) -> str:
    return fingerprint({uri: uri.rsplit("/", 1)[-1] for uri in uris})
