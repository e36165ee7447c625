"""Photographs are read before they are asked for, and nothing else changes."""

from __future__ import annotations

import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import ErrorRow
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.mapping.workers import InputRow, row_by_row
from pmm_ray.runtime.rows.photographs import Photographs, prefetch


def source(shapes: Manifest) -> Photographs:
    return Photographs(shapes.root, shapes.apply_exif, 10**7, shapes.label_space)


def test_a_worker_gets_the_same_pixels_and_errors(shapes: Manifest, tmp_path: Path) -> None:
    photographs = source(shapes)
    rows: list[InputRow] = [{"manifest": row} for row in tables.read_table(shapes.uri).to_pylist()]
    rows[3] = {"manifest": rows[3]["manifest"] | {"uri": str(tmp_path / "gone.jpg")}}
    (tmp_path / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    rows[5] = {"manifest": rows[5]["manifest"] | {"uri": str(tmp_path / "torn.jpg")}}

    def total(row: InputRow) -> dict[str, Any]:
        return {"sum": int(photographs.image(row["manifest"]).astype(np.int64).sum())}

    uris = [storage.anchor(row["manifest"]["uri"], shapes.root) for row in rows]
    assert any(row["manifest"]["uri"] not in uris for row in rows)
    whole = [{"manifest": row["manifest"] | {"uri": u}} for row, u in zip(rows, uris, strict=True)]

    def total_of(row: InputRow, image: NDArray[np.uint8]) -> dict[str, Any]:
        assert row in whole  # nothing but data is in a row
        return {"sum": int(image.astype(np.int64).sum())}

    expected = list(row_by_row("test", total)(rows))
    assert list(photographs.row_by_row("test", total_of)(rows)) == expected
    bad = [row for row in expected if isinstance(row, ErrorRow)]
    assert [row.kind for row in bad] == ["missing", "decode"]


def test_the_next_files_are_read_while_the_first_is_worked_on() -> None:
    read: list[str] = []
    five = threading.Event()

    def note(name: str) -> bytes:
        read.append(name)
        if len(read) == 5:
            five.set()
        return name.encode()

    names = [f"f{i}" for i in range(9)]
    with closing(prefetch(note, names)) as files:
        assert next(files).result() == b"f0"
        assert five.wait(20)
        assert sorted(read) == names[:5]  # and no more than that: they are kept in memory
        assert [file.result() for file in files] == [name.encode() for name in names[1:]]
    assert sorted(read) == names


def test_files_that_nobody_waits_for_are_not_read() -> None:
    read: list[str] = []

    def note(name: str) -> bytes:
        read.append(name)
        return b""

    with closing(prefetch(note, [f"f{i}" for i in range(99)])) as files:
        next(files).result()
    assert len(read) <= 5
