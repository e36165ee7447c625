"""Photographs are read before they are asked for, and nothing else changes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import ErrorRow
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.mapping.stream import InputRow, row_by_row
from pmm_ray.runtime.rows import photographs as module
from pmm_ray.runtime.rows.photographs import Photographs, ReadAhead


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

    plain = row_by_row("test", total)
    expected = list(plain(rows))
    assert list(photographs.reading_ahead(plain)(rows)) == expected
    bad = [row for row in expected if isinstance(row, ErrorRow)]
    assert [row.kind for row in bad] == ["missing", "decode"]


def test_the_next_files_are_read_while_the_first_is_worked_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []
    five = threading.Event()

    def note(uri: str) -> bytes:
        read.append(uri)
        if len(read) == 5:
            five.set()
        return uri.encode()

    monkeypatch.setattr(module, "read_file", note)
    uris = [f"f{i}" for i in range(9)]
    with ReadAhead(uris) as ahead:
        assert ahead.take(0) == b"f0"
        assert five.wait(20)
        assert sorted(read) == uris[:5]  # and no more than that: they are kept in memory
        assert ahead.take(3) == b"f3"  # rows that failed before their image was asked for
        assert ahead.take(8) == b"f8"
    assert sorted(read) == uris
