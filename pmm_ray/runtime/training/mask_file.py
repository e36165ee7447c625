"""The masks of a table as one memory-mapped file per node.

A worker of the training, and each of its loader processes, maps the same uncompressed Arrow IPC
file: the operating system keeps the bytes once, whatever the number of processes.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.rows.images import decode_mask

_SCHEMA = pa.schema([("image_id", pa.string()), ("mask_png", pa.large_binary())])


def mask_ids(masks_uri: str) -> list[str]:
    """The ids of a masks table, sorted, each once.

    Raises:
        CannotRunError: the folder holds no masks.
    """
    ids: set[str] = set()
    for part in _parts(masks_uri):
        ids.update(tables.read_table(part, ["image_id"]).column("image_id").to_pylist())
    return sorted(ids)


def build_mask_file(masks_uri: str, label_space: LabelSpace, scratch: Path) -> Path:
    """The memory-mappable file of a masks table on this node, written if it is not there yet.

    Its name is made from the table's files, their sizes and times. One process of a node writes
    it while the others wait; it appears whole or not at all.

    Args:
        masks_uri: folder of `part-*.parquet` with the columns of `tables.MASKS`.
        label_space: every mask is checked to hold 0..C and `ignore` only.
        scratch: a folder on this node's own disk.

    Raises:
        CannotRunError: no masks, or a mask that is damaged or holds another value; it is named
            with the value and the allowed ones.
    """
    folder = scratch / "masks"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{_key(masks_uri, label_space)}.arrow"
    with _locked(target.with_suffix(".lock")):
        if not target.exists():
            temporary = target.with_suffix(f".{os.getpid()}.tmp")
            try:
                _write(masks_uri, label_space, temporary)
                temporary.replace(target)
            finally:
                temporary.unlink(missing_ok=True)
    return target


class MaskFile:
    """Mask bytes by image id, memory-mapped."""

    def __init__(self, path: Path) -> None:
        self._reader = pa.ipc.open_file(pa.memory_map(str(path)))
        self._rows: dict[str, tuple[int, int]] = {}
        for batch in range(self._reader.num_record_batches):
            ids = self._reader.get_batch(batch).column("image_id").to_pylist()
            self._rows.update({image_id: (batch, row) for row, image_id in enumerate(ids)})

    def __len__(self) -> int:
        return len(self._rows)

    def png(self, image_id: str) -> bytes:
        """The mask's PNG file. Raises KeyError if the table has none."""
        batch, row = self._rows[image_id]
        data: bytes = self._reader.get_batch(batch).column("mask_png")[row].as_py()
        return data


def _parts(masks_uri: str) -> list[str]:
    files = storage.list_files(masks_uri, ".parquet")
    parts = [uri for uri in files if uri.rsplit("/", 1)[-1].startswith("part-")]
    if not parts:
        raise CannotRunError(f"{masks_uri} holds no masks (part-*.parquet)")
    return parts


def _key(masks_uri: str, label_space: LabelSpace) -> str:
    digest = hashlib.sha256(label_space.to_json().encode())
    for part in _parts(masks_uri):
        filesystem, path = storage.resolve(part)
        info = filesystem.get_file_info(path)
        digest.update(f"\x00{part}\x00{info.size}\x00{info.mtime_ns}".encode())
    return digest.hexdigest()[:24]


def _write(masks_uri: str, label_space: LabelSpace, target: Path) -> None:
    allowed = np.zeros(65536, bool)
    allowed[: label_space.num_classes] = True
    allowed[label_space.ignore] = True
    with open(target, "wb") as file:
        with pa.ipc.new_file(file, _SCHEMA) as writer:
            for part in _parts(masks_uri):
                table = tables.read_table(part, _SCHEMA.names).cast(_SCHEMA)
                for batch in table.to_batches():
                    for image_id, png in zip(*batch.to_pydict().values(), strict=True):
                        _check(image_id, png, allowed, label_space, part)
                    writer.write_batch(batch)
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


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock between the processes of this node; a dead holder's lock is released."""
    with open(path, "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(file, fcntl.LOCK_UN)
