"""What COCO 2014 and a user's own COCO-style JSON share: from annotation files to manifest rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.coco_json import (
    CocoImage,
    ObjectSpill,
    parse_object,
    read_annotations,
    read_images,
)

MASKS = "masks"
OBJECTS_FOLDER = "objects"
OBJECTS_KEY = "pmm.objects"
"""Metadata of a manifest whose masks are drawn from the objects beside it: their fingerprint."""


@dataclass
class AnnotatedImages:
    """One annotation file, read: its images and the labels of each.

    `labels[i]` are the contiguous ids of `images[i]`, with crowd regions; `faults` says by
    position what is wrong with an image's annotations; `strangers` counts annotations of images
    that the file does not list.
    """

    images: list[CocoImage]
    labels: list[set[int]]
    faults: dict[int, str] = field(default_factory=dict)
    strangers: int = 0
    annotations: int = 0

    def labels_of(self, position: int) -> Callable[[], set[int]]:
        """As `Importer.add` wants them: raises ValueError with the fault, if there is one."""

        def read() -> set[int]:
            if position in self.faults:
                raise ValueError(self.faults[position])
            return self.labels[position]

        return read


def read_annotated(
    uri: str,
    label_of: Mapping[int, int],
    image_ids: Callable[[Sequence[CocoImage]], Sequence[str]],
    objects: str | None,
    name: str,
) -> AnnotatedImages:
    """Read an annotation file; its objects go into the objects table, grouped by image.

    Args:
        uri: of the JSON file.
        label_of: contiguous id by category id; 0 is no class and its annotations are left out.
        image_ids: gives the ids of the images.
        objects: folder of the objects table, None: none is needed.
        name: of its parts.

    Raises:
        CannotRunError: not a COCO annotation file.
    """
    images = read_images(uri)
    found = AnnotatedImages(images, [set() for _ in images])
    position_of = {image.number: i for i, image in reversed(list(enumerate(images)))}
    ids = image_ids(images)
    # sorted as the manifest is: neighbours there are neighbours in the objects table
    order = sorted(range(len(ids)), key=ids.__getitem__)
    rank = {position: row for row, position in enumerate(order)}
    spill = ObjectSpill(objects, [ids[i] for i in order], name) if objects else None
    for annotation in read_annotations(uri):
        found.annotations += 1
        try:
            position = position_of.get(annotation["image_id"])
            category = annotation["category_id"]
        except (KeyError, TypeError) as error:
            raise CannotRunError(
                f"{uri}: entry {found.annotations - 1} of `annotations` lacks {error}"
            ) from error
        if position is None:
            found.strangers += 1
            continue
        if category not in label_of:
            found.faults.setdefault(position, f"category {category} is none of the file's")
            continue
        label = label_of[category]
        if label == 0:
            continue
        try:
            item = parse_object(annotation, label)
        except ValueError as error:
            found.faults.setdefault(position, f"annotation {annotation.get('id')}: {error}")
            continue
        found.labels[position].add(label)
        if spill is not None:
            spill.add(rank[position], item)
    if spill is not None:
        spill.finish()
    return found


def mask_uri(out: str, image_id: str) -> str:
    """Where the mask of an image will be drawn."""
    return storage.join(out, MASKS, f"{image_id}.png")
