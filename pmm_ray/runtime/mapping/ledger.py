"""What a stage's folder holds: read once at the start, then updated from the tasks' reports.

A resumed run lists the folder and reads every part whole, so that a damaged one is found before
anything is built on it. It lists nothing again: each task reports the images it committed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import ErrorRow
from pmm_ray.runtime.core.index import TableIndex, part_files, part_uri, read_parts, table_of
from pmm_ray.runtime.core.stage import StageFolder


class Ledger:
    """The images of a stage's folder that have a row, and those that have an error row.

    Args:
        folder: the stage's.
        schema: of its table; a part with another one is damaged.
    """

    def __init__(self, folder: StageFolder, schema: pa.Schema) -> None:
        self._folder = folder
        self._schema = schema
        self._parts: list[str] = []
        self._sizes: list[int] = []
        self._rows: dict[str, tuple[int, int]] = {}
        self._error_parts: set[str] = set()
        self.failed: set[str] = set()
        """Images with an error row and no row."""

    def scan(self) -> list[str]:
        """Read the folder anew; returns the parts that were damaged, which are now deleted.

        An image in two parts (a task that outlived its driver) is kept once: parts
        are visited in order of name, and both hold the same bytes.

        Raises:
            CannotRunError: the store or the disk does not let us read; this deletes nothing then.
        """
        parts, broken = read_parts(self._folder.uri, self._schema)
        errors, broken_errors = read_parts(
            self._folder.errors_uri, tables.ERRORS, tables.ERRORS_WITHOUT_PLACE
        )
        for uri in broken + broken_errors:
            storage.delete_file(uri)
        for place in (self._folder.uri, self._folder.errors_uri):
            storage.delete_temporary(place)
        self._parts, self._sizes, self._rows = [], [], {}
        for uri, ids in parts:
            self._add(uri, ids)
        self._error_parts = {uri for uri, _ in errors}
        self.failed = {i for _, ids in errors for i in ids} - self._rows.keys()
        return broken + broken_errors

    def add(self, counts: Mapping[str, Any]) -> None:
        """Note what a task committed (see `chunks.run_chunk`)."""
        done, failed = json.loads(counts["done"]), json.loads(counts["failed"])
        if done:
            self._add(part_uri(self._folder.uri, counts["part"]), done)
        if failed:
            self._error_parts.add(part_uri(self._folder.errors_uri, counts["part"]))
        self.failed.update(failed)

    def fail(self, rows: Sequence[ErrorRow]) -> None:
        """Write error rows that no task wrote."""
        name = tables.chunk_name(row.image_id for row in rows)
        tables.write_errors(self._folder.errors_uri, name, rows)
        self._error_parts.add(part_uri(self._folder.errors_uri, name))
        self.failed.update(row.image_id for row in rows)

    def withdraw(self, names: Sequence[str], image_ids: Iterable[str]) -> int:
        """Take back error rows of images that shall run again; returns how many.

        Args:
            names: of the parts; other rows in them are taken back, too.
            image_ids: of the rows.
        """
        before = len(self.failed)
        self.failed.difference_update(image_ids)
        for name in names:
            uri = part_uri(self._folder.errors_uri, name)
            self._error_parts.discard(uri)
            if not storage.exists(uri):  # damaged, and deleted by a scan
                continue
            self.failed.difference_update(
                tables.read_table(uri, ["image_id"]).column("image_id").to_pylist()
            )
            storage.delete_file(uri)
        return before - len(self.failed)

    def _add(self, uri: str, image_ids: Sequence[str]) -> None:
        number = len(self._parts)
        self._parts.append(uri)
        self._sizes.append(len(image_ids))
        for row, image_id in enumerate(image_ids):
            self._rows.setdefault(image_id, (number, row))

    def uncommitted(self, image_ids: Iterable[str]) -> list[str]:
        """The images that have neither a row nor an error row."""
        return [i for i in image_ids if i not in self._rows and i not in self.failed]

    def settle(self) -> None:
        """Leave every image in one file only, as it stands once in the index.

        Needed where a task outlived its driver and committed beside the run that went on.
        """
        for uri in set(part_files(self._folder.errors_uri)) - self._error_parts:
            storage.delete_file(uri)  # of a task that ended after its rows were withdrawn
        strangers = set(part_files(self._folder.uri)) - set(self._parts)
        kept: list[list[int]] = [[] for _ in self._parts]
        for number, row in self._rows.values():
            kept[number].append(row)
        crowded = [n for n, size in enumerate(self._sizes) if len(kept[n]) < size]
        if not strangers and not crowded:
            return
        for uri in strangers:
            storage.delete_file(uri)
        for number in crowded:
            uri, rows = self._parts[number], sorted(kept[number])
            if rows:
                whole = tables.read_table(uri)
                storage.write_bytes(uri, tables.to_bytes(whole.take(rows)))
            else:
                storage.delete_file(uri)
        self.scan()

    def index(self, image_ids: Iterable[str]) -> TableIndex:
        """The index of the rows of these images, for those that have one."""
        found = [i for i in image_ids if i in self._rows]
        places = [self._rows[i] for i in found]
        return TableIndex(
            tuple(self._parts), table_of(found, [p for p, _ in places], [r for _, r in places])
        )
