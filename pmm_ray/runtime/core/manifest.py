"""The manifest: one Parquet file with a row per photograph, where every run begins.

The file's schema metadata holds the label space, the EXIF rule and the source, so a manifest
explains itself. Files below the manifest's folder are named relative to it: you can
move or upload the folder as a whole.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.store_faults import unreadable

ExifRule = Literal["apply", "ignore"]

LABEL_SPACE_KEY = "pmm.label_space"
EXIF_KEY = "pmm.exif"
SOURCE_KEY = "pmm.source"
CONTENT_KEY = "pmm.content"
"""Optional: a fingerprint of pixels that a source made itself; part of `manifest_hash`."""


@dataclass(frozen=True)
class ManifestRow:
    """One photograph.

    `uri` and `ground_truth_uri` are absolute or relative to the manifest's folder; `labels` are
    contiguous foreground ids, sorted, empty if nothing is known; `height` and `width` are in
    pixels, after rotation where the EXIF rule is `apply`.
    """

    image_id: str
    uri: str
    labels: tuple[int, ...]
    height: int
    width: int
    split: str
    ground_truth_uri: str | None = None


@dataclass(frozen=True)
class Manifest:
    """An opened manifest: what its metadata and counts say; the rows stay in the file."""

    uri: str
    """Absolute uri of the Parquet file."""
    label_space: LabelSpace
    apply_exif: bool
    """Whether photographs are turned as their EXIF orientation says."""
    num_rows: int
    splits: dict[str, int]
    """Images of each split, by name."""
    ground_truth: dict[str, int]
    """Split -> its images with a ground-truth mask; splits without any are left out."""

    @property
    def root(self) -> str:
        """The folder that relative uris of the rows begin at."""
        return storage.parent(self.uri)

    def locate(self, uri: str) -> str:
        """The absolute uri of a row's `uri` or `ground_truth_uri`.

        Raises:
            ValueError: a relative uri that leaves the manifest's folder.
        """
        return storage.anchor(uri, self.root)


def check_labels(labels: Sequence[int], label_space: LabelSpace) -> tuple[int, ...]:
    """The labels of one image, checked.

    Raises:
        ValueError: not strictly ascending, or outside 1..C.
    """
    outside = [i for i in labels if not 1 <= i <= label_space.num_foreground]
    if outside:
        raise ValueError(
            f"labels {outside} are outside 1..{label_space.num_foreground} "
            f"of label space {label_space.name!r}"
        )
    if list(labels) != sorted(set(labels)):
        raise ValueError(f"labels {list(labels)} are not sorted and unique")
    return tuple(labels)


def write_manifest(
    uri: str,
    rows: Iterable[ManifestRow],
    label_space: LabelSpace,
    *,
    source: str,
    exif: ExifRule,
    metadata: Mapping[str, str] | None = None,
) -> Manifest:
    """Check the rows and write them, in the order of their ids, as one Parquet file, atomically.

    Args:
        rows: any order; uris relative to the folder of `uri` or absolute.
        source: the importer's name, for people.
        exif: whether readers turn the photographs by their EXIF orientation.
        metadata: more keys for the schema metadata, such as `CONTENT_KEY`.

    Returns:
        The manifest, opened.

    Raises:
        ValueError: no rows, an id that is not allowed or occurs twice, labels outside 1..C or
            unsorted, a size that is not positive, no split, a relative uri that leaves the folder.
    """
    uri = storage.absolute(uri)
    root = storage.parent(uri)
    ordered = sorted(rows, key=lambda row: row.image_id)
    if not ordered:
        raise ValueError("a manifest needs at least one image")
    _check_ids(pa.chunked_array([[row.image_id for row in ordered]], pa.string()))
    records = []
    for row in ordered:
        try:
            check_labels(row.labels, label_space)
            truth = row.ground_truth_uri
            places = {
                "uri": _relative(row.uri, root),
                "ground_truth_uri": None if truth is None else _relative(truth, root),
            }
        except ValueError as error:
            raise ValueError(f"image {row.image_id}: {error}") from error
        if row.height <= 0 or row.width <= 0 or not row.split:
            raise ValueError(f"image {row.image_id}: needs a positive size and a split, got {row}")
        records.append({**vars(row), **places})
    table = pa.Table.from_pylist(records, schema=tables.MANIFEST).replace_schema_metadata(
        {
            **(metadata or {}),
            LABEL_SPACE_KEY: label_space.to_json(),
            EXIF_KEY: exif,
            SOURCE_KEY: source,
        }
    )
    storage.write_bytes(uri, tables.to_bytes(table, row_group_size=tables.MANIFEST_ROW_GROUP))
    return open_manifest(uri)


def open_manifest(uri: str) -> Manifest:
    """Read what a manifest says of itself, and check its columns and ids.

    The labels and files of single rows are checked by the stage that needs them: one bad row is
    an error row there, not the end of the run.

    Raises:
        CannotRunError: no such file, not a manifest, or ids that are not allowed or occur twice.
    """
    uri = storage.absolute(uri)
    try:
        schema = tables.schema_of(uri)
        is_manifest = schema.equals(tables.MANIFEST)
        columns = ["image_id", "split", "ground_truth_uri"] if is_manifest else []
        table = tables.read_table(uri, columns)
    except FileNotFoundError as error:
        raise CannotRunError(f"no manifest at {uri}: make one with `pmm data import`") from error
    except (pa.ArrowInvalid, OSError) as error:
        raise unreadable(f"{uri} cannot be read as a Parquet file", error) from error
    if not is_manifest:
        raise CannotRunError(
            f"{uri} is not a manifest: its columns must be\n{tables.MANIFEST}\n"
            f"and are\n{schema.remove_metadata()}"
        )
    metadata = tables.metadata_of(schema)
    try:
        label_space = LabelSpace.from_json(metadata[LABEL_SPACE_KEY])
        apply_exif = {"apply": True, "ignore": False}[metadata[EXIF_KEY]]
        _check_ids(table.column("image_id"))
    except KeyError as error:
        raise CannotRunError(f"{uri} lacks the schema metadata of a manifest: {error}") from error
    except ValueError as error:
        raise CannotRunError(f"{uri}: {error}") from error
    splits = table.column("split")
    return Manifest(
        uri=uri,
        label_space=label_space,
        apply_exif=apply_exif,
        num_rows=table.num_rows,
        splits=_counted(splits),
        ground_truth=_counted(splits.filter(pc.is_valid(table.column("ground_truth_uri")))),
    )


def manifest_hash(uri: str) -> str:
    """A hash of what decides results: equal wherever the data set is, in any order.

    Ids, labels, sizes, splits, which images have a ground truth, the label space, the EXIF rule
    and, if the source made the pixels itself, their fingerprint. Not the uris, and not the bytes
    of the photographs: 82,081 of them are not read to start a run.

    Returns:
        64 hex digits.
    """
    table = tables.read_table(storage.absolute(uri))
    metadata = tables.metadata_of(table.schema)
    has_truth = pc.is_valid(table.column("ground_truth_uri"))
    rows = table.select(["image_id", "labels", "height", "width", "split"])
    digest = hashlib.sha256(tables.content_hash(rows.append_column("truth", has_truth)).encode())
    for key in (LABEL_SPACE_KEY, EXIF_KEY, CONTENT_KEY):
        digest.update(f"\x00{key}={metadata.get(key, '')}".encode())
    return digest.hexdigest()


def _counted(names: pa.ChunkedArray) -> dict[str, int]:
    """How often each name occurs, by name."""
    counts = pc.value_counts(names).to_pylist()
    return dict(sorted((count["values"], count["counts"]) for count in counts))


def _check_ids(image_ids: pa.ChunkedArray) -> None:
    allowed = pc.match_substring_regex(image_ids, f"^{tables.IMAGE_ID_PATTERN.pattern}$")
    for image_id in image_ids.filter(pc.invert(pc.fill_null(allowed, False))).slice(0, 1):
        tables.check_image_id(str(image_id))
    if pc.count_distinct(image_ids).as_py() < len(image_ids):
        twice = sorted(name for name, count in _counted(image_ids).items() if count > 1)
        raise ValueError(f"{len(twice)} image ids occur twice, such as {twice[:3]}")


def _relative(uri: str, root: str) -> str:
    """The uri relative to `root` if it is below, else absolute."""
    whole = storage.anchor(uri.removeprefix("file://"), root)
    return whole.removeprefix(root.rstrip("/") + "/")
