"""Ground truth of a folder beside the images of a run: some images have it, others do not."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import TableIndex
from pmm_ray.sources.masks.mask_files import MaskFiles, find_masks, write_listing
from pmm_ray.sources.masks.mask_pairs import match_masks


@dataclass(frozen=True)
class Truth:
    """Where the ground truth of each image is.

    Attributes:
        index: of all images: a row of a masks table or of a list of files; of an image without
            truth a row whose `uri` is empty.
        fingerprint: of the masks, see `MaskFiles`.
        place: where they are.
        count: images that have one.
        is_table: whether it is a table of ours, which holds contiguous ids.
        unsure: what may be the truth of an image, by its id, where more than one mask may be.
        notes: count pairs found by another rule than one name.
    """

    index: TableIndex
    fingerprint: str
    place: str
    count: int
    is_table: bool
    unsure: dict[str, str]
    notes: tuple[str, ...]


def find_truth(place: str, images: TableIndex, out: str) -> Truth:
    """Pair the images of a manifest with masks.

    Args:
        place: a masks table, or a folder of PNG files.
        images: index of the manifest.
        out: folder that gets the lists of files.

    Raises:
        CannotRunError: no masks, or not one of an image.
    """
    truth = find_masks(place, storage.join(out, "truth-files.parquet"))
    side = MaskFiles(place, True, images, "")
    listings = (storage.join(out, "unused"), storage.join(out, "truth-pairs.parquet"))
    matched = match_masks(side, truth, listings, None)
    if not matched.image_ids:
        raise CannotRunError(
            f"no image has ground truth of its name in {truth.place}: there are images such as "
            f"{sorted(images.image_ids)[:3]} and truth such as {sorted(truth.names)[:3]}"
        )
    known = matched.truth.locations()
    lacking = [image_id for image_id in images.image_ids if image_id not in known]
    none = write_listing(storage.join(out, "no-truth.parquet"), dict.fromkeys(lacking, ""))
    unsure = {i: text for i, text in matched.unsure.items() if i in set(lacking)}
    index = _joined(matched.truth, none)
    return Truth(
        index, truth.fingerprint, truth.place, len(known), truth.is_table, unsure, matched.notes
    )


def _joined(first: TableIndex, second: TableIndex) -> TableIndex:
    """Two indices as one."""
    moved = pc.add(second.table.column("part"), pa.scalar(len(first.parts), pa.int32()))
    there = second.table.set_column(1, "part", moved)
    return TableIndex((*first.parts, *second.parts), pa.concat_tables([first.table, there]))
