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
from pmm_ray.runtime.core.errors import CannotRunError, MayPassError
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.selection import Selection
from pmm_ray.runtime.core.session import Session
from pmm_ray.sources.datasets.shapes import make_shapes
from pmm_ray.sources.reading.noted import noted
from pmm_ray.stages import import_data

from ..sources.coco_tree import entry
from ..sources.coco_tree import write as write_coco
from ..sources.faulty import a_coco, noise
from ..sources.test_parquet import encoded, write
from ..sources.test_voc12 import Tree

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


def test_lists_that_come_after_the_first_import_are_read(attempt: Attempt, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    (root / "labels.csv").rename(root / "labels.xlsx")
    found, said = attempt()
    assert found == {"a": [], "b": []}
    assert "labels.xlsx is not read" in said
    assert attempt()[1] == ""
    for name, text, labels in (
        ("labels.csv", "image_id,labels\na,cat\nb,dog\n", {"a": [1], "b": [2]}),
        ("classes.txt", "dog\ncat\n", {"a": [2], "b": [1]}),
    ):
        (root / name).write_text(text)
        found, said = attempt()
        assert found == labels
        assert AGAIN in said
        assert attempt()[1] == ""


def test_a_table_of_a_split_that_comes_later_is_read(attempt: Attempt, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    shutil.rmtree(root)
    for split in ("train", "valid"):
        noise(root / split / f"{split}.jpg")
    (root / "train/_classes.csv").write_text("filename,cat\ntrain.jpg,1\n")
    labels, _ = attempt()
    assert sorted(labels.values()) == [[], [1]]
    (root / "valid/_classes.csv").write_text("filename,cat\nvalid.jpg,1\n")
    labels, said = attempt()
    assert [*labels.values()] == [[1], [1]]
    assert AGAIN in said


def test_annotations_of_a_split_that_come_later_are_read(attempt: Attempt, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for split, name in (("train", "a"), ("val", "b")):
        noise(root / f"images/{name}.jpg", (30, 20))
        write_coco(root / f"{split}.json", [entry(1, f"{name}.jpg")], [])
        if split == "train":
            assert set(attempt("coco")[0]) == {"a"}
            assert attempt("coco")[1] == ""
    found, said = attempt("coco")
    assert set(found) == {"a", "b"}
    assert AGAIN in said


def test_a_corrected_annotation_of_voc_and_a_list_that_comes_later_are_read(
    attempt: Attempt, tmp_path: Path
) -> None:
    tree = Tree(tmp_path / "photos")
    for name in "ab":
        tree.photo(name)
        tree.xml(name, "cat")
    tree.list("train", "a")
    assert attempt("voc12")[0] == {"a": [8]}
    assert attempt("voc12")[1] == ""
    tree.xml("a", "dog")
    found, said = attempt("voc12")
    assert found == {"a": [12]}
    assert AGAIN in said
    tree.list("val", "b")
    found, said = attempt("voc12")
    assert found == {"a": [12], "b": [8]}
    assert AGAIN in said


def test_of_many_files_each_counts(attempt: Attempt, tmp_path: Path) -> None:
    shards = [tmp_path / f"photos/train-{n:03d}.parquet" for n in range(102)]
    for shard in shards:
        write(shard, [(encoded(), f"{shard.stem}.jpg")], ["cat"])
    attempt("parquet")
    assert attempt("parquet")[1] == ""
    write(shards[-1], [(encoded(), f"{shards[-1].stem}.jpg")], ["dog"])
    assert AGAIN in attempt("parquet")[1]


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


@pytest.mark.parametrize(
    ("source", "key", "value"),
    [
        ("shapes", "ground_truth", "none"),
        ("coco", "label_column", "kind"),
        ("folder", "lists", "lists"),
        ("folder", "overlap", "smallest"),
        ("voc12", "crowd", "ignore"),
        ("parquet", "trust_pickle", True),
    ],
)
def test_a_key_of_another_source_is_refused(
    tmp_path: Path, source: str, key: str, value: Any
) -> None:
    data = {"root": "" if source == "shapes" else str(tmp_path), key: value, "source": source}
    config = RunConfig.model_validate({"data": data})
    with pytest.raises(CannotRunError, match=rf"data\.{key} is for .*: data\.source is {source}"):
        import_data.import_source(config.data, str(tmp_path / "out"), 0)


def test_a_root_without_a_source_is_no_synthetic_data_set(tmp_path: Path) -> None:
    data: dict[str, Any] = {"root": "photos", "images": 4, "size": 48}
    config = RunConfig.model_validate({"data": data})
    with pytest.raises(CannotRunError, match=r"data\.root is photos, and data\.source is missing"):
        import_data.import_source(config.data, str(tmp_path), 0)
    config = RunConfig.model_validate({"data": data | {"source": "shapes"}})
    report = import_data.import_source(config.data, str(tmp_path), 0)
    assert report.notes == ("data.root photos is not read: data.source is shapes",)


@pytest.mark.parametrize("source", ["folder", "voc12"])
def test_masks_count_only_if_they_are_asked_for(tmp_path: Path, source: str) -> None:
    if source == "folder":
        make_shapes(str(tmp_path), images=4, size=48, classes=2, seed=0)
    else:
        tree = Tree(tmp_path)
        tree.list("val", "a")
        tree.list("train", "a2")
        for image_id in ("a", "a2"):
            tree.photo(image_id)
            tree.mask(image_id, 8)
    for word, with_truth in (("all", True), ("none", False)):
        data = {"source": source, "root": str(tmp_path), "ground_truth": word}
        config = RunConfig.model_validate({"data": data})
        report = import_data.import_source(config.data, str(tmp_path / f"out-{word}"), 0)
        assert bool(report.counts["with ground truth"]) is with_truth
        assert report.rows
    data = {"source": source, "root": str(tmp_path), "ground_truth": "held_out"}
    config = RunConfig.model_validate({"data": data})
    with pytest.raises(CannotRunError, match=rf"ground_truth of {source} is all or none"):
        import_data.import_source(config.data, str(tmp_path / "out"), 0)
