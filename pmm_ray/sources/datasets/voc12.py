"""PASCAL VOC 2012, and anything laid out like it, used in place; with or without SBD's masks.

    ROOT/VOC2012/JPEGImages/*.jpg         ROOT is the VOCdevkit, its VOC2012, or the folder around
    ROOT/VOC2012/ImageSets/Segmentation/SPLIT.txt      a line is an id, or photograph and mask
    ROOT/VOC2012/SegmentationClass/*.png, SegmentationClassAug/*.png
    ROOT/VOC2012/Annotations/*.xml        the labels; or cls_labels.npy (a pickle, see
                                          `data.trust_pickle`), SPLIT_cls.txt in `data.lists`, masks

Photographs and masks are not copied: the manifest names them where they are. VOC's mask values are
contiguous already, so its masks are the ground truth as they stand; they may be in a folder of the
same name once more, or be called `ID_gt.png`. An official mask (SegmentationClass) wins over one of
SegmentationClassAug, and this over SBD's `.mat` file, which becomes a PNG file beside the manifest.
"""

from __future__ import annotations

import threading
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np

from pmm_ray.labels import VOC12
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError, system_failure
from pmm_ray.runtime.rows.images import IMAGE_SUFFIXES, MAX_PIXELS, decode_mask, encode_mask
from pmm_ray.sources.datasets.sbd import find_sbd, read_sbd_mask, sbd_masks, train_aug_ids
from pmm_ray.sources.datasets.voc_masks import find_voc_masks
from pmm_ray.sources.importing.import_report import ImportReport, reads_source
from pmm_ray.sources.importing.importer import Importer
from pmm_ray.sources.importing.photographs import places_in
from pmm_ray.sources.labels.lists import compare_with_lists, read_label_list, read_members
from pmm_ray.sources.masks.truth import (
    PaletteError,
    check_truth_values,
    check_voc_palette,
    look_into,
)
from pmm_ray.sources.reading.names import file_stem, grouped, has_ending
from pmm_ray.sources.reading.noted import first_there, note, note_all
from pmm_ray.sources.reading.pickled import load_pickled_dict, refusal

LabelSource = Literal["cls_labels", "xml", "masks", "lists"]
# the labels of an image by its id, None where the source says nothing; ValueError if it is wrong
Reader = Callable[[str], tuple[int, ...] | None]

_LISTS = "ImageSets/Segmentation"
ABSENT = "absent, -1 in the list"
_SPELLINGS = {"train_aug": "trainaug", "trainaug": "train_aug"}


