"""A user's own data set in COCO's JSON, with any categories.

    ROOT.json, photographs beside it or in images/
    ROOT/annotations/instances_SPLIT.json   or   ROOT/annotations/SPLIT.json   or   ROOT/SPLIT.json
    ROOT/SPLIT/_annotations.coco.json       as Roboflow exports it, photographs beside it
    ROOT/annotations.json                   its images may name their "split"; else all are `train`
    ROOT/annotations/instances_default.json the same, as CVAT exports it; ROOT/result.json as Label
                                            Studio does

Photographs are looked for in `images/SPLIT`, `SPLIT`, `images` and beside the JSON file; a
`file_name` may name a folder below these. A file that is listed twice, in one split or in two, is
an error row each time. EXIF orientation is applied, as annotation tools show photographs; one whose
size differs from the stated one is an error row.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.rows.images import IMAGE_SUFFIXES as ENDINGS
from pmm_ray.runtime.rows.images import MAX_PIXELS
from pmm_ray.sources.coco_classes import read_classes
from pmm_ray.sources.coco_files import (
    OBJECTS_FOLDER,
    OBJECTS_KEY,
    AnnotatedImages,
    mask_uri,
    read_annotated,
)
from pmm_ray.sources.coco_json import CocoImage
from pmm_ray.sources.coco_objects import index_objects
from pmm_ray.sources.foreign import foreign_export
from pmm_ray.sources.import_report import ImportReport, reads_source
from pmm_ray.sources.importing import Importer
from pmm_ray.sources.label_lines import DEFAULT_SPLIT
from pmm_ray.sources.names import (
    Found,
    NameIndex,
    beaten,
    clean_path,
    file_name,
    has_ending,
    safe_image_id,
    stem_path,
)

FILES = (
    *("annotations/instances_{}.json", "annotations/{}.json", "{}.json"),
    *("{}/_annotations.coco.json", "annotations/instances_{}2017.json"),
)
"""Where the annotations of a split are looked for."""
USUAL_SPLITS = ("train", "val", "valid", "validation", "test", "default")
SINGLE_FILES = (
    *("annotations.json", "annotations/instances_default.json", "_annotations.coco.json"),
    "result.json",
)
"""Where those of all splits are, if a folder has none of the former."""
UNASKED = "annotations of a split that nobody asked for"
"""Why a file of annotations is left out."""
_ROBOFLOW = "_annotations.coco.json"
# of COCO's other tasks, beside its objects
_OTHER_TASKS = ("captions_", "person_keypoints_", "image_info_", "stuff_", "panoptic_")


@reads_source
def import_coco(
    root: str,
    out: str,
    *,
    splits: Sequence[str] = ("train", "val"),
    truth_splits: Sequence[str] = ("train", "val"),
    max_pixels: int = MAX_PIXELS,
) -> ImportReport:
    """Write the manifest of COCO-style JSON and the table of its objects.

    The classes are the categories of all files in the order of their ids; a background among them
    is none, nor is a root category that no annotation has (Roboflow). Images without annotations
    are unlabelled. Where an image's objects have boxes and no outlines it has no ground truth.

    Args:
        root: a JSON file or a folder, see above.
        out: folder that gets `manifest.parquet`, `errors/` and `objects/`.
        splits: looked for in a folder; those without a file are left out, but not all of them.
        truth_splits: those whose labelled rows name a mask to be drawn, `masks/ID.png`.
        max_pixels: a photograph that declares more becomes an error row.

    Raises:
        CannotRunError: no annotation file, one that cannot be read, or categories that make no
            label space.
    """
    root, out = storage.absolute(root), storage.absolute(out)
    files = _annotation_files(root, splits)
    classes = read_classes([uri for _, uri in files])
    importer = Importer(out, classes.space, source="coco", exif="apply", max_pixels=max_pixels)
    importer.labels_from, importer.background = "the annotations", classes.background
    importer.notes += classes.notes
    unasked = _unasked(root, splits, [uri for _, uri in files])
    importer.notes += unasked.values()
    for uri in unasked:
        importer.leave_out(UNASKED, uri.removeprefix(f"{root}/"))
    objects = storage.join(out, OBJECTS_FOLDER) if truth_splits else None
    storage.delete_folder(storage.join(out, OBJECTS_FOLDER))
    counts: dict[str, int] = {"annotations": 0}
    listed_images = 0
    read = [
        read_annotated(uri, classes.label_of, _image_ids, objects, f"{number:02d}")
        for number, (_, uri) in enumerate(files)
    ]
    times = Counter(_image_id(image) for found in read for image in found.images)
    names = Counter(clean_path(image.file_name) for found in read for image in found.images)
    base = storage.parent(root) if has_ending(root, ".json") else root
    places = [Places(_places(uri, split, base)) for split, uri in files]
    photographs = _photographs(read, places)
    for number, ((split, uri), found) in enumerate(zip(files, read, strict=True)):
        found.add_counts(counts)
        listed_images += len(found.images)
        importer.notes += found.notes()
        for position, image in enumerate(found.images):
            image_id = _image_id(image)
            own = image.split or split or DEFAULT_SPLIT
            drawn = own in truth_splits and position not in found.without_truth
            drawn = drawn and bool(found.labels[position])
            try:
                if image.fault:
                    raise RowError("label", image.fault, uri)
                if times[image_id] > 1:
                    twice = names[clean_path(image.file_name)] > 1
                    why = "is listed twice: which objects are its own?"
                    other = "has the name of another file, but for its ending: call one otherwise"
                    raise RowError("label", f"{image.file_name} {why if twice else other}", uri)
                photograph = photographs[number, position]
                if isinstance(photograph, ValueError):
                    raise photograph
            except (RowError, ValueError) as error:
                kind = error.kind if isinstance(error, RowError) else "missing"
                importer.fail(image_id, kind, str(error))
                continue
            importer.add(
                image_id,
                photograph,
                own,
                found.labels_of(position),
                mask_uri(out, image_id) if drawn else None,
                stated_size=image.size,
            )
        importer.notes += places[number].notes()
    metadata = {}
    if objects and storage.exists(objects):
        metadata = {OBJECTS_KEY: index_objects(objects)}
    return importer.finish(counts, metadata, found=listed_images + len(unasked))


def _annotation_files(root: str, splits: Sequence[str]) -> list[tuple[str, str]]:
    """(split, uri) of the annotation files; the split of a single one is empty."""
    if has_ending(root, ".json"):
        if storage.exists(root) and (foreign := foreign_export(root, coco=False)):
            raise CannotRunError(foreign)
        return [("", root)]
    files = []
    tried = []
    for split in splits:
        places = [storage.join(root, pattern.format(split)) for pattern in FILES]
        tried += places
        files += [(split, uri) for uri in places if storage.exists(uri)][:1]
    single = [storage.join(root, name) for name in SINGLE_FILES]
    if not files:
        files = [("", uri) for uri in single if storage.exists(uri)][:1]
    if not files:
        raise CannotRunError(
            foreign_export(root, coco=False)
            or "; ".join(_unasked(root, splits).values())
            or foreign_export(root)
            or f"no annotation file; looked for {[*tried, *single]}"
        )
    return files


def has_annotations(root: str) -> bool:
    """Whether a folder has an annotation file where one is looked for, of any usual split."""
    names = [pattern.format(split) for split in USUAL_SPLITS for pattern in FILES]
    places = (storage.join(root, name) for name in (*SINGLE_FILES, *names))
    return any(storage.exists(place) for place in places)


def _unasked(root: str, splits: Sequence[str], used: Sequence[str] = ()) -> dict[str, str]:
    """What to say of each other file of annotations that is there, by its uri."""
    if has_ending(root, ".json"):
        return {}
    # among a hundred thousand photographs, perhaps
    found = [uri for uri in storage.list_files(root) if _may_be_annotations(uri, in_root=True)]
    below = storage.list_files(storage.join(root, "annotations"))
    found += [uri for uri in below if _may_be_annotations(uri)]
    exports = (storage.join(root, name, _ROBOFLOW) for name in storage.list_folders(root))
    found += filter(storage.exists, exports)
    asked = f"it is of none of the splits {', '.join(splits)} (--split, or data.train_split and "
    return {
        uri: f"{uri} is not imported: {asked}data.held_out_split)"
        for uri in found
        if uri not in used
    }


def _may_be_annotations(uri: str, *, in_root: bool = False) -> bool:
    """Whether a file is called as annotations of objects are; others of the official set are not.

    In the root of a data set a JSON file may be anything.
    """
    name = file_name(uri).casefold()
    if not name.endswith(".json") or name.startswith(_OTHER_TASKS):
        return False
    usual = {f"{split}.json" for split in USUAL_SPLITS} | {*SINGLE_FILES}
    return not in_root or name in usual or name.startswith("instances_")


def _photographs(
    read: Sequence[AnnotatedImages], places: Sequence[Places]
) -> dict[tuple[int, int], str | ValueError]:
    """The uri of each photograph by file and position, or why it has none.

    A photograph that one entry names is not another's, whatever file and split they are of.
    """
    out: dict[tuple[int, int], str | ValueError] = {}
    claims: dict[tuple[int, int], tuple[str, Found]] = {}
    for number, found in enumerate(read):
        for position, image in enumerate(found.images):
            if image.fault:
                continue
            try:
                hit = places[number].find(image.file_name)
            except ValueError as error:
                out[number, position] = error
                continue
            out[number, position] = hit.name
            claims[number, position] = (image.file_name, hit)
    wrong = beaten(claims)
    for (number, position), (name, hit) in claims.items():
        why = wrong.get((number, position))
        if why is None:
            places[number].note(name, hit)
        else:
            out[number, position] = ValueError(why or places[number].missing(name))
    return out


def _image_ids(images: Sequence[CocoImage]) -> list[str]:
    return [_image_id(image) for image in images]


def _image_id(image: CocoImage) -> str:
    """The file's name without its ending; with its folders where it names some."""
    return safe_image_id(stem_path(clean_path(image.file_name)))


