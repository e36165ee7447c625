"""Exports that are not read are refused with the one to choose."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.datasets.coco import import_coco
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.sources.datasets.foreign import FOREIGN, foreign_export
from pmm_ray.sources.importing.understood import console

from .coco_tree import photo

FILES = {
    "YOLO text": ("labels/a.txt", "0 0.5 0.5 0.25 0.25\n1 0.1 0.1 0.2 0.2 0.3 0.3\n"),
    "Label Studio JSON": (
        "project.json",
        json.dumps([{"id": 1, "annotations": [{"result": []}], "data": {"image": "a.jpg"}}]),
    ),
    "LabelMe JSON": ("a.json", json.dumps({"version": "5", "shapes": [], "imagePath": "a.jpg"})),
    "VIA JSON": ("via.json", json.dumps({"a.jpg1": {"filename": "a.jpg", "regions": []}})),
    "Datumaro JSON": (
        "annotations/default.json",
        json.dumps({"info": {}, "categories": {"label": {}}, "items": [{"id": "a"}]}),
    ),
    "Supervisely JSON": ("ds0/ann/a.jpg.json", '{"objects": [{"classTitle": "cat"}]}'),
    "VOC XML": ("Annotations/a.xml", "<annotation><filename>a.jpg</filename><object>"),
    "Roboflow's table of mask values": ("valid/_classes.csv", "Pixel Value, Class\n0, bg\n"),
    "COCO JSON": ("labels.json", '{"images": [{"id": 1, "file_name": "a.jpg"}]}'),
    "CVAT XML": ("annotations.xml", '<?xml version="1.0"?>\n<annotations>\n<image id="0" />\n'),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_each_is_recognised_and_named(name: str, tmp_path: Path) -> None:
    file, text = FILES[name]
    (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / file).write_text(text)
    with pytest.raises(CannotRunError, match=f"is {name}, which is not read"):
        import_coco(str(tmp_path), str(tmp_path / "out"))
    photo(tmp_path / "images/a.jpg")
    assert name in foreign_export(str(tmp_path))
    report = import_folder(str(tmp_path), str(tmp_path / "out"))
    assert f"is {name}, which is not read" in " ".join(console(report).split())


@pytest.mark.parametrize(
    ("name", "file", "text"),
    [
        ("YOLO text", "obj_train_data/a.txt", "0 0.5 0.5 0.25 0.25\n"),
        ("LabelMe JSON", "sub/json/a.json", '{"imageData": "' + "A" * 99_999),
        ("LabelMe JSON", "a.json", '{"shapes": [{"shape_type": "circle"' + " " * 99_999),
        ("CVAT XML", "annotations.xml", "<annotations>\n<meta>" + " " * 99_999),
        (
            "Label Studio JSON",
            "project-1.json",
            '[{"image": "/data/upload/a.jpg", "id": 1, "label": [], "annotator": 1}]',
        ),
    ],
)
def test_other_forms_of_them(name: str, file: str, text: str, tmp_path: Path) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / file).write_text(text)
    assert f"is {name}, which is not read" in foreign_export(str(tmp_path))


def test_a_json_file_of_another_tool(tmp_path: Path) -> None:
    file, text = FILES["Label Studio JSON"]
    (tmp_path / file).write_text(text)
    with pytest.raises(CannotRunError, match="Brush labels to COCO"):
        import_coco(str(tmp_path / file), str(tmp_path / "out"))


def test_what_is_ours_is_not_foreign(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("1 2 3\n")
    (tmp_path / "set.json").write_text('{"images": [], "annotations": [], "data": 1}')
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/a.txt").write_text("0 0.5 0.5 0.25 0.25\n")
    assert foreign_export(str(tmp_path)) == ""