@reads_source
def import_voc12(
    root: str,
    out: str,
    *,
    splits: Sequence[str] = ("train_aug", "val"),
    labels_from: Literal["auto", "cls_labels", "xml", "masks", "lists"] = "auto",
    trust_pickle: bool = False,
    lists: str | None = None,
    ground_truth: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> ImportReport:
    """Write the manifest of a VOC 2012 tree.

    Args:
        root: the `VOCdevkit` folder, the `VOC2012` folder in it, or the folder around both. SBD's
            `benchmark_RELEASE` may be in any of them.
        out: folder that gets `manifest.parquet`, `errors/` and, from `.mat` files, `masks/`; with
            `lists` also `differences.csv`.
        splits: lists below `ImageSets/Segmentation`, else in `lists`, each of which becomes the
            split of its name (`train_aug` and `trainaug` are the same list). A line is an id, an
            id and 1, 0 or -1 (absent: left out), or
            `/JPEGImages/ID.jpg /SegmentationClassAug/ID.png`. Where there is no list `train_aug`
            but SBD, it is VOC's train and all of SBD, less VOC's val.
        labels_from: `cls_labels` (the field's `cls_labels.npy`, beside `JPEGImages` or `VOC2012`,
            or in `root`), `xml` (every object of `Annotations/ID.xml`), `masks` (the classes in
            the masks: pixel labels), `lists` (`SPLIT_cls.txt`) or `auto`: the first of these that
            is there, where a `cls_labels.npy` that is not trusted is passed over for `xml` only.
        trust_pickle: load `cls_labels.npy`, which is a pickle.
        lists: folder of the field's lists, `SPLIT.txt` and `SPLIT_cls.txt`; every difference of
            the labels is written down.
        ground_truth: whether masks count as truth; `labels_from` may read them all the same.
        max_pixels: a photograph that declares more becomes an error row.

    Returns:
        Its counts tell, for each other label source that is there, in how many images its labels
        differ (`labels differ from masks`, ...). The sources of the field do disagree.

    Raises:
        CannotRunError: no such tree, list or label source, or a pickle that is not trusted.
    """
    root, out = storage.absolute(root), storage.absolute(out)
    voc = _find_voc(root)
    sbd = find_sbd(root, voc, storage.parent(voc), storage.parent(storage.parent(voc)))
    photographs = grouped(_files(f"{voc}/JPEGImages", IMAGE_SUFFIXES), file_stem)
    png_masks, mask_notes = find_voc_masks(voc, photographs, out)
    masks = (sbd_masks(sbd) if sbd else {}) | png_masks
    candidates = [f"{place}/cls_labels.npy" for place in (voc, root, storage.parent(voc))]
    pickled = first_there(candidates)
    listed = _read_label_lists(lists, splits)
    readers = _readers(voc, pickled if trust_pickle else None, masks)
    if listed:
        readers["lists"] = listed.get
    chosen = _choose(labels_from, readers, None if trust_pickle else pickled)
    others = {name: reader for name, reader in readers.items() if name != chosen}
    compared = dict.fromkeys(others, 0)
    differing = dict.fromkeys(others, 0)
    unknown: list[str] = []
    counting = threading.Lock()
    importer = Importer(out, VOC12, source="voc12", exif="ignore", max_pixels=max_pixels)

    def labels_of(image_id: str) -> tuple[int, ...]:
        labels = readers[chosen](image_id) if chosen else None
        if chosen and labels is None:
            with counting:
                unknown.append(image_id)
        for name, reader in others.items():
            try:
                other = reader(image_id)
            except PaletteError:
                raise
            except (ValueError, RowError, OSError):
                # a fault of a source that is only compared with costs no image
                other = None
            if labels is not None and other is not None:
                with counting:
                    compared[name] += 1
                    differing[name] += labels != other
        return labels or ()

    importer.labels_from = chosen or (
        f"none: {voc} has no Annotations/*.xml, no cls_labels.npy and no masks"
    )
    importer.notes += mask_notes
    listed_splits = _read_lists(voc, splits, lists, sbd, importer)
    origins: dict[str, Counter[str]] = {split: Counter() for split in listed_splits}
    for split, image_ids in listed_splits.items():
        for image_id in image_ids:
            found = photographs.get(image_id, [f"{voc}/JPEGImages/{image_id}.jpg"])
            if len(found) > 1:
                importer.fail(image_id, "label", f"it may be any of {', '.join(found)}: keep one")
                continue
            try:
                truth = _as_png(masks.get(image_id), out, image_id) if ground_truth else None
            except (ValueError, OSError) as error:
                if system_failure(error):
                    raise
                importer.fail(image_id, "label", str(error))
                continue
            if truth is not None:
                origins[split][_origin(masks[image_id])] += 1
            importer.add(image_id, found[0], split, partial(labels_of, image_id), truth)
    importer.notes += [
        f"masks of {split}: " + ", ".join(f"{n} of {name}" for name, n in of.most_common())
        for split, of in origins.items()
        if of
    ]
    rows = importer.rows  # now all labels are read and compared
    if unknown:
        importer.notes.append(
            f"images that {chosen} does not know: {len(unknown)}, such as {min(unknown)}"
        )
    truths = {row.ground_truth_uri: row.labels for row in rows.values() if row.ground_truth_uri}
    of_labelled = look_into([truth for truth, labels in truths.items() if labels])
    of_others = look_into([truth for truth, labels in truths.items() if not labels])
    importer.notes += check_truth_values(of_labelled, of_others, VOC12)
    counts = {f"labels differ from {name}": differing[name] for name in others if compared[name]}
    if listed:
        counts |= compare_with_lists(rows, listed, out, VOC12)
    total = sum(map(len, (*listed_splits.values(), *importer.left_out.values())))
    return importer.finish(counts, {"pmm.labels_from": chosen or "none"}, found=total)


def _find_voc(root: str) -> str:
    for folder in (root, f"{root}/VOC2012", f"{root}/VOCdevkit/VOC2012"):
        if storage.exists(f"{folder}/JPEGImages") and storage.exists(f"{folder}/{_LISTS}"):
            return folder
    raise CannotRunError(
        f"no VOC 2012 below {root}: expected VOCdevkit/VOC2012 with JPEGImages and {_LISTS}"
    )


def _files(folder: str, ending: str | tuple[str, ...]) -> list[str]:
    return [uri for uri in storage.list_files(folder) if has_ending(uri, ending)]


def _origin(uri: str) -> str:
    """The folder of a mask, `SBD` for a `.mat` file."""
    return "SBD" if has_ending(uri, ".mat") else uri.rsplit("/", 2)[-2]


def _as_png(uri: str | None, out: str, image_id: str) -> str | None:
    """The mask as an absolute uri of a PNG file, converted from a `.mat` file if it is one."""
    if uri is None or not has_ending(uri, ".mat"):
        return uri
    tables.check_image_id(image_id)
    png = storage.join(out, "masks", f"{image_id}.png")
    storage.write_bytes(png, encode_mask(read_sbd_mask(uri), VOC12))
    return png


def _read_label_lists(lists: str | None, splits: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """The labels of every `SPLIT_cls.txt` that is there."""
    found: dict[str, tuple[int, ...]] = {}
    if not lists:
        return found
    for split in splits:
        for name in (split, _SPELLINGS.get(split, split)):
            uri = storage.join(storage.absolute(lists), f"{name}_cls.txt")
            if first_there([uri]):
                found |= read_label_list(uri, VOC12)
    return found


def _read_lists(
    voc: str, splits: Sequence[str], lists: str | None, sbd: str | None, importer: Importer
) -> dict[str, list[str]]:
    """The ids of each split that has a list; those that have none are noted.

    Raises:
        CannotRunError: not one has a list.
    """
    found: dict[str, list[str]] = {}
    for number, split in enumerate(splits, 1):
        try:
            found[split], absent = _read_list(voc, split, lists, sbd)
        except FileNotFoundError as error:
            if number == len(splits) and not found:
                raise CannotRunError(str(error)) from error
            importer.notes.append(f"split {split} is left out: {error}")
            continue
        importer.leave_out(ABSENT, *absent)
    return found


def _read_list(
    voc: str, split: str, lists: str | None, sbd: str | None
) -> tuple[list[str], list[str]]:
    """As `read_members`. Raises FileNotFoundError if there is no such list."""
    available: dict[str, str] = {}
    other = _SPELLINGS.get(split, "")
    for folder in (storage.absolute(lists) if lists else "", f"{voc}/{_LISTS}"):
        if folder:
            available |= {file_stem(uri): uri for uri in _files(folder, ".txt")}
            note(*(f"{folder}/{name}.txt" for name in (split, other) if name))
    uri = available.get(split) or available.get(other)
    if uri is None:
        if "train_aug" in (split, other) and sbd and {"train", "val"} <= available.keys():
            train, val = (read_members(available[name])[0] for name in ("train", "val"))
            return train_aug_ids(sbd, train, val), []
        raise FileNotFoundError(
            f"no list {split}.txt in {voc}/{_LISTS}: there are {[*available]}. Give the folder "
            "of the field's lists with --lists (data.lists)"
        )
    return read_members(uri)


def _readers(voc: str, pickled: str | None, masks: Mapping[str, str]) -> dict[LabelSource, Reader]:
    """The label sources that are there and may be read, the preferred first."""
    readers: dict[LabelSource, Reader] = {}
    if pickled is not None:
        readers["cls_labels"] = _cls_labels_reader(pickled)
    places = places_in(voc, ["Annotations"]) or [f"{voc}/Annotations"]
    annotations = {file_stem(uri): uri for place in places for uri in _files(place, ".xml")}
    for place in places:
        note_all(place, ".xml")
    if annotations:
        readers["xml"] = lambda image_id: _xml_labels(annotations.get(image_id))
    if masks:
        readers["masks"] = lambda image_id: _mask_labels(masks.get(image_id))
    return readers


def _choose(
    wanted: str, readers: Mapping[LabelSource, Reader], untrusted: str | None
) -> LabelSource | None:
    """The source to use, None if there is none at all (unlabelled photographs)."""
    if untrusted and (wanted == "cls_labels" or (wanted == "auto" and "xml" not in readers)):
        # never fall back to pixel labels in silence
        other = " Or read them off the pixel masks: data.labels_from: masks."
        raise CannotRunError(refusal(untrusted) + (other if "masks" in readers else ""))
    if wanted == "auto":
        return next(iter(readers), None)
    for name in readers:
        if name == wanted:
            return name
    raise CannotRunError(f"no labels from {wanted!r}: there are {[*readers] or 'none'}")


def _cls_labels_reader(uri: str) -> Reader:
    vectors = load_pickled_dict(uri, trust_pickle=True)

    def read(image_id: str) -> tuple[int, ...] | None:
        vector: Any = vectors.get(image_id)
        if vector is None:
            return None
        if np.shape(vector) != (VOC12.num_foreground,):
            raise ValueError(
                f"{uri} holds {np.shape(vector)} values for it, not {VOC12.num_foreground}"
            )
        if not np.isin(vector, (0, 1)).all():
            raise ValueError(f"{uri} holds {np.unique(vector)[:5]} for it: 0 or 1 a class")
        return tuple(int(i) + 1 for i in np.flatnonzero(vector))

    return read


def _xml_labels(uri: str | None) -> tuple[int, ...] | None:
    """Every object counts, difficult and truncated ones too, as in the field's cls_labels."""
    if uri is None:
        return None
    try:
        annotation = ElementTree.fromstring(storage.read_bytes(uri))
    except (ElementTree.ParseError, LookupError) as error:
        raise ValueError(f"{uri} is not an XML annotation: {error}") from error
    if annotation.tag != "annotation":
        raise ValueError(f"{uri} is none of VOC's annotations: it begins with <{annotation.tag}>")
    names = {node.text or "" for node in annotation.iterfind("object/name")}
    return tuple(sorted(VOC12.id_of(name) for name in names))


def _mask_labels(uri: str | None) -> tuple[int, ...] | None:
    if uri is None:
        return None
    if has_ending(uri, ".mat"):
        return tuple(int(v) for v in np.unique(read_sbd_mask(uri)) if v)
    data = storage.read_bytes(uri)
    check_voc_palette(data, uri, VOC12)
    values = VOC12.to_contiguous(decode_mask(data, uri=uri))
    return tuple(int(v) for v in np.unique(values) if v not in (0, VOC12.ignore))
