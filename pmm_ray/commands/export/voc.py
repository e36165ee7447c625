"""A run's masks as a VOC tree: SegmentationClass/ID.png and the lists of its splits.

The files are the bytes of the masks table: indexed PNG with the VOC palette, 0 the background,
1..C the classes in the order of `class_names.txt`, 255 no class (16-bit grey and 65535 with more
than 254 classes).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pmm_ray.commands.export.out import Out
from pmm_ray.commands.export.source import RunMasks, Written
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.sources.labels.label_files import read_class_list

MASKS = "SegmentationClass"
LISTS = "ImageSets/Segmentation"
CLASS_NAMES = "class_names.txt"
_OTHER = "--format coco"


def write(masks: RunMasks, out: Out, progress: Progress) -> Written:
    """Write the tree below `out`.

    Raises:
        CannotRunError: a class whose name cannot stand on a line of `class_names.txt`.
    """
    _write_names(masks.manifest.label_space.names, out.place(CLASS_NAMES))
    written = Written()

    def write_mask(row: dict[str, Any]) -> None:
        name = f"{tables.check_image_id(row['image_id'])}.png"
        storage.write_bytes(out.place(MASKS, name), row["mask_png"])

    for split in masks.splits:
        written.image_ids |= {row["image_id"] for row, _ in masks.each(split, progress, write_mask)}
        text = "".join(f"{image_id}\n" for image_id in split.image_ids)
        storage.write_bytes(out.place(LISTS, f"{split.split}.txt"), text.encode())
    progress.message(
        f"{out.uri}/{MASKS}: {', '.join(f'{s.split} from {s.stage}' for s in masks.splits)}"
    )
    return written


def _write_names(names: Sequence[str], uri: str) -> None:
    storage.write_bytes(uri, "".join(f"{name}\n" for name in names).encode())
    try:
        again = read_class_list(uri).space.names
    except CannotRunError as error:
        raise CannotRunError(
            f"{error}: give the classes other names, or export {_OTHER}"
        ) from error
    lost = [name for name in names if name not in again]
    if lost:
        raise CannotRunError(
            f"{uri} has a name a line, and class {lost[0]!r} does not read back: give it another "
            f"name, or export {_OTHER}"
        )
