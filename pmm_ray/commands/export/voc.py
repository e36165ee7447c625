"""A run's masks as a VOC tree: SegmentationClass/ID.png and the lists of its splits.

The files are the bytes of the masks table: indexed PNG with the VOC palette, 0 the background,
1..C the classes in the order of `class_names.txt`, 255 no class (16-bit grey and 65535 with more
than 254 classes).
"""

from __future__ import annotations

from typing import Any

from pmm_ray.commands.export.source import RunMasks, Written
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.progress import Progress

MASKS = "SegmentationClass"
LISTS = "ImageSets/Segmentation"
CLASS_NAMES = "class_names.txt"


def write(masks: RunMasks, out: str, progress: Progress) -> Written:
    """Write the tree below `out`.

    Args:
        out: folder or uri.
        progress: shows the files written.
    """
    folder = storage.join(out, MASKS)
    written = Written()

    def write_mask(row: dict[str, Any]) -> None:
        name = f"{tables.check_image_id(row['image_id'])}.png"
        storage.write_bytes(storage.join(folder, name), row["mask_png"])

    for split in masks.splits:
        written.image_ids |= {row["image_id"] for row, _ in masks.each(split, progress, write_mask)}
        text = "".join(f"{image_id}\n" for image_id in split.image_ids)
        storage.write_bytes(storage.join(out, LISTS, f"{split.split}.txt"), text.encode())
    names = "".join(f"{name}\n" for name in masks.manifest.label_space.names)
    storage.write_bytes(storage.join(out, CLASS_NAMES), names.encode())
    progress.message(f"{folder}: {', '.join(f'{s.split} from {s.stage}' for s in masks.splits)}")
    return written
