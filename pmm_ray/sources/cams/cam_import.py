"""The photographs of a folder of CAMs -> a manifest, with the names and labels of a CSV file.

The CSV (UTF-8) is one of two kinds, told apart by its first line:

    image_id,labels      the classes of each photograph, separated by ';': others are left out.
                         Names, mask values (1 is the first class), or values of the class list
    id,name              the name of each class by its mask value

What the numbers of the CAMs are called: the run whose folder the cams table is in names them, else
`classes.txt` among the photographs, else the CSV. Names that only stand in an `image_id,labels`
file are taken in alphabetical order, or in VOC's or COCO's where just that fits the CAMs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from pmm_ray.labels import (
    BACKGROUND,
    COCO14,
    LAST_8BIT_CLASS,
    MAX_FOREGROUND,
    VOC12,
    LabelSpace,
    is_background,
)
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.manifest import ExifRule
from pmm_ray.runtime.core.record import manifest_near
from pmm_ray.runtime.rows.images import MAX_PIXELS
from pmm_ray.sources.cams.cam_files import CamFolder
from pmm_ray.sources.cams.cam_layouts import UNREAD, Reading
from pmm_ray.sources.cams.cam_reader import CamReader, to_contiguous, told_ids
from pmm_ray.sources.cams.said import ClassIds
from pmm_ray.sources.datasets.folder import read_folder_classes
from pmm_ray.sources.importing.import_report import ImportReport, reads_source
from pmm_ray.sources.importing.importer import Importer
from pmm_ray.sources.importing.photographs import PhotographFolder, find_photographs
from pmm_ray.sources.labels.joined_lines import JoinedLines, join_lines
from pmm_ray.sources.labels.label_files import class_pairs
from pmm_ray.sources.labels.label_lines import LabelLine, label_lines, names_of
from pmm_ray.sources.reading.names import NameIndex, grouped, pair, stem_path
from pmm_ray.sources.reading.text import read_table_text

WITHOUT_CAM = "photographs without a CAM"
"""Key of `ImportReport.counts`."""
# CAMs looked into to tell in which order class names are meant.
_LOOKED_INTO = 20


@reads_source
def import_photographs(
    images: str,
    cams: CamFolder,
    out: str,
    *,
    labels_csv: str | None = None,
    trust_pickle: bool = False,
    max_pixels: int = MAX_PIXELS,
    reading: Reading = UNREAD,
    space: LabelSpace | None = None,
) -> ImportReport:
    """Write the manifest of those photographs of a folder that have a CAM.

    EXIF orientation is ignored, as the programs that make such CAMs do; for a cams table of a run
    of ours, that run's rule holds. A CAM without a photograph is a `missing` error, a second CAM
    or photograph of one name and a photograph that the CSV does not name are `label` errors.

    Args:
        images: holds the photographs, or a folder `images/` with them.
        cams: from `find_cams`.
        out: folder that gets `manifest.parquet` and `errors/`.
        labels_csv: see above; without it every class of a CAM counts.
        trust_pickle: whether the user vouches for `.npy` files.
        max_pixels: a photograph that declares more becomes an error row.
        reading: what is known of the files.
        space: the classes, where they are known; None: see above.

    Raises:
        CannotRunError: no photographs, a CSV that cannot be read, or no CAM with a photograph.
    """
    photographs = find_photographs(images, out)
    names, lines = _read_csv(labels_csv) if labels_csv else (None, None)
    known, exif = _known_classes(cams, photographs.root, names)
    space = space or known or (COCO14 if reading.class_ids == "coco90" else None)
    index = NameIndex(photographs.files)
    joined = join_lines(lines or (), index)
    of = None if lines is None else joined.of
    matched, unsure, how = _match(photographs, cams)
    named_by_csv = space is None and lines is not None
    if space is None:
        reader = CamReader(range(LAST_8BIT_CLASS + 1), trust_pickle, max_pixels, reading)
        space = _space_of(joined.of, matched, cams, reader, labels_csv or "")
    numbers = _numbers_of(of or {}, space, labels_csv or "")
    importer = Importer(out, space, source="cams", exif=exif, max_pixels=max_pixels)
    importer.labels_from = labels_csv or f"the {cams.what}s: every class of one counts"
    importer.notes += [*joined.notes, *_lone(joined)]
    if named_by_csv and space.names[1] != "class 1":
        shown = ", ".join(f"{i} = {name}" for i, name in enumerate(space.names) if i)
        importer.notes.append(f"classes of the CAMs, as {labels_csv} does not number them: {shown}")
    importer.notes += [f"photographs of {cams.what}s found {r}: {n}" for r, n in how.items()]
    for image_id in cams.index.image_ids:
        files = matched.get(image_id, ())
        if image_id in unsure:
            text = f"its photograph may be {' or '.join(unsure[image_id])}: give it the same path"
            importer.fail(image_id, "label", text)
            continue
        if not files:
            text = f"no photograph of that name in {photographs.folder}"
            importer.fail(image_id, "missing", text)
            continue
        uris = [photographs.files[name] for name in files]
        if len(uris) > 1:
            text = f"photographs of one name, and which is meant? {', '.join(uris)}"
            for uri in uris:
                importer.fail(image_id, "label", text, uri)
            continue
        labels = partial(_label_ids, files[0], of, space, numbers)
        importer.add(image_id, uris[0], "train", labels)
    for uri in cams.repeated:
        importer.fail(
            stem_path(uri, cams.place), "label", f"a second {cams.what} of that name", uri
        )
    for entry in cams.broken:
        importer.fail(stem_path(entry.uri, cams.place), "missing", entry.fault, entry.uri)
    for reason, passed in cams.left_out.items():
        importer.leave_out(reason, *passed)
    with_cam = {name for files in matched.values() for name in files}
    lone = [name for name in photographs.files if name not in with_cam]
    without = WITHOUT_CAM if cams.what == "CAM" else f"photographs without a {cams.what}"
    importer.leave_out(without, *lone)
    photographs.report(importer)
    if exif == "ignore" and (turned := importer.turned):
        importer.notes.append(
            f"photographs that EXIF data turns: {len(turned)}, such as {turned[0]}: they are taken "
            f"as they are stored; {cams.what}s of what a viewer shows do not fit them"
        )
    # a photograph and its CAM are one thing that was found
    others = len(with_cam) - sum(1 for files in matched.values() if files)
    cam_files = len(cams.index) + len(cams.repeated) + len(cams.broken)
    cam_files += sum(map(len, cams.left_out.values()))
    return importer.finish(
        {without: len(lone)} if lone else None,
        found=cam_files + others + photographs.found - len(with_cam),
    )


def _match(
    photographs: PhotographFolder, cams: CamFolder
) -> tuple[dict[str, list[str]], dict[str, tuple[str, ...]], Mapping[str, int]]:
    """The photographs of each CAM, of its id, else paired by their paths; those that may be meant
    where more than one fits; and how often which weaker rule found one."""
    by_id = grouped(photographs.files, photographs.image_id)
    matched = {i: by_id.pop(i) for i in cams.index.image_ids if i in by_id}
    stems = grouped((name for names in by_id.values() for name in names), stem_path)
    open_cams = {name: image_id for image_id, name in cams.names.items() if image_id not in matched}
    pairs = pair(list(open_cams), list(stems))
    unsure = {open_cams[name]: found for name, found in pairs.several.items() if len(found) > 1}
    matched |= {open_cams[name]: stems[stem] for name, stem in pairs.of.items()}
    return matched, unsure, pairs.how


def _lone(joined: JoinedLines) -> list[str]:
    """A note of the lines that no photograph has."""
    lone = [line.name for line in joined.missed]
    such = f"{len(lone)}, such as {lone[0]!r}" if lone else ""
    return [f"lines of the CSV without a photograph: {such}"] if lone else []


def _numbers_of(lines: Mapping[str, LabelLine], space: LabelSpace, csv: str) -> ClassIds:
    """What the CSV's numbers are: `contiguous`, or `dataset`, values that the class list states.

    Raises:
        CannotRunError: they may be either.
    """
    sound = (line for line in lines.values() if not line.fault)
    words = {word for line in sound for word in line.labels_in(space)}
    numbers = {int(word) for word in words if word.isdecimal()}
    told = told_ids(numbers, space.dataset_ids)
    if told == "auto":
        raise CannotRunError(
            f"{csv}: the numbers {sorted(numbers)[:8]} may be values of the class list "
            f"({list(space.dataset_ids)[1:6]}), or count its classes from 1: write the names"
        )
    return told


def _label_ids(
    name: str, lines: Mapping[str, LabelLine] | None, space: LabelSpace, numbers: ClassIds
) -> list[int]:
    """The contiguous ids of a photograph's CSV line; none where there is no CSV."""
    if lines is None:
        return []
    line = lines.get(name)
    if line is None:
        raise ValueError("the CSV does not name this photograph")
    if line.fault:
        raise ValueError(line.fault)
    labels = line.labels_in(space)
    if not labels:
        raise ValueError("the CSV names no class for this photograph")
    ids = [
        to_contiguous([int(word)], numbers, space.dataset_ids)[0]
        if word.isdecimal()
        else space.id_of(word)
        for word in labels
    ]
    if 0 in ids:
        raise ValueError(f"0 is the {BACKGROUND!r}, no label: classes count from 1")
    return ids


