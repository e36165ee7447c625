"""What `--label-space` takes, and the manifest that a folder of masks belongs to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pmm_ray.labels import COCO14, VOC12, LabelSpace
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.record import manifest_near
from pmm_ray.sources.labels.label_files import read_label_space

SPACE = LabelSpace("x", ("background", "кот", "犬"), (0, 5, 6))


def test_names() -> None:
    assert read_label_space("voc12") is VOC12
    assert read_label_space("coco14") is COCO14
    with pytest.raises(CannotRunError, match=r"'ade20k': it is one of voc12, coco14, or a file"):
        read_label_space("ade20k")


@pytest.mark.parametrize(
    ("name", "text", "dataset_ids"),
    [
        ("classes.txt", "\ufeffкот\n犬\n\n", (0, 1, 2)),
        ("names", "background\nкот\n犬\n", (0, 1, 2)),
        ("c.csv", "id, name\n0, background\n300, кот\n302, 犬\n", (0, 300, 302)),
        (
            "coco.json",
            json.dumps({"categories": [{"id": 9, "name": "犬"}, {"id": 7, "name": "кот"}]}),
            (0, 7, 9),
        ),
        (
            "space.json",
            LabelSpace("x", ("background", "кот", "犬"), (0, 5, 6)).to_json(),
            (0, 5, 6),
        ),
    ],
)
def test_files(tmp_path: Path, name: str, text: str, dataset_ids: tuple[int, ...]) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    space = read_label_space(str(tmp_path / name))
    assert space.names == ("background", "кот", "犬")
    assert space.dataset_ids == dataset_ids


SPACE = '{"name": "a", "names": ["background", "cat"], "dataset_ids": [0, %s]}'


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.txt", "cat\ncat\n", "occur twice"),
        ("a.txt", "id name\n1 cat\n2 dog\n", "'id name' is no class"),
        ("a.txt", "class_id,class_name\n0,background\n1,cat\n", "is no class"),
        ("a.txt", "ID\tName\n1\tcat\n", "is no class"),
        ("a.txt", "Nr Klasse\n1 cat\n2 dog\n", "'Nr Klasse' has no id"),
        ("a.txt", "background\n1 cat\n2 dog\n", "'background' has no id"),
        ("a.txt", "name id\ncat 1\ndog 2\n", "is no class"),
        ("a.csv", "name\ncat\n", "columns id and name"),
        ("a.csv", "id,name\nx,cat\n", "line 2 is no id"),
        ("a.json", "[1", "Expecting"),
        ("a.json", "[1]", "a label space is"),
        ("a.json", '{"categories": [{"id": 7.5, "name": "cat"}]}', "7.5 is no id"),
        ("a.json", '{"categories": [{"id": 1e999, "name": "cat"}]}', "inf is no id"),
        ("a.json", SPACE % "1e999", "inf is no whole number"),
        ("a.json", SPACE % "7.5", "7.5 is no whole number"),
        ("a.txt", b"\xff\xff", "not UTF-8"),
    ],
)
def test_files_that_make_none(tmp_path: Path, name: str, text: str | bytes, reason: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(CannotRunError, match=reason):
        read_label_space(str(tmp_path / name))


def test_manifests(shapes: Manifest, tmp_path: Path) -> None:
    assert read_label_space(shapes.uri) == shapes.label_space
    beside = manifest_near(f"{shapes.root}/masks")
    assert beside is not None
    assert beside.uri == shapes.uri
    record = {"name": "run", "stages": [], "manifest": shapes.uri}
    (tmp_path / "run.json").write_text(json.dumps(record))
    of_run = manifest_near(str(tmp_path / "make_masks-12345678"))
    assert of_run is not None
    assert of_run.label_space == shapes.label_space
    record["manifest"] = str(tmp_path / "gone.parquet")
    for text in (json.dumps(record), "[1]", "{"):  # the last two are another program's
        (tmp_path / "run.json").write_text(text)
        assert manifest_near(str(tmp_path / "make_masks-12345678")) is None
