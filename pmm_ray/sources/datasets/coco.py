"""A user's own data set in COCO's JSON, with any categories.

    ROOT.json or ROOT.json.gz, photographs beside it or in images/
    ROOT/annotations/instances_SPLIT.json   or   ROOT/annotations/SPLIT.json   or   ROOT/SPLIT.json
    ROOT/SPLIT/_annotations.coco.json       as Roboflow exports it, photographs beside it
    ROOT/annotations.json                   its images may name their "split" or "subset"; else all
                                            are `train`
    ROOT/annotations/instances_default.json the same, as CVAT exports it; ROOT/result.json as Label
                                            Studio does

Photographs are looked for in `images/SPLIT`, `SPLIT`, `images` and beside the JSON file; a
`file_name` may name a folder below these. One that is not where its name says is looked for among
their pictures, but for those in hidden folders and, outside `images`, in folders of masks. A file
that is listed twice, in one split or in two, is an error row each time, however it is written; so
is an entry whose `split` is another one than its file's. Where splits have files of one name each,
their image ids begin with the split. EXIF orientation is applied, as annotation tools show
photographs; one whose size differs from the stated one is an error row.
"""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.files import OBJECTS_FOLDER
from pmm_ray.runtime.rows.images import MAX_PIXELS
from pmm_ray.sources.datasets.coco_files import (
    OBJECTS_KEY,
    mask_uri,
    read_annotated,
)
from pmm_ray.sources.datasets.coco_json import CocoImage, read_classes, read_images
from pmm_ray.sources.datasets.coco_objects import index_objects
from pmm_ray.sources.datasets.foreign import foreign_export
from pmm_ray.sources.importing.import_report import ImportReport, reads_source
from pmm_ray.sources.importing.importer import Importer
from pmm_ray.sources.importing.places import Places, Wanted, find_wanted
from pmm_ray.sources.labels.label_lines import DEFAULT_SPLIT
from pmm_ray.sources.reading.names import (
    clean_path,
    grouped,
    has_ending,
    path_below,
    safe_image_id,
    stem_path,
)
from pmm_ray.sources.reading.noted import first_there
from pmm_ray.sources.reading.split_names import is_split, same_split

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
_ENDINGS = (".json", ".json.gz")
_ROBOFLOW = "_annotations.coco.json"
# of COCO's other tasks, beside its objects
_OTHER_TASKS = ("captions_", "person_keypoints_", "image_info_", "stuff_", "panoptic_")


@dataclass(frozen=True, eq=False)
class _Listed:
    """An entry of `images` of a file; `split` is empty where nothing tells it, and `fault` says
    what contradicts it."""

    file: int
    position: int
    split: str
    image: CocoImage
    fault: str = ""


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
    importer.leave_out(UNASKED, *(path_below(uri, root) for uri in unasked))
    objects = storage.join(out, OBJECTS_FOLDER)
    storage.delete_folder(objects)
    counts = {"annotations": 0}
    base = storage.parent(root) if has_ending(root, _ENDINGS) else root
    places = [Places(_places(uri, split, base), out, "coco") for split, uri in files]
    sources = [path_below(uri, base) for _, uri in files]
    listed = [
        _listed(number, position, image, split, splits)
        for number, (split, uri) in enumerate(files)
        for position, image in enumerate(read_images(uri))
    ]
    wanted = {
        entry: Wanted(entry.image.file_name, sources[entry.file], places[entry.file], entry.split)
        for entry in listed
        if not entry.image.fault
    }
    photographs = find_wanted(wanted)
    ids, note = _image_ids(photographs, listed)
    importer.notes += note
    times = Counter(ids.values())
    for number, (_, uri) in enumerate(files):
        entries = [entry for entry in listed if entry.file == number]
        images = [entry.image for entry in entries]
        own_ids = [ids[entry] for entry in entries]
        found = read_annotated(
            uri,
            images,
            own_ids,
            classes.label_of,
            objects if truth_splits else None,
            f"{number:02d}",
        )
        found.add_counts(counts)
        importer.notes += found.notes()
        for entry, image_id in zip(entries, own_ids, strict=True):
            image, split = entry.image, entry.split or DEFAULT_SPLIT
            drawn = split in truth_splits and entry.position not in found.without_truth
            drawn = drawn and bool(found.labels[entry.position])
            photograph = photographs.get(entry) or RowError("label", image.fault, uri)
            if isinstance(photograph, str) and entry.fault:
                photograph = RowError("label", entry.fault, uri)
            elif isinstance(photograph, str) and times[image_id] > 1:
                other = "has the name of another file, but for its ending: call one otherwise"
                photograph = RowError("label", f"{image.file_name} {other}", uri)
            if isinstance(photograph, RowError):
                importer.fail(image_id, photograph.kind, photograph.message, photograph.uri)
                continue
            importer.add(
                image_id,
                photograph,
                split,
                found.labels_of(entry.position),
                mask_uri(out, image_id) if drawn else None,
                stated_size=image.size,
            )
        importer.notes += places[number].notes()
    metadata = {OBJECTS_KEY: index_objects(objects)} if storage.exists(objects) else {}
    return importer.finish(counts, metadata, found=len(listed) + len(unasked))