def _read_csv(uri: str) -> tuple[list[str] | None, list[LabelLine] | None]:
    """(class names in the order of their ids, None) or (None, a line per photograph)."""
    table = read_table_text(uri, "labels file")
    try:
        named = class_pairs(table)
    except ValueError as error:
        raise CannotRunError(f"{uri}: {error}") from error
    if named is None:
        return None, label_lines(uri, table)
    last = max(named, default=0)
    if not 1 <= last <= MAX_FOREGROUND:
        raise CannotRunError(f"{uri}: ids must be in 1..{MAX_FOREGROUND}, the last is {last}")
    return [named.get(i, f"class {i}") for i in range(1, last + 1)], None


def _known_classes(
    cams: CamFolder, root: str, names: Sequence[str] | None
) -> tuple[LabelSpace | None, ExifRule]:
    """What the classes are called, if anything says it, and the EXIF rule."""
    if cams.is_table and (manifest := manifest_near(storage.parent(cams.index.parts[0]))):
        return manifest.label_space, "apply" if manifest.apply_exif else "ignore"
    try:
        if names:
            return LabelSpace.from_names(list(names), "cams"), "ignore"
        listed = read_folder_classes(root, "cams")
        return (listed.space if listed else None), "ignore"
    except ValueError as error:
        raise CannotRunError(f"the class names make no label space: {error}") from error


