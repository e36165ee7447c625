"""Masks that somebody made: a masks table of ours, or a tree of PNG files; nothing is opened here.

A tree's masks are found by name: `ANY/FOLDER/ID.png` is the mask of image ID.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import TableIndex, index_file, scan_parts
from pmm_ray.runtime.core.manifest import manifest_near
from pmm_ray.sources.folder import file_stem, safe_image_id

FILES = pa.schema([("image_id", pa.string()), ("uri", pa.string())])
_COLUMN = "mask_png"


@dataclass(frozen=True)
class MaskFiles:
    """Where masks are.

    `index` says where each image's mask is: a row of a masks table, or a row that names a file.
    `fingerprint` changes when a mask is added, removed or written again (sizes and times).
    `repeated` are files whose image has another file already. `space` is the label space of the
    manifest beside them, if there is one.
    """

    place: str
    is_table: bool
    index: TableIndex
    fingerprint: str
    repeated: tuple[str, ...] = ()
    space: LabelSpace | None = None


def find_masks(place: str, listing: str) -> MaskFiles:
    """Find masks without reading them.

    Args:
        place: a masks table (a stage's folder, or one Parquet file), or a folder of PNG files,
            which may lie in subfolders.
        listing: Parquet file to write the list of PNG files to; not written for a table.

    Raises:
        CannotRunError: nothing there, no masks in it, a run folder (which has several tables), or
            a table without masks.
    """
    place = storage.absolute(place)
    if not storage.exists(place):
        raise CannotRunError(f"nothing is at {place}")
    if place.endswith(".parquet"):
        _check_table([place])
        return MaskFiles(place, True, index_file(place), _fingerprint([place]), (), _space(place))
    parts = [uri for uri in storage.list_files(place, ".parquet") if "/part-" in uri]
    if parts:
        _check_table(parts)
        index, broken = scan_parts(place)
        if broken:
            raise CannotRunError(f"{broken[0]} cannot be read: run the stage that made it again")
        return MaskFiles(place, True, index, _fingerprint(parts), (), _space(place))
    if storage.exists(storage.join(place, "run.json")):
        raise CannotRunError(_which(place))
    files = storage.list_files(place, ".png", recursive=True)
    if not files:
        raise CannotRunError(
            f"no masks in {place}: a masks table (part-*.parquet) or PNG files are expected"
        )
    by_id: dict[str, str] = {}
    repeated = []
    for uri in files:
        if by_id.setdefault(safe_image_id(file_stem(uri)), uri) != uri:
            repeated.append(uri)
    index = write_listing(listing, by_id)
    return MaskFiles(place, False, index, _fingerprint(files), tuple(repeated), _space(place))


def write_listing(uri: str, by_id: Mapping[str, str]) -> TableIndex:
    """Write ids and places as a table from which a task reads only what it needs; its index."""
    rows = [{"image_id": image_id, "uri": place} for image_id, place in sorted(by_id.items())]
    table = pa.Table.from_pylist(rows, schema=FILES)
    storage.write_bytes(uri, tables.to_bytes(table, row_group_size=tables.MANIFEST_ROW_GROUP))
    return index_file(uri)


def _check_table(parts: Sequence[str]) -> None:
    for uri in parts:
        filesystem, path = storage.resolve(uri)
        try:
            names = pq.read_schema(path, filesystem=filesystem).names
        except pa.ArrowInvalid as error:
            raise CannotRunError(f"{uri} is not a readable Parquet file: {error}") from error
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
    digest = hashlib.sha256()
    for uri in uris:
        filesystem, path = storage.resolve(uri)
        info = filesystem.get_file_info(path)
        digest.update(f"{uri}\x00{info.size}\x00{info.mtime_ns}\x00".encode())
    return digest.hexdigest()
