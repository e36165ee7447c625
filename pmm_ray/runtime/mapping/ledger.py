"""What a stage's folder holds: read at the start, then updated from the tasks' reports.

A resumed run lists the folder, and reads every part whole that is not in the journal, so that a
damaged one is found before anything is built on it. Then each task reports the images it committed;
the folder is listed again only after a pass in which a process died.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import ErrorRow
from pmm_ray.runtime.core.index import (
    Ids,
    Parts,
    TableIndex,
    id_column,
    ids_without,
    index_of,
    is_part,
    part_files,
    read_parts,
)
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.mapping.journal import CommittedPart, Journal

# what a run that is killed has committed since is read whole by the next one
_JOURNAL_SECONDS = 60.0


class Ledger:
    """The images of a stage's folder that have a row, and those that have an error row.

    Args:
        schema: of its table; a part with another one is damaged.
    """

    def __init__(self, folder: StageFolder, schema: pa.Schema) -> None:
        self._folder = folder
        self._schema = schema
        self._parts: Parts = []
        self._error_parts: dict[str, pa.ChunkedArray] = {}
        self.failed: set[str] = set()
        """Images with an error row and no row."""
        self.journal = Journal(folder.uri)
        self._unwritten: list[CommittedPart] = []
        self._written = time.monotonic()

    def scan(self) -> list[str]:
        """Read the folder anew; returns the parts that were damaged, which are now deleted.

        An image in two parts (a task that outlived its driver) is kept once: parts
        are visited in order of name, and both hold the same bytes.

        Raises:
            CannotRunError: the store or the disk does not let us read; this deletes nothing then.
        """
        folders = (self._folder.uri, self._folder.errors_uri)
        tables_there, errors_there = (
            {uri: v for uri, v in storage.list_versions(place, ".parquet").items() if is_part(uri)}
            for place in folders
        )
        versions = tables_there | errors_there
        known = self.journal.known(versions)
        parts, broken = self._read(tables_there, known, self._schema)
        errors, broken_errors = self._read(
            errors_there, known, tables.ERRORS, tables.ERRORS_WITHOUT_PLACE
        )
        for uri in broken + broken_errors:
            storage.delete_file(uri)
        for place in folders:
            storage.delete_temporary(place)
        self._parts = parts
        self._error_parts = dict(errors)
        found = [chunk for _, ids in errors for chunk in ids.chunks]
        failed = pa.chunked_array(found, pa.string())
        self.failed = set(ids_without(failed, self._ids).to_pylist())
        if any(uri not in known for uri, _ in parts + errors):
            self._unwritten = [CommittedPart(u, ids, versions[u][0]) for u, ids in parts + errors]
            self._write_journal(alone=True)
        return broken + broken_errors

    @staticmethod
    def _read(
        there: Iterable[str], known: Mapping[str, pa.ChunkedArray], *schemas: pa.Schema
    ) -> tuple[Parts, list[str]]:
        read, broken = read_parts([uri for uri in there if uri not in known], *schemas)
        ids = {**known, **dict(read)}
        return [(uri, ids[uri]) for uri in there if uri in ids], broken

    def add(self, counts: Mapping[str, Any]) -> None:
        """Note what a task committed (see `tasks.run_chunk`), and now and then write it down."""
        done, failed = json.loads(counts["done"]), json.loads(counts["failed"])
        if done:
            uri = tables.part_uri(self._folder.uri, counts["part"])
            self._parts.append((uri, id_column(done)))
            self._unwritten.append(CommittedPart(uri, self._parts[-1][1], counts["bytes"]))
        if failed:
            self._add_errors(counts["part"], failed, counts["error_bytes"])
        if time.monotonic() - self._written > _JOURNAL_SECONDS:
            self._write_journal()

    def _add_errors(self, name: str, image_ids: Sequence[str], size: int) -> None:
        uri = tables.part_uri(self._folder.errors_uri, name)
        self._error_parts[uri] = id_column(image_ids)
        self.failed.update(image_ids)
        self._unwritten.append(CommittedPart(uri, self._error_parts[uri], size))

    def _write_journal(self, alone: bool = False) -> None:
        """Write what is new to the journal, see `Journal.write`."""
        self._written = time.monotonic()
        if self._unwritten:
            self.journal.write(self._unwritten, alone=alone)
        self._unwritten = []

    def fail(self, rows: Sequence[ErrorRow]) -> None:
        """Write error rows that no task wrote."""
        name = tables.chunk_name(row.image_id for row in rows)
        size = tables.write_errors(self._folder.errors_uri, name, rows)
        self._add_errors(name, [row.image_id for row in rows], size)

    def withdraw(self, names: Sequence[str], image_ids: Iterable[str]) -> int:
        """Take back error rows of images that shall run again; returns how many.

        Args:
            names: of the parts; other rows in them are taken back, too.
            image_ids: of the rows.
        """
        before = len(self.failed)
        self.failed.difference_update(image_ids)
        for name in names:
            uri = tables.part_uri(self._folder.errors_uri, name)
            self._error_parts.pop(uri, None)
            if not storage.exists(uri):  # damaged, and deleted by a scan
                continue
            self.failed.difference_update(
                tables.read_table(uri, ["image_id"]).column("image_id").to_pylist()
            )
            storage.delete_file(uri)
        return before - len(self.failed)

    @property
    def _ids(self) -> pa.ChunkedArray:
        """Of all rows; an image that is in two parts is there twice."""
        return pa.chunked_array([c for _, ids in self._parts for c in ids.chunks], pa.string())

    def failed_of(self, image_ids: Ids) -> pa.ChunkedArray:
        """Those of the images that have an error row and no row."""
        column = id_column(image_ids)
        return column.filter(pc.is_in(column, value_set=id_column(self.failed)))

    def uncommitted(self, image_ids: Ids) -> pa.ChunkedArray:
        """The images that have neither a row nor an error row."""
        return ids_without(ids_without(image_ids, self._ids), self.failed)

    def settle(self) -> None:
        """Leave every image in one file only, as it stands once in the index.

        Needed where a task outlived its driver and committed beside the run that went on, and
        where a task died after it wrote error rows and went well when it ran again.
        """
        self._settle_errors()
        strangers = set(part_files(self._folder.uri)) - {uri for uri, _ in self._parts}
        places = index_of(self._parts).table
        kept = places.column("part").to_numpy(), places.column("row").to_numpy()
        counts = np.bincount(kept[0], minlength=len(self._parts))
        crowded = [n for n, (_, ids) in enumerate(self._parts) if counts[n] < len(ids)]
        if not strangers and not crowded:
            return
        for uri in strangers:
            storage.delete_file(uri)
        for number in crowded:
            uri, rows = self._parts[number][0], kept[1][kept[0] == number]
            if len(rows):
                whole = tables.read_table(uri)
                storage.write_bytes(uri, tables.to_bytes(whole.take(pa.array(np.sort(rows)))))
            else:
                storage.delete_file(uri)
        self.scan()

    def _settle_errors(self) -> None:
        """Leave one error row of each image that has no row."""
        left = set(self.failed)
        for uri in part_files(self._folder.errors_uri):
            # unknown: of a task that ended after its rows were withdrawn
            ids = self._error_parts.pop(uri, id_column(()))
            kept = ids.filter(pc.is_in(ids, value_set=id_column(left)))
            left.difference_update(kept.to_pylist())
            if not len(kept):
                storage.delete_file(uri)
                continue
            self._error_parts[uri] = kept
            if len(kept) < len(ids):
                whole = tables.read_table(uri)
                ours = pc.is_in(whole.column("image_id"), value_set=kept)
                storage.write_bytes(uri, tables.to_bytes(whole.filter(ours)))

    def index(self, image_ids: Ids) -> TableIndex:
        """The index of the rows of these images, for those that have one."""
        there = index_of(self._parts)
        at = pc.index_in(id_column(image_ids), value_set=there.ids).drop_null()
        return TableIndex(there.parts, there.table.take(at))
