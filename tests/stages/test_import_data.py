"""An import that is done is done again where the lists that it read have changed."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmm_ray.config import RunConfig
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import MayPassError
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.selection import Selection
from pmm_ray.runtime.core.session import Session
from pmm_ray.sources.reading.noted import noted
from pmm_ray.stages import import_data

from ..sources.faulty import a_coco, noise
from ..sources.test_parquet import encoded, write

PLAN = ("import_data", "make_cams")
Attempt = Callable[..., tuple[dict[str, Any], str]]


@pytest.fixture
def attempt(tmp_path: Path) -> Attempt:
    """One attempt at the import; returns the labels by image, and what it said."""

    def attempt(source: str = "folder", **selected: Any) -> tuple[dict[str, Any], str]:
        data = {"source": source, "root": str(tmp_path / "photos")}
        config = RunConfig.model_validate({"data": data})
        said = io.StringIO()
        selection, progress = Selection(PLAN, **selected), Progress(stream=said)
        with Session(str(tmp_path / "run"), config, selection, progress) as session:
            session.hold()
            folder = session.do(import_data.stage(config))
        table = tables.read_table(folder.path("manifest.parquet"), ["image_id", "labels"])
        return dict(zip(*table.to_pydict().values(), strict=True)), said.getvalue()

    for name in "ab":
        noise(tmp_path / f"photos/images/{name}.jpg")
    labels = tmp_path / "photos/labels.csv"
    labels.write_text("image_id,labels\na,cat\nb,dog\n")
    return attempt


AGAIN = "import_data: what it read has changed, it is read again"


def test_a_corrected_spreadsheet_is_read_again(attempt: Attempt, tmp_path: Path) -> None:
    labels = tmp_path / "photos/labels.csv"
    assert attempt()[0] == {"a": [1], "b": [2]}
    assert attempt() == ({"a": [1], "b": [2]}, "")  # nothing is done
    labels.write_text("image_id,labels\na,cat;dog\nb,dog\n")
    # not selected, not looked at
    assert attempt(only="make_cams") == ({"a": [1], "b": [2]}, "")
    found, said = attempt()
    assert found == {"a": [1, 2], "b": [2]}
    assert AGAIN in said
    assert attempt()[1] == ""


def test_what_is_gone_or_cannot_be_reached_cannot_be_read_again(
    attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempt()
    with monkeypatch.context() as patch:
        patch.setattr(storage, "version", _fails)
        assert attempt()[1] == ""
    (tmp_path / "photos/labels.csv").unlink()
    assert attempt()[1] == ""


def _fails(uri: str) -> None:
    raise MayPassError("the store fails")


def test_new_photographs_without_a_list_are_said(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for name in ("cat/a", "cat/b", "dog/c"):
        noise(root / f"{name}.jpg")
    data = {"source": "folder", "root": str(root), "labels_from": "folders"}
    config = RunConfig.model_validate({"data": data})
    with Session(str(tmp_path / "run"), config, Selection(PLAN), Progress()) as session:
        session.hold()
        summary = session.do(import_data.stage(config)).finished()
    (root / "cat/.DS_Store").touch()
    (root / "cat/a.jpg").touch()
    assert import_data.changes_since(summary) == []
    noise(root / "cat/d.jpg")
    (root / "dog/c.jpg").unlink()
    noise(root / "emu/e.jpg")
    said = import_data.changes_since(summary)
    assert [line.split(" in ")[1].split(" than ")[0] for line in said] == [
        str(root),
        str(root / "cat"),
        str(root / "dog"),
    ]
    shutil.rmtree(root)  # a disk that is not there
    assert import_data.changes_since(summary) == []


def test_new_shards_are_said(tmp_path: Path) -> None:
    root = tmp_path / "shards"
    write(root / "train-0.parquet", [(encoded(), "a.jpg")], ["cat"])
    config = RunConfig.model_validate({"data": {"source": "parquet", "root": str(root)}})
    with Session(str(tmp_path / "run"), config, Selection(PLAN), Progress()) as session:
        session.hold()
        summary = session.do(import_data.stage(config)).finished()
    assert import_data.changes_since(summary) == []
    write(root / "train-1.parquet", [(encoded(), "b.jpg")], ["dog"])
    [line] = import_data.changes_since(summary)
    assert f"in {root} than" in line


def test_annotations_are_noted_and_photographs_are_not(tmp_path: Path) -> None:
    root = a_coco(tmp_path)
    noise(tmp_path / "a.jpg", (30, 20))
    config = RunConfig.model_validate({"data": {"source": "coco", "root": str(root)}})
    with noted() as read:
        import_data.import_source(config.data, str(tmp_path / "out"), 0)
    assert list(read) == [str(root)]
