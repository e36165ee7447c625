"""Files of a bucket are opened some at once; rows and error rows keep their order."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core.errors import MayPassError, RowError
from pmm_ray.runtime.rows.images import Header
from pmm_ray.sources.importing import importer as module
from pmm_ray.sources.importing.importer import Importer

SPACE = LabelSpace.from_names(["cat"])


def importer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Any) -> Importer:
    def header(uri: str, **_: object) -> Header:
        size = read(uri)
        return Header(size, size, 1, hash(uri))

    monkeypatch.setattr(module, "read_header", header)
    return Importer(str(tmp_path), SPACE, source="test", exif="ignore")


def add(images: Importer, image_id: str, uri: str, *labels: int) -> None:
    images.add(image_id, uri, "train", partial(tuple, labels))


def test_several_files_are_opened_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(8)

    def read(uri: str) -> tuple[int, int]:
        together.wait(timeout=60)
        return 4, 6

    images = importer(tmp_path, monkeypatch, read)
    names = [f"p{n:02}" for n in range(16)]
    for name in names:
        add(images, name, f"s3://b/{name}.jpg", 1)
    assert list(images.rows) == names
    assert not images.errors
    assert {(row.height, row.width, row.labels) for row in images.rows.values()} == {(4, 6, (1,))}


def test_the_order_is_that_of_adding_whichever_file_answers_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answered = threading.Event()

    def read(uri: str) -> tuple[int, int]:
        if uri == "s3://b/late.jpg":
            assert answered.wait(timeout=60)
        if uri == "s3://b/last.jpg":
            answered.set()
        if "broken" in uri:
            raise RowError("decode", "cut off", uri)
        return 4, 6

    images = importer(tmp_path, monkeypatch, read)
    add(images, "a", "s3://b/late.jpg", 1)
    add(images, "b", "s3://b/broken-1.jpg")
    images.fail("c", "label", "two masks fit it")
    add(images, "a", "s3://b/second.jpg", 1)
    add(images, "d", "s3://b/broken-2.jpg")
    add(images, "e", "s3://b/last.jpg")
    assert [(row.image_id, row.uri) for row in images.rows.values()] == [
        ("a", "s3://b/late.jpg"),
        ("e", "s3://b/last.jpg"),
    ]
    assert [error.image_id for error in images.errors] == ["b", "c", "a", "d"]
    assert "the first is s3://b/late.jpg" in images.errors[2].message


def test_only_some_photographs_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AHEAD", 3)
    images = importer(tmp_path, monkeypatch, lambda _: (4, 6))
    for n in range(10):
        add(images, f"p{n}", f"s3://b/{n}.jpg")
        assert len(images._waiting) <= 3
    assert images.finish().rows == 10


def test_a_store_that_fails_is_not_asked_for_what_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    go_on = threading.Event()

    def read(uri: str) -> tuple[int, int]:
        asked.append(uri)
        assert uri == "s3://b/0.jpg" or go_on.wait(timeout=60)
        raise MayPassError("the store fails")

    images = importer(tmp_path, monkeypatch, read)
    for n in range(100):
        add(images, f"p{n}", f"s3://b/{n}.jpg")
    with pytest.raises(MayPassError, match="the store fails"):
        _ = images.rows
    go_on.set()
    images._openers.shutdown()
    assert len(asked) < 100
