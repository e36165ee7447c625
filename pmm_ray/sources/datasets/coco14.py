"""COCO 2014 from the official `instances_{train,val}2014.json`, streamed; photographs in place.

    ROOT/annotations/instances_train2014.json, instances_val2014.json
    ROOT/train2014/*.jpg, ROOT/val2014/*.jpg     also below ROOT/images/

Only images with at least one annotation become rows, crowd regions counted: 82,081 of 82,783 and
40,137 of 40,504. Sizes are those that the annotations state: 122,218 photographs are not opened
to make a list. Tables hold contiguous ids 1..80; `labels.COCO14` knows the 91-id layout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

from pmm_ray.labels import COCO14
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.files import OBJECTS_FOLDER
from pmm_ray.runtime.core.manifest import ManifestRow
from pmm_ray.runtime.rows.images import MAX_PIXELS
from pmm_ray.sources.datasets.coco_files import (
    OBJECTS_KEY,
    AnnotatedImages,
    mask_uri,
    read_annotated,
)
from pmm_ray.sources.datasets.coco_json import read_categories, read_images
from pmm_ray.sources.datasets.coco_objects import index_objects
from pmm_ray.sources.importing.import_report import ImportReport, reads_source
from pmm_ray.sources.importing.importer import Importer
from pmm_ray.sources.labels.lists import Labels, compare_with_lists, read_label_list
from pmm_ray.sources.reading.names import stem_path
from pmm_ray.sources.reading.noted import first_there

YEAR = "2014"
BARE = "images without annotation"
"""Key of `ImportReport.counts`, and why such an image is left out."""
LABEL_OF = {str(dataset_id): i for i, dataset_id in enumerate(COCO14.dataset_ids) if i}


@reads_source
def import_coco14(
    root: str,
    out: str,
    *,
    splits: Sequence[str] = ("train", "val"),
    truth_splits: Sequence[str] = ("train", "val"),
    labels_from: Literal["auto", "annotations", "lists"] = "auto",
    lists: str | None = None,
    max_pixels: int = MAX_PIXELS,
) -> ImportReport:
    """Write the manifest of COCO 2014 and, for masks to be drawn from, the table of its objects.

    Args:
        root: the folder with `annotations/`.
        out: folder that gets `manifest.parquet`, `errors/` and `objects/`; with `lists` also
            `differences.csv`.
        splits: `train` and `val`, or `train2014` and `val2014`; the manifest's splits are named
            as given here.
        truth_splits: those whose rows name a mask to be drawn, `masks/ID.png`.
        labels_from: `annotations` (`auto`): the classes of an image's annotations, also of crowd
            regions and of objects that others hide. `lists`: those of the field's lists.
        lists: folder of `train_cls.txt` and `val_cls.txt`; every difference is written down.
        max_pixels: an image that states more becomes an error row.

    Returns:
        Its counts tell the annotations and how many images differ from the lists.

    Raises:
        CannotRunError: none of the files, not COCO's categories, lists that are needed and not
            there.
    """
    root, out = storage.absolute(root), storage.absolute(out)
    bases = {split: _base(split) for split in splits}
    if len(set(bases.values())) < len(bases):
        raise CannotRunError(f"the splits {list(splits)} name one set of images twice")
    if labels_from == "lists" and not lists:
        raise CannotRunError("labels_from: lists needs the folder of the lists (data.lists)")
    importer = Importer(out, COCO14, source="coco14", exif="ignore", max_pixels=max_pixels)
    objects = storage.join(out, OBJECTS_FOLDER)
    storage.delete_folder(objects)
    counts = {"annotations": 0}
    listed_images = 0
    listed_labels: dict[str, Labels] = {}
    files = {base: _annotations(root, base) for base in bases.values()}
    there = [base for base, uri in files.items() if first_there([uri])]
    for split, base in bases.items():
        uri = files[base]
        if there and base not in there:
            importer.notes.append(f"split {split} is left out: there is no {uri}")
            continue
        _check_categories(uri)
        listed = _read_list(lists, base)
        listed_labels |= listed
        truth = split in truth_splits
        images = read_images(uri)
        names = [image.file_name.rsplit("/", 1)[-1] for image in images]
        ids = [stem_path(name) or name for name in names]
        found = read_annotated(uri, images, ids, LABEL_OF, objects if truth else None, base)
        importer.notes += found.notes()
        found.add_counts(counts)
        listed_images += len(found.images)
        missing = _add_all(
            importer,
            found,
            ids,
            split,
            _photographs(root, base),
            partial(mask_uri, out) if truth else None,
            listed if labels_from == "lists" else None,
        )
        if missing:
            counts[f"split {split}: photographs not there yet"] = missing
    metadata = {OBJECTS_KEY: index_objects(objects)} if storage.exists(objects) else {}
    if lists:
        counts |= compare_with_lists(importer.rows, listed_labels, out, COCO14)
    used = "lists" if labels_from == "lists" else "annotations"
    importer.labels_from = used
    counts[BARE] = len(importer.left_out.get(BARE, ()))
    metadata = {"pmm.labels_from": used, **metadata}
    return importer.finish(counts, metadata, found=listed_images)


def _annotations(root: str, base: str) -> str:
    return storage.join(root, "annotations", f"instances_{base}{YEAR}.json")


def _base(split: str) -> str:
    base = split.removesuffix(YEAR)
    if base not in ("train", "val"):
        raise CannotRunError(
            f"COCO 2014 has no annotated split {split!r}: there are train and val "
            f"(or train{YEAR} and val{YEAR})"
        )
    return base


def _check_categories(uri: str) -> None:
    names = {str(COCO14.dataset_ids[i]): COCO14.names[i] for i in range(1, COCO14.num_classes)}
    found = {category.key: category.name for category in read_categories(uri)}
    wrong = sorted(found.items() - names.items())
    if wrong:
        raise CannotRunError(
            f"{uri}: not COCO's categories: {wrong[:5]}. Import it with `coco` instead of `coco14`."
        )


def _read_list(lists: str | None, base: str) -> dict[str, Labels]:
    if not lists:
        return {}
    return read_label_list(storage.join(storage.absolute(lists), f"{base}_cls.txt"), COCO14)


def _photographs(root: str, base: str) -> tuple[str, frozenset[str] | None]:
    """(folder of the photographs, the names in it; None where there is no such folder yet)."""
    places = [f"{root}/{base}{YEAR}", f"{root}/images/{base}{YEAR}", f"{root}/images"]
    for place in places:
        if storage.exists(place):
            files = storage.list_files(place)
            return place, frozenset(uri.rsplit("/", 1)[-1] for uri in files)
    return places[0], None


def _add_all(
    importer: Importer,
    found: AnnotatedImages,
    ids: Sequence[str],
    split: str,
    photographs: tuple[str, frozenset[str] | None],
    truth_uri: Callable[[str], str] | None,
    listed: dict[str, Labels] | None,
) -> int:
    """Add every annotated image; returns how many photographs a folder yet to come would hold."""
    folder, names = photographs
    expected = 0
    times = Counter(ids)
    for position, (image_id, image) in enumerate(zip(ids, found.images, strict=True)):
        if times[image_id] > 1:
            text = f"{image.file_name} is listed twice: which objects are its own?"
            found.faults.setdefault(position, text)
        if not found.labels[position] and position not in found.faults:
            importer.leave_out(BARE, image.file_name)
            continue
        # a name with a folder in it is never joined to a path, and is not in the listing
        there = names is None or image.file_name in names
        place = f"{folder}/{image.file_name}" if "/" not in image.file_name else folder
        labels: Callable[[], set[int]] = found.labels_of(position)
        if listed is not None:
            labels = partial(_from_list, listed, image_id, labels)
        drawn = position not in found.without_truth
        row = ManifestRow(
            image_id=image_id,
            uri=place,
            labels=(),
            height=image.height,
            width=image.width,
            split=split,
            ground_truth_uri=truth_uri(image_id) if truth_uri and drawn else None,
        )
        missing = "" if there else f"{image.file_name} is not in {folder}"
        added = importer.add_known(row, labels, missing=missing)
        expected += added and names is None
    return expected


def _from_list(
    listed: dict[str, Labels], image_id: str, annotated: Callable[[], set[int]]
) -> set[int]:
    annotated()  # its annotations must be sound all the same: the mask is made of them
    if image_id not in listed:
        raise ValueError("the list names no labels for it")
    return set(listed[image_id])
