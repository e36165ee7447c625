"""Masks that somebody made: a masks table of ours, or a tree of PNG files; nothing is opened here.

A tree's masks are known by their paths below it, without the ending.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import pyarrow as pa

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, ErrorKind
from pmm_ray.runtime.core.files import RECORD_FILE
from pmm_ray.runtime.core.fingerprints import fingerprint
from pmm_ray.runtime.core.index import TableIndex, index_file, part_files, scan_parts
from pmm_ray.runtime.core.record import manifest_near
from pmm_ray.runtime.core.storage import Entry
from pmm_ray.sources.importing.photographs import LEFT_OUT, beside_table
from pmm_ray.sources.importing.results import is_result, results_in
from pmm_ray.sources.reading.names import (
    has_ending,
    is_hidden,
    path_below,
    safe_image_id,
    stem_path,
)

FILES = tables.columns(image_id=tables.TEXT, uri=tables.TEXT)
_COLUMN = "mask_png"


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

    def faults(self, what: str) -> list[tuple[str, ErrorKind, str]]:
        """(uri, kind, reason) of each file that is `repeated` or `broken`; `what` they hold."""
        second = f"a second {what} of that name; the first one counts"
        faults: list[tuple[str, ErrorKind, str]] = [(uri, "label", second) for uri in self.repeated]
        return faults + [(entry.uri, "missing", entry.fault) for entry in self.broken]

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
        listing: Parquet file to write the list of PNG files to; not written for a table. It is
            where results go: what is there is left out, as are older results below `place`.

    Raises:
        CannotRunError: nothing there, no folder, no masks in it, a run folder (which has several
            tables), or a table without masks.
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
    if parts := part_files(place):
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


def _find_files(place: str, listing: str) -> MaskFiles:
    entries = storage.list_entries(place, recursive=True)
    if not entries:
        storage.refuse_no_folder(place)
    results = results_in((entry.uri for entry in entries), place, storage.parent(listing))
    files: dict[str, str] = {}
    repeated: list[str] = []
    broken: list[Entry] = []
    left_out: dict[str, list[str]] = {}
    for entry in entries:
        reason = _left_out(entry, place, results)
        if reason:
            left_out.setdefault(reason, []).append(path_below(entry.uri, place))
        elif entry.fault:
            broken.append(entry)
        elif files.setdefault(stem_path(entry.uri, place), entry.uri) != entry.uri:
            repeated.append(entry.uri)
    if not files:
        there = [f"{text} ({why})" for why, names in left_out.items() for text in names]
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


def _left_out(entry: Entry, place: str, results: Collection[str]) -> str:
    """Why a file of a tree is passed over; empty for a mask."""
    path = path_below(entry.uri, place)
    if is_hidden(path):
        return LEFT_OUT["hidden"]
    if is_result(entry.uri, place, results):
        return LEFT_OUT["results"]
    return "" if has_ending(path, ".png") or entry.folder else "no PNG"


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
        with _readable(uri):
            names = tables.schema_of(uri).names
        if not {"image_id", _COLUMN} <= set(names):
            raise CannotRunError(f"{uri} holds no masks: it has the columns {', '.join(names)}")


def _which(run_dir: str) -> str:
    names = storage.list_names(run_dir)
    choice = [name for name in names if name == "masks"]
    choice += [name for name in names if name.startswith(("make_masks", "predict_masks"))]
    return f"{run_dir} is the folder of a run: give one of the masks in it, such as " + (
        ", ".join(f"{run_dir}/{name}" for name in choice) or "(there are none yet)"
    )


def _space(place: str) -> LabelSpace | None:
    manifest = manifest_near(place)
    return manifest.label_space if manifest is not None else None


def _fingerprint(uris: Sequence[str]) -> str:
    return fingerprint({uri: uri for uri in uris})
