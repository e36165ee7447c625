"""What a stage has committed so far, written down now and then beside its parts.

So a resumed stage lists its folder once and reads a few files, instead of thousands of parts. A
part that was changed after the journal spoke of it is read whole, to find damage.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pmm_ray.runtime.core import storage, tables

_PARTS_KEY = b"pmm.parts"
_SCHEMA = pa.schema([("image_id", pa.string()), ("part", pa.int32())])


@dataclass(frozen=True)
class CommittedPart:
    """A part that was committed whole."""

    uri: str
    ids: pa.ChunkedArray
    size: int
    """Bytes."""


class Journal:
    """The journal of a stage's folder."""

    def __init__(self, folder: str) -> None:
        self._root = folder
        self._folder = storage.join(folder, "journal")

    def write(self, entries: Sequence[CommittedPart], *, alone: bool) -> None:
        """Add parts.

        Args:
            alone: they are all that there is, in place of the journal so far.
        """
        before = storage.list_files(self._folder, ".parquet") if alone else []
        names = [(entry.uri.removeprefix(f"{self._root}/"), entry.size) for entry in entries]
        sizes = [len(entry.ids) for entry in entries]
        ids = pa.chunked_array([c for e in entries for c in e.ids.chunks], pa.string())
        part = pa.array(np.repeat(np.arange(len(entries), dtype=np.int32), sizes))
        schema = _SCHEMA.with_metadata({_PARTS_KEY: json.dumps(names).encode()})
        uri = storage.join(self._folder, f"{time.time_ns():020d}.parquet")
        storage.write_bytes(uri, tables.to_bytes(pa.table([ids, part], schema=schema)))
        for old in before:
            storage.delete_file(old)

    def known(self, versions: Mapping[str, tuple[int, int]]) -> dict[str, pa.ChunkedArray]:
        """Ids of the parts that are in the journal and have not changed since.

        Args:
            versions: size and time of the parts that are there, see `storage.list_versions`.
        """
        found: dict[str, pa.ChunkedArray] = {}
        for uri, (_, written) in storage.list_versions(self._folder, ".parquet").items():
            try:
                table = tables.read_table(uri)
            except (OSError, pa.ArrowException) as error:
                if not tables.is_damage(error):
                    raise
                continue  # the parts themselves say what it said
            ends = np.cumsum(pc.value_counts(table.column("part")).field("counts").to_numpy())
            names = json.loads(table.schema.metadata[_PARTS_KEY])
            for (name, size), start, end in zip(names, [0, *ends[:-1]], ends, strict=True):
                part = storage.join(self._root, name)
                there = versions.get(part)
                if there is not None and there[0] == size and there[1] <= written:
                    found[part] = table.column("image_id").slice(start, end - start)
        return found

    def delete(self) -> None:
        """Forget all: whoever finds damage later reads the parts."""
        storage.delete_folder(self._folder)
