"""`pmm doctor --data`: a data set looked at without a run, and nothing of it kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pmm_ray.commands.check_data import check_data, source_of
from pmm_ray.runtime.core.manifest import LABEL_SPACE_KEY
from pmm_ray.sources.datasets.folder import import_folder

from .sources.coco_tree import annotation, box, entry, photo, write


def photographs(root: Path, *lines: str) -> Path:
    (root / "images").mkdir(parents=True)
    for name in "abc":
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(root / f"images/{name}.jpg")
    (root / "labels.csv").write_text("\n".join(("image_id,labels,split", *lines)))
    return root


def files(root: Path) -> set[str]:
    return {str(path) for path in root.rglob("*")}


def test_a_folder_is_shown_as_an_import_shows_it_and_stays_as_it_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = photographs(tmp_path / "set", "a,cat,train", "b,dog,valid", "gone,cat,train")
    (root / "images/junk.jpg").write_bytes(b"junk")
    before = files(tmp_path)
    assert check_data(str(root)) == 0
    said = capfd.readouterr().out
    assert "source: folder" in said
    assert "cat 1" in said
    assert "of split valid" in said
    assert "missing: gone: the CSV names it" in said
    assert "3 of 6 images\nnot: 1 decode (junk: " in said
    assert files(tmp_path) == before


def test_a_recipe_names_the_data_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    root = photographs(tmp_path / "set", "a,cat,train", "b,dog,val")
    (tmp_path / "r.yaml").write_text("data: {source: folder, train_split: learn}\n")
    settings = [f"data.root={root}"]
    assert check_data(str(tmp_path / "r.yaml"), settings) == 1
    assert "no image is of the training split 'learn'" in capfd.readouterr().err
    assert check_data(str(tmp_path / "r.yaml"), [*settings, "data.train_split=train"]) == 0


def test_what_cannot_be_used_ends_with_1(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert check_data(str(tmp_path / "nowhere")) == 1
    assert "nothing is at" in capfd.readouterr().err
    assert check_data(str(photographs(tmp_path / "set"))) == 1
    assert "has a label: there is nothing to learn" in capfd.readouterr().err


def test_a_manifest_is_checked_as_the_folder_is_that_it_was_made_of(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, lines, code in (("bare", (), 1), ("set", ("a,cat,train", "b,dog,val"), 0)):
        root = photographs(tmp_path / name, *lines)
        import_folder(str(root), str(tmp_path / f"{name}-out"))
        said = []
        for place in (root, tmp_path / f"{name}-out"):
            assert check_data(str(place)) == code
            out, err = capfd.readouterr()
            counts = ("split ", "with ground truth", "unlabelled", "classes with", "no image")
            said.append(([line for line in out.splitlines() if line.startswith(counts)], err))
        assert len(said[1][0]) >= 4
        assert said[0] == said[1]


def test_a_row_of_a_manifest_with_other_labels_is_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = photographs(tmp_path / "set", "a,cat,train", "b,cat,train", "c,cat,train")
    uri = import_folder(str(root), str(tmp_path / "out")).manifest.uri
    table = pq.read_table(uri)
    labels = pa.array([[7], [1], [1]], table.schema.field("labels").type)
    place = table.column_names.index("labels")
    pq.write_table(table.set_column(place, table.schema.field("labels"), labels), uri)
    assert check_data(uri, ["errors.budget=0"]) == 3
    assert check_data(uri) == 0
    assert "label: a: labels [7] are outside 1..1" in capfd.readouterr().out


def test_the_layout_is_told_from_what_is_there(tmp_path: Path) -> None:
    photo(tmp_path / "coco/train/a.jpg")
    kinds = [{"id": 1, "name": "cat"}]
    path = tmp_path / "coco/train/_annotations.coco.json"
    write(path, [entry(1, "a.jpg")], [annotation(1, 1, [box(1, 1, 5, 5)])], kinds)
    assert source_of(str(tmp_path / "coco")) == "coco"
    assert source_of(str(path)) == "coco"
    assert source_of(str(photographs(tmp_path / "set"))) == "folder"
    assert source_of(str(tmp_path / "set")) == "folder"
    schema = pa.schema([("image_id", pa.string())], metadata={LABEL_SPACE_KEY: "{}"})
    pq.write_table(schema.empty_table(), tmp_path / "set/manifest.parquet")
    assert source_of(str(tmp_path / "set")) == "manifest"
    assert source_of(str(tmp_path / "set/manifest.parquet")) == "manifest"
    (tmp_path / "hf/train").mkdir(parents=True)
    (tmp_path / "set2/images").mkdir(parents=True)
    images = pa.table({"image": [b""]})
    pq.write_table(images, tmp_path / "hf/train/0000.parquet")
    assert source_of(str(tmp_path / "hf")) == "parquet"
    pq.write_table(pa.table({"size": [1]}), tmp_path / "set2/meta.parquet")
    assert source_of(str(tmp_path / "set2")) == "folder"
    pq.write_table(images, tmp_path / "set2/train.parquet")
    assert source_of(str(tmp_path / "set2")) == "parquet"
    (tmp_path / "set2/labels.csv").write_text("image_id,labels")
    assert source_of(str(tmp_path / "set2")) == "folder"
    (tmp_path / "voc/ImageSets").mkdir(parents=True)
    assert source_of(str(tmp_path / "voc")) == "voc12"
