"""Small inputs with something odd about them, for the tests of faults."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pmm_ray.runtime.core import tables
from pmm_ray.sources.cams.cam_files import CamFolder
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.sources.importing.import_report import ImportReport

from .coco_tree import annotation, box, entry

KINDS = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def rows(report: ImportReport) -> dict[str, dict[str, Any]]:
    return {row["image_id"]: row for row in tables.read_table(report.manifest.uri).to_pylist()}


def planes_of(
    reader: Any, found: CamFolder, image_id: str, height: int, width: int
) -> tuple[list[int], Any]:
    """What a reader of CAMs or scores makes of the file of one image."""
    uri, row = found.index.locations()[image_id]
    manifest = {"image_id": image_id, "height": height, "width": width, "labels": []}
    return reader({"manifest": manifest, "cams": tables.read_rows(uri, [row])[0]})


def noise(path: Path, size: tuple[int, int] = (64, 48), kind: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(zlib.crc32("/".join(path.parts[-2:]).encode()))
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    image.save(path, kind)


def refuse_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no folder called `locked` be listed."""
    scan = os.scandir

    def refuse(place: str) -> Any:
        if str(place).endswith("locked"):
            raise PermissionError(13, "Permission denied", place)
        return scan(place)

    monkeypatch.setattr("pmm_ray.runtime.core.storage.os.scandir", refuse)


def a_folder(root: Path, csv: str | bytes, *names: str, label_column: str = "") -> ImportReport:
    for name in names or ("a.jpg", "b.jpg"):
        noise(root / "images" / name)
    data = csv if isinstance(csv, bytes) else csv.encode()
    (root / "labels.csv").write_bytes(data)
    return import_folder(str(root), str(root / "out"), label_column=label_column)


def a_coco(root: Path, *, file_names: tuple[str, ...] = ("a.jpg",), **changes: Any) -> Path:
    """One image of id 1, a cat in its corner."""
    content: dict[str, Any] = {
        "images": [entry(n, name) for n, name in enumerate(file_names, 1)],
        "annotations": [annotation(1, 1, [box(1, 1, 5, 5)])],
        "categories": KINDS,
    }
    path = root / "set.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content | changes), encoding="utf-8")
    return path