def _listed(
    file: int, position: int, image: CocoImage, split: str, splits: Sequence[str]
) -> _Listed:
    """An entry of the file of a split, which may be empty.

    A `subset` may as well say where an image is from: a word that is called as no split is none.
    """
    own = image.split
    if not own or (split and (same_split(own, split) or not (is_split(own) or own in splits))):
        return _Listed(file, position, split, image)
    if split and any(same_split(own, one) for one in splits):
        text = f"its entry says split {own!r}, its file {split!r}: keep one of them"
        return _Listed(file, position, split, image, text)
    return _Listed(file, position, own, image)


def _annotation_files(root: str, splits: Sequence[str]) -> list[tuple[str, str]]:
    """(split, uri) of the annotation files; the split of a single one is empty."""
    if has_ending(root, _ENDINGS):
        if storage.exists(root) and (foreign := foreign_export(root, coco=False)):
            raise CannotRunError(foreign)
        return [("", root)]
    files = []
    tried = []
    for split in splits:
        places = [storage.join(root, pattern.format(split)) for pattern in FILES]
        tried += places
        if uri := first_there(places):
            files.append((split, uri))
    single = [storage.join(root, name) for name in SINGLE_FILES]
    if not files and (uri := first_there(single)):
        files = [("", uri)]
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
    if has_ending(root, _ENDINGS):
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
    name = posixpath.basename(uri).casefold()
    if not name.endswith(".json") or name.startswith(_OTHER_TASKS):
        return False
    usual = {f"{split}.json" for split in USUAL_SPLITS} | {*SINGLE_FILES}
    return not in_root or name in usual or name.startswith("instances_")


def _image_ids(
    photographs: Mapping[_Listed, str | RowError], listed: Sequence[_Listed]
) -> tuple[dict[_Listed, str], list[str]]:
    """The id of each entry, and what to say of them.

    It is the file's name without its ending, with its folders where it names some; and with its
    split where several splits have a file of that name each.
    """
    by_name = grouped(listed, lambda entry: stem_path(clean_path(entry.image.file_name)))
    ids: dict[_Listed, str] = {}
    numbered: list[str] = []
    for name, entries in by_name.items():
        files: set[str] = set()
        if len(entries) > 1 and len({entry.split for entry in entries}) > 1:
            # a photograph that is not there is another one
            files = {str(photographs.get(entry, entry)) for entry in entries}
        for entry in entries:
            ids[entry] = safe_image_id(f"{entry.split}/{name}" if len(files) > 1 else name)
        numbered += [ids[entries[0]]] if len(files) > 1 else []
    if not numbered:
        return ids, []
    return ids, [
        f"files of one name in several splits: {len(numbered)}; their image ids begin with the "
        f"split, such as {numbered[0]}"
    ]


def _places(uri: str, split: str, root: str) -> list[str]:
    names = [f"images/{split}", split, f"{split}2017", "images"] if split else ["images"]
    return [storage.join(root, name) for name in names] + [root, storage.parent(uri)]
