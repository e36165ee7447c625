"""The masks of a table as one memory-mapped file per node.

A worker of the training, and each of its loader processes, maps the same uncompressed Arrow IPC
file: the operating system keeps the bytes once, whatever the number of processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import weakref
from collections.abc import Callable
from contextlib import closing
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from filelock import FileLock
from numpy.typing import NDArray

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.cluster.connect import in_scratch
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.index import TableIndex, read_index, scan_parts
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.runtime.rows.photographs import prefetch

Told = Callable[[int, int], None]
"""Takes what is done and how much there is."""

# parts read at once: a bucket answers each in tens of milliseconds, and Arrow's client for S3 has
# 25 connections
_READERS = 25

_SCHEMA = tables.columns(image_id=tables.TEXT, mask_png=tables.BYTES)


def mask_index(masks_uri: str) -> TableIndex:
    """Where each mask of a table is; a folder that no stage finished is scanned.

    Raises:
        CannotRunError: the folder holds no masks, or a part of them cannot be read.
    """
    if storage.exists(storage.join(masks_uri, "index.parquet")):
        return read_index(masks_uri)
    index, damaged = scan_parts(masks_uri)
    if damaged:
        raise CannotRunError(f"{damaged[0]} cannot be read: make the masks again")
    if not index.parts:
        raise CannotRunError(f"{masks_uri} holds no masks (part-*.parquet)")
    return index


def build_mask_file(
    masks_uri: str, label_space: LabelSpace, scratch: Path, told: Told | None = None
) -> MaskFile:
    """The memory-mappable file of a masks table on this node, written if it is not there yet.

    Its name is made from the size and the time of the table's index, or of its parts where it has
    none. One process of a node writes it while the others wait; it appears whole or not at all.
    Before that the files of other tables are deleted, unless a process trains on them.

    Args:
        masks_uri: folder of `part-*.parquet` with the columns of `tables.MASKS`.
        label_space: every mask is checked to hold 0..C and `ignore` only.
        scratch: a folder on this node's own disk.
        told: is called with the parts that are read so far, and all there are.

    Raises:
        CannotRunError: no masks, or a mask that is damaged or holds another value; it is named
            with the value and the allowed ones; or see `in_scratch`.
    """
    index = mask_index(masks_uri)
    folder = scratch / "masks"
    target = folder / f"{_key(masks_uri, index, label_space)}.arrow"
    with in_scratch():
        folder.mkdir(parents=True, exist_ok=True)
        # the lock of a process that died is free
        lock = FileLock(target.with_suffix(".lock")).acquire()
    with lock:
        if not target.exists():
            _delete_unused(folder)
            # one name: it replaces what a writer that was killed left
            temporary = target.with_suffix(".tmp")
            try:
                _write(index, label_space, temporary, told or (lambda done, total: None))
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
        masks = MaskFile(target)
        masks.keep()
    return masks


def _delete_unused(folder: Path) -> None:
    """Delete the files that no process keeps, and what writers that were killed left."""
    for path in [*folder.glob("*.arrow"), *folder.glob("*.tmp")]:
        # one that is being written or looked for is locked, one that is trained on is kept; and
        # another user's is not ours to delete
        lock = FileLock(folder / f"{path.name.partition('.')[0]}.lock", timeout=0)
        with contextlib.suppress(OSError), lock, open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


class MaskFile:
    """Masks by image id, memory-mapped on first use by each process; pickled as a path."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep(self) -> None:
        """Keep the file from being deleted while this object lives."""
        file = open(self.path, "rb")  # noqa: SIM115
        fcntl.flock(file, fcntl.LOCK_SH)
        weakref.finalize(self, file.close)

    def __reduce__(self) -> tuple[Any, ...]:
        return MaskFile, (self.path,)

    def __len__(self) -> int:
        return len(self._places)

    def png(self, image_id: str) -> bytes:
        """The mask's PNG file. Raises KeyError if the table has none."""
        batch, row = self._places[image_id]
        data: bytes = self._reader.get_batch(batch).column("mask_png")[row].as_py()
        return data

    def mask(self, image_id: str, size: tuple[int, int]) -> NDArray[Any]:
        """The mask of an image, integer ids [H, W].

        Args:
            size: (H, W) of the image, px.

        Raises:
            RowError: `label` when the mask has another size.
        """
        mask_HW = decode_mask(self.png(image_id))
        if mask_HW.shape != size:
            raise RowError("label", f"the mask is {mask_HW.shape}, the image {size} (h, w)")
        return mask_HW

    @cached_property
    def _reader(self) -> Any:
        return pa.ipc.open_file(pa.memory_map(str(self.path)))

    @cached_property
    def _places(self) -> dict[str, tuple[int, int]]:
        """(batch, row) of each image."""
        return {
            image_id: (batch, row)
            for batch in range(self._reader.num_record_batches)
            for row, image_id in enumerate(
                self._reader.get_batch(batch).column("image_id").to_pylist()
            )
        }


def _key(masks_uri: str, index: TableIndex, label_space: LabelSpace) -> str:
    digest = hashlib.sha256(label_space.to_json().encode())
    # a stage writes its index last
    own = storage.join(masks_uri, "index.parquet")
    for uri in [own] if storage.exists(own) else index.parts:
        size, changed = storage.version(uri)
        digest.update(f"\x00{uri}\x00{size}\x00{changed}".encode())
    return digest.hexdigest()[:24]


def _write(index: TableIndex, label_space: LabelSpace, target: Path, told: Told) -> None:
    allowed = np.zeros(65536, bool)
    allowed[: label_space.num_classes] = True
    allowed[label_space.ignore] = True
    rows = index.rows_of_parts()

    def read(number: int) -> pa.Table:
        part = index.parts[number]
        # in one piece: a column at a time would be a request each
        data = pa.BufferReader(storage.read_bytes(part))
        with pq.ParquetFile(data, page_checksum_verification=True) as file:
            table = file.read(_SCHEMA.names).cast(_SCHEMA)
        table = table.take(rows[number]).combine_chunks()
        for image_id, png in zip(*table.to_pydict().values(), strict=True):
            _check(image_id, png, allowed, label_space, part)
        return table

    parts = prefetch(read, range(len(index.parts)), threads=_READERS, ahead=2 * _READERS)
    with open(target, "wb") as file, closing(parts):
        with pa.ipc.new_file(file, _SCHEMA) as writer:
            for done, part in enumerate(parts, 1):
                writer.write_table(part.result())
                told(done, len(index.parts))
        file.flush()
        os.fsync(file.fileno())


def _check(
    image_id: str, png: bytes, allowed: np.ndarray, label_space: LabelSpace, part: str
) -> None:
    try:
        values = decode_mask(png)
    except (RowError, ValueError) as error:
        raise CannotRunError(f"the mask of {image_id} in {part} is damaged: {error}") from error
    if not allowed[values].all():
        wrong = np.unique(values[~allowed[values]])[:10].tolist()
        raise CannotRunError(
            f"the mask of {image_id} in {part} holds {wrong}: allowed are "
            f"0..{label_space.num_foreground} and {label_space.ignore} (ignore)"
        )
