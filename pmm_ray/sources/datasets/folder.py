"""A folder of photographs with a CSV file of labels: the simplest data set a user can bring.

    ROOT/images/*.jpg      also in sub-folders, and every other format of `images.FORMATS`
    ROOT/labels.csv        image_id,labels[,split]   labels separated by ';'
    ROOT/SPLIT/_classes.csv   instead, as Roboflow exports it: filename and a 0 or 1 for each class
    ROOT/CLASS/*.jpg       instead, with `labels_from: folders`: a folder for each class, all of
    ROOT/SPLIT/CLASS/*.jpg them below folders called by a split (`train`, `val`, ...) or none
    ROOT/classes.txt       optional: one class name a line, in the order of their ids
    ROOT/masks/ID.png      optional ground truth: indexed or grey, values are the ids of the
                           class list (`2 cat`), else of the order of the names; or of colours
                           that CVAT's `labelmap.txt` names

A file's image id is its path below `images/` without the ending. Where that is not an allowed id
(folders, spaces, other scripts, too long), every run of other characters becomes '-' and '-' with
ten hex digits of the name's SHA-256 is added: "Мой кот 1" becomes "1-" and its digits. `labels.csv`
and `masks/` use the file's own name, never the made id.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.files import MASKS_MARKER
from pmm_ray.runtime.rows.images import IMAGE_SUFFIXES, MAX_PIXELS
from pmm_ray.sources.datasets.class_folders import (
    deeper_folders_note,
    folder_lines,
    folders_note,
    refuse_masks,
    withdraw_contradicted,
)
from pmm_ray.sources.datasets.foreign import foreign_export
from pmm_ray.sources.importing.import_report import ImportReport, reads_source
from pmm_ray.sources.importing.importer import Importer
from pmm_ray.sources.importing.photographs import (
    CLASS_FILES,
    IMAGE_FOLDERS,
    LABEL_FILES,
    LEFT_OUT,
    MASK_FOLDERS,
    TABLES,
    PhotographFolder,
    find_photographs,
    places_in,
)
from pmm_ray.sources.importing.results import is_result
from pmm_ray.sources.labels.joined_lines import join_lines, spellings
from pmm_ray.sources.labels.label_columns import UNNAMED_CLASS
from pmm_ray.sources.labels.label_files import ClassList, class_list, read_class_list
from pmm_ray.sources.labels.label_lines import (
    DEFAULT_SPLIT,
    LabelLine,
    label_ids,
    names_of,
    read_labels_csv,
)
from pmm_ray.sources.masks.lookalikes import lookalikes
from pmm_ray.sources.masks.truth import TruthMasks, check_truth_values, look_into
from pmm_ray.sources.masks.truth_labels import compare_with_labels, numbered_space
from pmm_ray.sources.reading.names import (
    NameIndex,
    has_ending,
    is_hidden,
    pair,
    path_below,
    stem_path,
)
from pmm_ray.sources.reading.noted import note
from pmm_ray.sources.reading.split_names import (
    is_split,
    same_split,
    splits_of_folders,
    untold_splits,
)


@reads_source
def import_folder(
    root: str,
    out: str,
    *,
    class_names: Sequence[str] | None = None,
    labels_from: Literal["auto", "folders", "none"] = "auto",
    label_column: str = "",
    ground_truth: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> ImportReport:
    """Write the manifest of a folder of photographs, used in place. EXIF orientation is applied.

    Photographs that the CSV does not name are unlabelled, as all are without a CSV; lines of the
    CSV without a photograph are `missing` errors. Of two files that share a name (`a.jpg`,
    `a.png`) the second is a `label` error, and both where labels or a mask may mean either. So is
    a photograph that two lines name, and not alike, or that several masks fit.

    Args:
        root: holds `images/`, or the photographs themselves.
        out: folder that gets `manifest.parquet` and `errors/`.
        class_names: the classes in the order of their ids; default: `ROOT/classes.txt` (or
            LabelMe's `class_names.txt`, CVAT's `labelmap.txt`), else the names in the CSV, sorted.
        labels_from: `auto` the CSV; `folders` the folders, see `class_folders`; `none` leaves both
            aside: all photographs are unlabelled. Without a column `split` a photograph is in the
            split that its folder is called by, where all are in two or more such folders, else in
            `train`.
        label_column: of the CSV, see `read_labels_csv`.
        ground_truth: whether masks count.
        max_pixels: a photograph that declares more becomes an error row.

    Raises:
        CannotRunError: no photographs, a CSV that cannot be read, or class names that make no
            label space.
    """
    root = storage.absolute(root)
    photographs = find_photographs(root, out)
    tables = _label_files(root, photographs)
    csv_uri = ", ".join(tables)
    lines: list[LabelLine] = []
    if labels_from == "folders":
        lines = _lines_of_folders(photographs)
    if labels_from == "auto":
        note(*(storage.join(root, name) for name in LABEL_FILES))
        note(*(uri for uri, of in _tables_of_folders(root, photographs).items() if is_split(of)))
    for uri, folder in tables.items() if labels_from == "auto" else ():
        try:
            lines += read_labels_csv(uri, folder, label_column)
        except CannotRunError as error:
            raise CannotRunError(foreign_export(uri) or str(error)) from error
    notes: list[str] = []
    masks, unsure_masks, unused = _masks(root, photographs, notes) if ground_truth else ({}, {}, 0)
    classes = (
        read_folder_classes(root, "folder")
        if class_names is None
        else class_list(class_names, "folder")
    )
    listed = classes is not None
    if classes is None:
        names = names_of(lines)
        try:
            numbered = numbered_space(names, [uri for uris in masks.values() for uri in uris])
            classes = class_list(names or [UNNAMED_CLASS], "folder")
        except ValueError as error:
            raise CannotRunError(f"{csv_uri}: {error}") from error
        if numbered is not None:
            classes = ClassList(numbered)
            notes.append("labels are numbers, and taken for the values of the masks")
    space = classes.space
    images = Importer(out, space, source="folder", exif="apply", max_pixels=max_pixels)
    images.background = classes.background
    used = "the folders that the photographs are in" if labels_from == "folders" else csv_uri
    images.labels_from = used if lines else "none, all images are unlabelled"
    photographs.report(images)
    if labels_from == "auto" and not lines:
        images.notes += _unread(root, photographs, csv_uri)
        images.notes += folders_note(photographs.files) if class_names is None else []
    if labels_from == "folders":
        images.notes += deeper_folders_note(photographs.files)
        images.notes += [f"{csv_uri} is not read: data.labels_from is folders"] if csv_uri else []
    images.notes += _lookalikes(photographs)
    joined = join_lines(lines, NameIndex(photographs.files))
    images.notes += joined.notes
    of_folders = splits_of_folders(photographs.files)
    images.notes += notes
    truth_masks = TruthMasks(space, classes.colours, out)
    files: dict[str, str] = {}
    unsaid: list[str] = []
    for name, uri in photographs.files.items():
        image_id = photographs.image_id(name)
        stem = stem_path(name)
        line = joined.of.get(name, LabelLine(name, (), ""))
        own = of_folders.get(name, "")
        split = line.split or own or DEFAULT_SPLIT
        unsaid += [] if line.split or own else [name]
        if own and not same_split(split, own):
            text = f"the CSV says split {split!r}, its folder {own!r}: keep one of them"
            images.fail(image_id, "label", text, uri)
            continue
        found = masks.get(stem, [])

        # in a thread where the files are in a bucket
        def labels(line: LabelLine = line, found: Sequence[str] = found) -> list[int]:
            for truth_uri in found:
                truth_masks.check_palette(truth_uri)
            return label_ids(line, space, listed=listed)

        if stem in unsure_masks or len(found) > 1:
            text = unsure_masks.get(stem) or f"several masks fit it: {', '.join(found)}"
            images.fail(image_id, "label", text, uri)
            continue
        try:
            truth = [truth_masks.contiguous(truth_uri, image_id) for truth_uri in found]
        except RowError as error:
            images.fail(image_id, error.kind, error.message, error.uri)
        except ValueError as error:
            images.fail(image_id, "label", str(error), found[0])
        else:
            files |= dict(zip(truth, found, strict=True))
            images.add(image_id, uri, split, labels, *truth)
    images.notes += untold_splits(photographs.files, DEFAULT_SPLIT, unsaid)
    lone = _lone(joined.missed, photographs)
    for line, text in lone:
        images.fail(line.name, "label" if line.fault else "missing", text)
    unnamed = len(photographs.files) - len(joined.of)
    if lines and unnamed:
        where = (
            "in no folder of a class" if labels_from == "folders" else "that the CSV does not name"
        )
        images.notes.append(f"photographs {where}: {unnamed}")
    if labels_from == "folders":
        withdraw_contradicted(images, photographs.folder)
    images.errors.sort(key=lambda error: error.image_id)
    truths = {row.ground_truth_uri: row.labels for row in images.rows.values()}
    labelled = {truth: labels for truth, labels in truths.items() if truth and labels}
    looked = look_into([*labelled])
    others = look_into([truth for truth in truths if truth and truth not in labelled])
    images.notes += check_truth_values(looked, others, space)
    images.notes += compare_with_labels(looked, labelled, files, space)
    counts = {"masks without a photograph": unused} if unused else None
    return images.finish(counts, found=photographs.found + len(lone))


def _lines_of_folders(photographs: PhotographFolder) -> list[LabelLine]:
    """A line for each photograph in a folder of its class.

    Raises:
        CannotRunError: there is none, a class is called as folders of masks are, or photographs
            are called as masks of others are.
    """
    named = photographs.left_out.get(LEFT_OUT["masks"], ())
    found = [n for n in named if has_ending(n, IMAGE_SUFFIXES) and not has_ending(n, ".png")]
    if found:
        raise CannotRunError(
            f"{found[0]} is in a folder called as those of masks are, which are PNG files: if that "
            f"is a class, move all classes into {photographs.root}/{IMAGE_FOLDERS[0]}"
        )
    lines = folder_lines(photographs.files)
    refuse_masks(lines, photographs.root)
    if not lines:
        raise CannotRunError(
            f"data.labels_from = folders, but no photograph of {photographs.folder} is in a folder "
            "of its class"
        )
    return lines


def _unread(root: str, photographs: PhotographFolder, csv_uri: str) -> list[str]:
    """What may hold the labels of a folder that has none, and is not read."""
    if csv_uri:
        return [f"{csv_uri} has no line but the first"]
    ours = (LEFT_OUT["hidden"], LEFT_OUT["results"])
    passed = {reason: names for reason, names in photographs.left_out.items() if reason not in ours}
    foreign = foreign_export(root, sorted(name for names in passed.values() for name in names))
    passed.pop(LEFT_OUT["labels"], None)
    others = sorted(name for names in passed.values() for name in names)
    tables = [name for name in others if has_ending(name, TABLES)]
    return [
        *([foreign] if foreign else []),
        *(f"{name} is not read: labels stand in ROOT/{LABEL_FILES[0]}" for name in tables[:3]),
    ]


def _lone(
    missed: Sequence[LabelLine], photographs: PhotographFolder
) -> list[tuple[LabelLine, str]]:
    """The lines of which no photograph is broken, and what is wrong with each."""
    written = [line.name for line in missed if not line.fault]
    broken, _ = NameIndex(photographs.broken).find_all(written, spellings)
    misnamed = photographs.misnamed()
    there, _ = NameIndex(misnamed).find_all(written, spellings)
    texts = {
        name: f"the CSV names it; {misnamed[found.name]} is there, but has no ending of a "
        "photograph: rename or convert it"
        for name, found in there.items()
    }
    absent = f"the CSV names it, but it is not in {photographs.folder}"
    return [
        (line, line.fault or texts.get(line.name, absent))
        for line in missed
        if line.fault or line.name not in broken
    ]


def _lookalikes(photographs: PhotographFolder) -> list[str]:
    """A line where photographs look like the masks of others, by their names."""
    found = lookalikes(photographs.files)
    if not found:
        return []
    return [
        f"pictures that have the name of another photograph: {len(found)}, such as "
        f"{found[0].name!r}: if they are masks, they belong into ROOT/{MASK_FOLDERS[0]}, as PNG "
        "files under the paths of their photographs"
    ]


def _label_files(root: str, photographs: PhotographFolder) -> dict[str, str]:
    """The label files of a folder, and the sub-folder that each is of: empty for the whole."""
    whole = places_in(root, LABEL_FILES, photographs.names)
    if len(whole) > 1:
        raise CannotRunError(f"{' and '.join(whole)} both hold labels: keep one of them")
    if whole:
        return {whole[0]: ""}
    found = _tables_of_folders(root, photographs)
    return {uri: folder for uri, folder in found.items() if storage.exists(uri)}


def _tables_of_folders(root: str, photographs: PhotographFolder) -> dict[str, str]:
    """Where a label file may be of each sub-folder, as Roboflow exports it: a folder a split."""
    folders = sorted({name.split("/", 1)[0] for name in photographs.files if "/" in name})
    return {storage.join(root, folder, "_classes.csv"): folder for folder in folders}


def read_folder_classes(root: str, name: str) -> ClassList | None:
    """What the list of classes in a folder says, if there is one.

    Raises:
        CannotRunError: one that makes no label space, or two that differ.
    """
    note(*(storage.join(root, file) for file in CLASS_FILES))
    found = {uri: read_class_list(uri, name) for uri in places_in(root, CLASS_FILES)}
    first = next(iter(found), "")
    for uri, classes in found.items():
        if classes.space != found[first].space:
            raise CannotRunError(f"{first} and {uri} list different classes: keep one")
    # CVAT's names the colours of the masks, too
    return max(found.values(), key=lambda classes: bool(classes.colours), default=None)


def _masks(
    root: str, photographs: PhotographFolder, notes: list[str]
) -> tuple[dict[str, list[str]], dict[str, str], int]:
    """The masks of each photograph by its path without the ending; where it is not sure which one
    is its own, why; and how many are of none."""
    places = places_in(root, MASK_FOLDERS, photographs.names)
    for place in photographs.results.intersection(places):
        places.remove(place)
        notes.append(
            f"{place} holds masks that a command made, and is not read as ground truth: delete "
            f"{place}/{MASKS_MARKER} if it is"
        )
    if len(places) > 1:
        held = {place: storage.list_files(place, recursive=True) for place in places}
        full = [place for place in places if any(has_ending(uri, ".png") for uri in held[place])]
        places = full or places[:1]
    if len(places) > 1:
        raise CannotRunError(f"{' and '.join(places)} both hold masks: keep one of them")
    elsewhere = [
        name
        for name in photographs.left_out.get(LEFT_OUT["masks"], ())
        if has_ending(name, ".png")
        and not any(f"{root}/{name}".startswith(f"{place}/") for place in places)
    ]
    if elsewhere:
        notes.append(
            f"masks that are not read: {len(elsewhere)}, such as {elsewhere[0]}: ground truth is "
            f"looked for in ROOT/{MASK_FOLDERS[0]}, under the paths of the photographs"
        )
    if not places:
        return {}, {}, 0
    [place] = places
    uris: dict[str, list[str]] = {}
    others: list[str] = []
    for entry in storage.list_entries(place, recursive=True):
        name = path_below(entry.uri, place)
        if is_hidden(name) or is_result(entry.uri, place, photographs.results):
            continue
        if entry.folder:
            notes.append(f"{entry.uri}: {entry.fault}; its masks are not read")
        elif has_ending(name, ".png"):
            uris.setdefault(stem_path(name), []).append(entry.uri)
        elif has_ending(name, IMAGE_SUFFIXES):
            others.append(name)
    if others:
        notes.append(
            f"masks that are not used, as they are no PNG files: {len(others)}, such as "
            f"{others[0]!r} (JPEG changes their values: write them as PNG)"
        )
    pairs = pair([*dict.fromkeys(map(stem_path, photographs.files))], list(uris))
    notes += [f"masks found {rule}: {count}" for rule, count in pairs.how.items()]
    unused = len(uris) - len({*pairs.of.values(), *(n for s in pairs.several.values() for n in s)})
    unsure = {
        name: f"it may have the mask {', '.join(stems)}, and more than one fits, or another "
        "photograph: give masks the paths of their photographs"
        for name, stems in pairs.several.items()
    }
    times = Counter(map(stem_path, photographs.files))
    unsure |= {
        name: f"the mask {stem} may be of any of {times[name]} photographs of that name: call the "
        "others otherwise"
        for name, stem in pairs.of.items()
        if times[name] > 1
    }
    return {name: uris[stem] for name, stem in pairs.of.items()}, unsure, unused