def _space_of(
    lines: Mapping[str, LabelLine],
    matched: Mapping[str, Sequence[str]],
    cams: CamFolder,
    reader: CamReader,
    csv: str,
) -> LabelSpace:
    """The label space where only the labels of photographs are known, or nothing at all.

    Raises:
        CannotRunError: more than one order of the names fits the CAMs, or none.
    """
    nameless = LabelSpace.from_names([f"class {i}" for i in range(1, LAST_8BIT_CLASS + 1)], "cams")
    names = [word for word in names_of(lines.values()) if not word.isdecimal()]
    if not names:
        return nameless
    try:
        candidates = [LabelSpace.from_names(names, "cams")]
    except ValueError as error:
        raise CannotRunError(f"the labels make no label space: {error}") from error
    candidates += [known for known in (VOC12, COCO14) if set(names) <= set(known.names)]
    looked_into = _look_into(cams, reader, matched, lines)
    last = max((label for _, labels in looked_into for label in labels), default=0)
    fitting = [
        space
        for space in candidates
        if any(
            last <= ids[-1]
            and all({ids[space.id_of(n)] for n in line} <= labels for line, labels in looked_into)
            for ids in (range(space.num_classes), space.dataset_ids)
        )
    ]
    # all classes in each file say how many there are
    fitting = [space for space in fitting if space.num_foreground == last] or fitting
    orders = {tuple(space.id_of(name) for name in names) for space in fitting}
    advice = "give the names by their numbers, in classes.txt or a CSV of the columns id and name"
    if len(orders) > 1:
        raise CannotRunError(
            f"{csv} names {names[:3]}, and the CAMs fit more than one order of classes "
            f"({', '.join(space.name for space in fitting)}): {advice}"
        )
    if not fitting and last > max(space.dataset_ids[-1] for space in candidates):
        raise CannotRunError(
            f"the CAMs have classes up to {last}, and {csv} names {len(names)}: {advice}"
        )
    return (fitting or candidates)[0]


def _look_into(
    cams: CamFolder,
    reader: CamReader,
    matched: Mapping[str, Sequence[str]],
    lines: Mapping[str, LabelLine],
) -> list[tuple[set[str], set[int]]]:
    """(names in the CSV, classes in the CAM) of the first images that have both."""
    found: list[tuple[set[str], set[int]]] = []
    for image_id, (uri, row) in sorted(cams.index.locations().items()):
        line = lines.get(matched[image_id][0]) if image_id in matched else None
        if line is None or line.fault or line.unlisted:
            continue
        names = {word for word in line.labels if not word.isdecimal() and not is_background(word)}
        try:
            labels = set(reader.peek(tables.read_rows(uri, [row])[0])[0].labels)
        except RowError:
            continue
        found.append((names, labels))
        if len(found) == _LOOKED_INTO:
            break
    return found
