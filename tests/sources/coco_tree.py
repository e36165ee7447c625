"""Small COCO-style trees that tests write."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from pmm_ray.labels import COCO14

HEIGHT, WIDTH = 20, 30
OFFICIAL = [
    {"id": i, "name": name, "supercategory": "x"}
    for i, name in zip(COCO14.dataset_ids[1:], COCO14.names[1:], strict=True)
]


def box(x: float, y: float, width: float, height: float) -> list[float]:
    """A rectangle as a polygon."""
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def annotation(image: int, category: int, segmentation: Any, crowd: int = 0) -> dict[str, Any]:
    return {
        "image_id": image,
        "category_id": category,
        "segmentation": segmentation,
        "iscrowd": crowd,
    }


def entry(number: int, file_name: str, **more: Any) -> dict[str, Any]:
    return {"id": number, "file_name": file_name, "height": HEIGHT, "width": WIDTH, **more}


def photo(path: Path, size: tuple[int, int] = (WIDTH, HEIGHT), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "grey").save(path, **options)


def write(
    path: Path,
    images: Sequence[dict[str, Any]],
    annotations: Sequence[dict[str, Any]],
    categories: Sequence[dict[str, Any]] = OFFICIAL,
) -> Path:
    """Annotations first: no order of the lists may be relied on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbered = [{"id": i + 1, **item} for i, item in enumerate(annotations)]
    content = {"annotations": numbered, "images": images, "categories": categories}
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path
