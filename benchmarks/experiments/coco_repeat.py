"""A small COCO tree, repeated until it has as many images as the official one.

    python benchmarks/experiments/coco_repeat.py SMALL OUT
    pmm plan recipes/coco14-mini.yaml --set data.root=OUT --cores 512 --price-per-core-hour PRICE

SMALL holds annotations/instances_{train,val}2014.json, train2014/ and val2014/. Photographs are
hard links, or symbolic ones across file systems, so OUT takes the space of the annotations only.
What `pmm plan` prints for it is for 82,081 and 40,137 images like those of SMALL.
"""

from __future__ import annotations

import argparse
import json
import os
from itertools import cycle, islice
from pathlib import Path
from typing import Any

# Images with an object.
OFFICIAL = {"train2014": 82_081, "val2014": 40_137}


def repeat(small: Path, out: Path, split: str, count: int) -> None:
    """Write `count` images of a split, and the annotations of each."""
    name = f"annotations/instances_{split}.json"
    content = json.loads((small / name).read_text(encoding="utf-8"))
    owned: dict[int, list[dict[str, Any]]] = {}
    for annotation in content["annotations"]:
        owned.setdefault(annotation["image_id"], []).append(annotation)
    shown = [image for image in content["images"] if image["id"] in owned]
    images, annotations = [], []
    (out / split).mkdir(parents=True)
    for number, image in enumerate(islice(cycle(shown), count), start=1):
        file = f"COCO_{split}_{number:012d}.jpg"
        link(small / split / image["file_name"], out / split / file)
        images.append(image | {"id": number, "file_name": file})
        for annotation in owned[image["id"]]:
            place = {"id": len(annotations) + 1, "image_id": number}
            annotations.append(annotation | place)
    content |= {"images": images, "annotations": annotations}
    (out / "annotations").mkdir(exist_ok=True)
    (out / name).write_text(json.dumps(content), encoding="utf-8")
    print(f"{split}: {len(shown)} images repeated to {count}, {len(annotations)} annotations")


def link(source: Path, target: Path) -> None:
    """A hard link where the file system allows it."""
    try:
        os.link(source, target)
    except OSError:
        target.symlink_to(source.resolve())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("small", type=Path)
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    for split, count in OFFICIAL.items():
        repeat(options.small, options.out, split, count)


if __name__ == "__main__":
    main()
