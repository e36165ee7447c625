"""A user's own data set in COCO's JSON, with any categories.

    ROOT.json, photographs beside it or in images/
    ROOT/annotations/instances_SPLIT.json   or   ROOT/annotations/SPLIT.json   or   ROOT/SPLIT.json
    ROOT/annotations.json                   its images may name their "split"; else all are `train`

Photographs are looked for in `images/SPLIT`, `SPLIT`, `images` and beside the JSON file; a
`file_name` may name a folder below these. EXIF orientation is applied, as annotation tools show
photographs; one whose size differs from the stated one is an error row.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import PurePosixPath

from pmm_ray.labels import BACKGROUND, IGNORE_8BIT, IGNORE_16BIT, LabelSpace
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.rows.images import MAX_PIXELS
from pmm_ray.sources.coco_files import OBJECTS_FOLDER, OBJECTS_KEY, mask_uri, read_annotated
from pmm_ray.sources.coco_json import CocoImage, index_objects, read_categories
from pmm_ray.sources.importing import Importer, ImportReport
from pmm_ray.sources.label_lines import DEFAULT_SPLIT
from pmm_ray.sources.names import safe_image_id

_ONE_FILE = "annotations.json"


def import_coco(
    root: str,
    out: str,
    *,
    splits: Sequence[str] = ("train", "val"),
    truth_splits: Sequence[str] = ("train", "val"),
    max_pixels: int = MAX_PIXELS,
) -> ImportReport:
    """Write the manifest of COCO-style JSON and the table of its objects.

    The classes are the categories of all files in the order of their ids; a category called
    "background" is none. Images without annotations are unlabelled.

    Args:
        root: a JSON file or a folder, see above.
        out: folder that gets `manifest.parquet`, `errors/` and `objects/`.
        splits: looked for in a folder; those without a file are left out, but not all of them.
        truth_splits: those whose labelled rows name a mask to be drawn, `masks/ID.png`.
        max_pixels: a photograph that declares more becomes an error row.

    Raises:
        CannotRunError: no annotation file, or one that cannot be read.
        ValueError: categories that make no label space.
    """
    root, out = storage.absolute(root), storage.absolute(out)
    files = _annotation_files(root, splits)
    space, label_of = _label_space([uri for _, uri in files])
    importer = Importer(out, space, source="coco", exif="apply", max_pixels=max_pixels)
    objects = storage.join(out, OBJECTS_FOLDER)
    storage.delete_folder(objects)
    annotations = 0
    for number, (split, uri) in enumerate(files):
        found = read_annotated(uri, label_of, _image_ids, objects, f"{number:02d}")
        annotations += found.annotations
        places = _places(uri, split, storage.parent(uri) if root.endswith(".json") else root)
        for position, image in enumerate(found.images):
            image_id = _image_id(image)
            own = image.split or split or DEFAULT_SPLIT
            drawn = bool(found.labels[position]) and own in truth_splits
            try:
                photograph = _find(image.file_name, places)
            except ValueError as error:
                importer.fail(image_id, "missing", str(error))
                continue
            importer.add(
                image_id,
                photograph,
                own,
                found.labels_of(position),
                mask_uri(out, image_id) if drawn else None,
                stated_size=(image.height, image.width),
            )
    metadata = {OBJECTS_KEY: index_objects(objects)} if storage.exists(objects) else {}
    return importer.finish({"annotations": annotations}, metadata)


def _annotation_files(root: str, splits: Sequence[str]) -> list[tuple[str, str]]:
    """(split, uri) of the annotation files; the split of a single one is empty."""
    if root.endswith(".json"):
        return [("", root)]
    files = []
    tried = []
    for split in splits:
        names = (f"annotations/instances_{split}.json", f"annotations/{split}.json")
        places = [storage.join(root, name) for name in (*names, f"{split}.json")]
        tried += places
        files += [(split, uri) for uri in places if storage.exists(uri)][:1]
    if not files:
        single = storage.join(root, _ONE_FILE)
        if not storage.exists(single):
            raise CannotRunError(f"no annotation file; looked for {[*tried, single]}")
        files = [("", single)]
    return files


def _label_space(uris: Sequence[str]) -> tuple[LabelSpace, dict[int, int]]:
    """The classes of all files, and the contiguous id of each category id."""
    categories: dict[int, str] = {}
    for uri in uris:
        for number, name in read_categories(uri).items():
            if categories.setdefault(number, name) != name:
                raise CannotRunError(
                    f"category {number} is {categories[number]!r} in one file and {name!r} in {uri}"
                )
    classes = {n: categories[n] for n in sorted(categories) if categories[n] != BACKGROUND}
    label_of = {number: i for i, number in enumerate(classes, 1)} | {
        number: 0 for number, name in categories.items() if name == BACKGROUND
    }
    names = (BACKGROUND, *classes.values())
    ignore = {IGNORE_8BIT, IGNORE_16BIT}
    usable = all(0 < number < IGNORE_16BIT for number in classes) and not ignore & set(classes)
    dataset_ids = (0, *classes) if usable else tuple(range(len(names)))
    return LabelSpace("coco-style", names, dataset_ids), label_of


def _image_ids(images: Sequence[CocoImage]) -> list[str]:
    return [_image_id(image) for image in images]


def _image_id(image: CocoImage) -> str:
    """The file's name without its ending; with its folders where it names some."""
    return safe_image_id(str(PurePosixPath(image.file_name).with_suffix("")))


def _places(uri: str, split: str, root: str) -> list[str]:
    names = [f"images/{split}", split, "images"] if split else ["images"]
    return [storage.join(root, name) for name in names] + [root, storage.parent(uri)]


def _find(file_name: str, places: Sequence[str]) -> str:
    """Raises ValueError for a name that leaves its folder, or that is in none of them."""
    candidates = [storage.join(place, file_name) for place in places]
    found = next((uri for uri in candidates if storage.exists(uri)), None)
    if found is None:
        raise ValueError(f"{file_name} is in none of {[*dict.fromkeys(places)]}")
    return found
