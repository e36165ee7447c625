"""Exports that are not read are refused with the one to choose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.coco import import_coco
from pmm_ray.sources.folder import import_folder
from pmm_ray.sources.foreign import FOREIGN, foreign_export
from pmm_ray.sources.understood import console

from .coco_tree import photo

FILES = {
    "YOLO text": ("labels/a.txt", "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.2 0.2 0.3 0.3\n"),
    "Label Studio JSON": (
        "project.json",
        json.dumps([{"id": 1, "annotations": [{"result": []}], "data": {"image": "a.jpg"}}]),
    ),
    "LabelMe JSON": ("a.json", json.dumps({"version": "5", "shapes": [], "imagePath": "a.jpg"})),
    "VIA JSON": ("via.json", json.dumps({"a.jpg1": {"filename": "a.jpg", "regions": []}})),
    "CVAT XML": ("annotations.xml", '<?xml version="1.0"?>\n<annotations>\n<image id="0" />\n'),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_each_is_recognised_and_named(name: str, tmp_path: Path) -> None:
    file, text = FILES[name]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    with pytest.raises(CannotRunError, match=f"is {name}, which is not read"):
        import_coco(str(tmp_path), str(tmp_path / "out"))
    photo(tmp_path / "images/a.jpg")
    report = import_folder(str(tmp_path), str(tmp_path / "out"))
    assert f"is {name}, which is not read" in " ".join(console(report).split())


def test_a_json_file_of_another_tool(tmp_path: Path) -> None:
    file, text = FILES["Label Studio JSON"]
    (tmp_path / file).write_text(text)
    with pytest.raises(CannotRunError, match="Brush labels to COCO"):
        import_coco(str(tmp_path / file), str(tmp_path / "out"))


def test_what_is_ours_is_not_foreign(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("1 2 3\n")
    (tmp_path / "set.json").write_text('{"images": [], "annotations": [], "data": 1}')
    assert foreign_export(str(tmp_path)) == ""
