"""What COCO 2014 and a user's own COCO-style JSON share: from annotation files to manifest rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.datasets.coco_json import CocoImage, misplaced_annotations, read_annotations
from pmm_ray.sources.datasets.coco_objects import NO_OUTLINE, ObjectSpill, parse_object
from pmm_ray.sources.reading.names import lookup

MASKS = "masks"
OBJECTS_KEY = "pmm.objects"
"""Metadata of a manifest whose masks are made of the objects beside it: their fingerprint."""

STRANGERS = "annotations of images that are not listed"
"""Key of `ImportReport.counts`."""


@dataclass
class AnnotatedImages:
    """One annotation file, read: its images and the labels of each.

    `labels[i]` are the contiguous ids of `images[i]`, with crowd regions; `faults` says by
    position what is wrong with an image's entry or annotations; `without_truth` are the positions
    of images whose objects have no outlines to draw; `boxes` counts objects of which only a box is
    known, `strangers` annotations of images that the file does not list.
    """

    images: list[CocoImage]
    labels: list[set[int]]
    faults: dict[int, str] = field(default_factory=dict)
    without_truth: set[int] = field(default_factory=set)
    boxes: int = 0
    strangers: int = 0
    annotations: int = 0

    def labels_of(self, position: int) -> Callable[[], set[int]]:
        """As `Importer.add` wants them: raises ValueError with the fault, if there is one."""

        def read() -> set[int]:
            if position in self.faults:
                raise ValueError(self.faults[position])
            return self.labels[position]

        return read

    def notes(self) -> list[str]:
        """What the file leaves open, for people."""
        if not self.boxes:
            return []
        return [
            f"objects without an outline, boxes only: {self.boxes}; where an image has others, "
            f"their boxes are not scored; {len(self.without_truth)} images have no ground truth"
        ]

    def add_counts(self, counts: dict[str, int]) -> None:
        """Add what there is of annotations."""
        counts["annotations"] += self.annotations
        if self.strangers:
            counts[STRANGERS] = counts.get(STRANGERS, 0) + self.strangers


def read_annotated(
    uri: str,
    images: list[CocoImage],
    ids: Sequence[str],
    label_of: Mapping[str, int],
    objects: str | None,
    name: str,
) -> AnnotatedImages:
    """Read an annotation file; its objects go into the objects table, grouped by image.

    Args:
        uri: of the JSON file.
        images: its images, and `ids` their image ids.
        label_of: contiguous id by category key; 0 is no class and its annotations are left out.
        objects: folder of the objects table, None: none is needed.
        name: of its parts.

    Raises:
        CannotRunError: not a COCO annotation file, one whose coordinates are no pixels, or one
            that has its annotations elsewhere.
    """
    found = AnnotatedImages(images, [set() for _ in images])
    position_of, find_label = lookup(_positions(images, found.faults)), lookup(label_of)
    # sorted as the manifest is: neighbours there are neighbours in the objects table
    order = sorted(range(len(ids)), key=ids.__getitem__)
    rank = {position: row for row, position in enumerate(order)}
    spill = ObjectSpill(objects, [ids[i] for i in order], name) if objects else None
    outlined: set[int] = set()
    boxed: set[int] = set()
    furthest = 0.0
    for annotation in read_annotations(uri):
        found.annotations += 1
        position = position_of(annotation.get("image_id")) if type(annotation) is dict else None
        if position is None:
            found.strangers += 1
            continue
        category = annotation.get("category_id")
        label = find_label(category)
        if label is None:
            found.faults.setdefault(position, f"category {category} is none of the file's")
            continue
        if label == 0:
            continue
        try:
            item = parse_object(annotation, label, images[position])
        except ValueError as error:
            found.faults.setdefault(position, f"annotation {annotation.get('id')}: {error}")
            continue
        found.labels[position].add(label)
        if furthest <= 1:
            # run lengths count pixels
            outlines = [[math.inf]] if item["polygons"] is None else item["polygons"]
            furthest = max(map(max, outlines), default=furthest)
        if item["label"] != NO_OUTLINE:
            outlined.add(position)
        else:
            found.boxes += 1
            boxed.add(position)
            if not item["polygons"]:
                found.without_truth.add(position)
        if spill is not None:
            spill.add(rank[position], item)
    if not found.annotations and (fault := misplaced_annotations(uri)):
        raise CannotRunError(f"{uri}: {fault}")
    if 0 < furthest <= 1:
        raise CannotRunError(
            f"{uri}: no outline or box reaches beyond the first pixel: are its coordinates shares "
            "of the sides? They must be pixels"
        )
    found.without_truth |= boxed - outlined
    if spill is not None:
        spill.finish()
    return found


def _positions(images: Sequence[CocoImage], faults: dict[int, str]) -> dict[str, int]:
    """The position of each image by its key; entries that share one are faults, all of them."""
    position_of: dict[str, int] = {}
    for position, image in enumerate(images):
        if image.fault:
            faults[position] = image.fault
            continue
        first = position_of.setdefault(image.key, position)
        if first != position:
            for place in (first, position):
                faults[place] = (
                    f"the id {image.key} of `images` occurs twice: whose labels are they?"
                )
    return position_of


def mask_uri(out: str, image_id: str) -> str:
    """Where the mask of an image will be drawn."""
    return storage.join(out, MASKS, f"{image_id}.png")