def _places(uri: str, split: str, root: str) -> list[str]:
    names = [f"images/{split}", split, f"{split}2017", "images"] if split else ["images"]
    return [storage.join(root, name) for name in names] + [root, storage.parent(uri)]


class Places:
    """Folders in which photographs are looked for, the likeliest first.

    Args:
        folders: uris; they are listed only if a file does not stand where its name says.
    """

    def __init__(self, folders: Sequence[str]) -> None:
        self._folders = list(dict.fromkeys(folders))
        self._how: dict[str, list[str]] = {}

    @cached_property
    def _listed(self) -> list[tuple[str, NameIndex]]:
        out = []
        for folder in self._folders:
            entries = storage.list_entries(folder, recursive=True)
            names = [e.uri.removeprefix(f"{folder}/") for e in entries if not e.fault]
            out.append((folder, NameIndex(name for name in names if has_ending(name, ENDINGS))))
        return out

    def find(self, file_name: str) -> Found:
        """The file, its uri as `name`.

        Raises:
            ValueError: it is in none, or may be one of several.
        """
        for folder in self._folders:
            with contextlib.suppress(ValueError):  # a name that leaves its folder
                uri = storage.join(folder, file_name)
                if storage.exists(uri):
                    return Found(uri)
        hits: list[tuple[str, Found]] = []
        unsure: ValueError | None = None
        for folder, index in self._listed:
            try:
                found = index.find(file_name)
            except ValueError as error:
                unsure = unsure or error
            else:
                hits += [(folder, found)] if found else []
        if not hits:
            raise unsure or ValueError(self.missing(file_name))
        folder, best = min(hits, key=lambda hit: hit[1].rank)
        return Found(storage.join(folder, best.name), best.how, best.rank)

    def note(self, file_name: str, found: Found) -> None:
        """Keep by what rule a file was found."""
        if found.how:
            self._how.setdefault(found.how, []).append(file_name)

    def missing(self, file_name: str) -> str:
        """What to say of a file that is not there."""
        return f"{file_name} is in none of {self._folders}"

    def notes(self) -> list[str]:
        """How many files were found by another rule than their very name."""
        return [
            f"photographs found {how}: {len(names)}, such as {names[0]!r}"
            for how, names in self._how.items()
        ]
