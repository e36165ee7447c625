"""The photographs of a folder of CAMs -> a manifest, with the names and labels of a CSV file.

The CSV (UTF-8) is one of two kinds, told apart by its first line:

    image_id,labels      the classes of each photograph, separated by ';': others are left out.
                         Names, or mask values (1 is the first class)
    id,name              the name of each class by its mask value

What the numbers of the CAMs are called: the run whose folder the cams table lies in says it, else
`classes.txt` among the photographs, else the CSV. Names that only stand in an `image_id,labels`
file are taken in alphabetical order, or in VOC's or COCO's where just that fits the CAMs.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from functools import partial

from pmm_ray.labels import (
    BACKGROUND,
    COCO14,
    LAST_8BIT_CLASS,
    MAX_FOREGROUND,
    VOC12,
    LabelSpace,
    normalize_name,
)
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.manifest import ExifRule, Manifest, open_manifest
from pmm_ray.runtime.rows.images import MAX_PIXELS
from pmm_ray.sources.cam_files import CamFolder, CamReader
from pmm_ray.sources.folder import (
    IMAGE_SUFFIXES,
    LabelLine,
    file_name,
    file_stem,
    read_class_names,
    read_labels_csv,
    safe_image_id,
)
from pmm_ray.sources.importing import Importer, ImportReport

WITHOUT_CAM = "photographs without a CAM"
"""Key of `ImportReport.counts`."""
# CAMs looked into to tell in which order class names are meant.
_LOOKED_INTO = 20


def import_photographs(
    images: str,
    cams: CamFolder,
    out: str,
    *,
    labels_csv: str | None = None,
    trust_pickle: bool = False,
    max_pixels: int = MAX_PIXELS,
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

    Raises:
        CannotRunError: no photographs, a CSV that cannot be read, or no CAM with a photograph.
    """
    root = storage.absolute(images)
    below = storage.join(root, "images")
    folder = below if storage.exists(below) else root
    photographs: dict[str, list[str]] = {}
    for uri in storage.list_files(folder):
        if uri.lower().endswith(IMAGE_SUFFIXES):
            photographs.setdefault(safe_image_id(file_stem(uri)), []).append(uri)
    if not photographs:
        raise CannotRunError(f"no photographs ({', '.join(IMAGE_SUFFIXES)}) in {folder}")
    names, lines = _read_csv(labels_csv) if labels_csv else (None, None)
    space, exif = _known_classes(cams, root, names)
    by_name = None if lines is None else {line.name: line for line in reversed(lines)}
    if space is None:
        space = _space_of(by_name, photographs, cams, trust_pickle, max_pixels)
    importer = Importer(out, space, source="cams", exif=exif, max_pixels=max_pixels)
    for image_id in cams.index.image_ids:
        uris = photographs.pop(image_id, [])
        if not uris:
            importer.fail(image_id, "missing", f"no photograph of that name in {folder}")
            continue
        labels = partial(_label_ids, _line_of(uris[0], by_name), space, by_name is not None)
        importer.add(image_id, uris[0], "train", labels)
        for uri in uris[1:]:
            importer.fail(image_id, "label", f"a second photograph of that name: {uri}", uri)
    for uri in cams.repeated:
        importer.fail(file_stem(uri), "label", "a second CAM of that name", uri)
    return importer.finish({WITHOUT_CAM: len(photographs)} if photographs else None)


def _line_of(uri: str, by_name: Mapping[str, LabelLine] | None) -> LabelLine | None:
    if by_name is None:
        return None
    return by_name.get(file_name(uri)) or by_name.get(file_stem(uri))


def _label_ids(line: LabelLine | None, space: LabelSpace, needed: bool) -> list[int]:
    """The contiguous ids of a CSV line; none where every class counts."""
    if not needed:
        return []
    if line is None:
        raise ValueError("the CSV does not name this photograph")
    if line.fault:
        raise ValueError(line.fault)
    if not line.labels:
        raise ValueError("the CSV names no class for this photograph")
    ids = [int(word) if word.isdecimal() else space.id_of(word) for word in line.labels]
    if 0 in ids:
        raise ValueError(f"0 is the {BACKGROUND!r}, no label: classes count from 1")
    return ids


def _read_csv(uri: str) -> tuple[list[str] | None, list[LabelLine] | None]:
    """(class names in the order of their ids, None) or (None, a line per photograph)."""
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise CannotRunError(f"no labels file at {uri}") from error
    except UnicodeDecodeError as error:
        raise CannotRunError(f"{uri} is not UTF-8 text: save it as CSV UTF-8") from error
    try:
        records = list(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True))
    except csv.Error as error:
        raise CannotRunError(f"{uri} is not a CSV file: {error}") from error
    columns = [column.strip() for column in records[0]] if records else []
    if not {"id", "name"} <= set(columns):
        return None, read_labels_csv(uri)
    named: dict[int, str] = {}
    for record in filter(None, records[1:]):
        cells = dict(zip(columns, (cell.strip() for cell in record), strict=False))
        if not cells.get("id", "").isdecimal() or not cells.get("name"):
            raise CannotRunError(f"{uri}: {record} is no line of an id (a mask value) and a name")
        named[int(cells["id"])] = cells["name"]
    named.pop(0, None)  # the background
    last = max(named, default=0)
    if not 1 <= last <= MAX_FOREGROUND:
        raise CannotRunError(f"{uri}: ids must lie in 1..{MAX_FOREGROUND}, the last is {last}")
    return [named.get(i, f"class {i}") for i in range(1, last + 1)], None


def _known_classes(
    cams: CamFolder, root: str, names: Sequence[str] | None
) -> tuple[LabelSpace | None, ExifRule]:
    """What the classes are called, if anything says it, and the EXIF rule."""
    if cams.is_table and (manifest := _manifest_of_run(cams)) is not None:
        return manifest.label_space, "apply" if manifest.apply_exif else "ignore"
    try:
        names = names or read_class_names(root)
        return (LabelSpace.from_names(list(names), "cams") if names else None), "ignore"
    except ValueError as error:
        raise CannotRunError(f"the class names make no label space: {error}") from error


def _manifest_of_run(cams: CamFolder) -> Manifest | None:
    """The manifest of the run in whose folder the table lies, if it does and it is still there."""
    run_folder = storage.parent(storage.parent(cams.index.parts[0]))
    record = storage.join(run_folder, "run.json")
    uri = json.loads(storage.read_bytes(record)).get("manifest") if storage.exists(record) else None
    return open_manifest(uri) if uri and storage.exists(uri) else None


def _space_of(
    by_name: Mapping[str, LabelLine] | None,
    photographs: Mapping[str, Sequence[str]],
    cams: CamFolder,
    trust_pickle: bool,
    max_pixels: int,
) -> LabelSpace:
    """The label space where only the labels of photographs are known, or nothing at all."""
    nameless = LabelSpace.from_names([f"class {i}" for i in range(1, LAST_8BIT_CLASS + 1)], "cams")
    words = {word for line in (by_name or {}).values() for word in line.labels}
    names = {word for word in words if not word.isdecimal()} - {BACKGROUND}
    if not names:
        return nameless
    try:
        candidates = [LabelSpace.from_names(sorted(names), "cams")]
    except ValueError as error:
        raise CannotRunError(f"the labels make no label space: {error}") from error
    candidates += [known for known in (VOC12, COCO14) if names <= set(known.names)]
    if len(candidates) == 1:
        return candidates[0]
    reader = CamReader(LAST_8BIT_CLASS, trust_pickle, max_pixels)
    looked_into = _look_into(cams, reader, photographs, by_name or {})
    fitting = [
        space
        for space in candidates
        if all({space.id_of(name) for name in line} <= labels for line, labels in looked_into)
    ]
    return (fitting or candidates)[0]


def _look_into(
    cams: CamFolder,
    reader: CamReader,
    photographs: Mapping[str, Sequence[str]],
    by_name: Mapping[str, LabelLine],
) -> list[tuple[set[str], set[int]]]:
    """(names in the CSV, classes in the CAM) of the first images that have both."""
    found: list[tuple[set[str], set[int]]] = []
    for image_id, (uri, row) in sorted(cams.index.locations().items()):
        line = _line_of(photographs[image_id][0], by_name) if image_id in photographs else None
        if line is None or line.fault:
            continue
        names = {normalize_name(word) for word in line.labels if not word.isdecimal()}
        try:
            labels = set(reader.labels(tables.read_rows(uri, [row])[0]))
        except RowError:
            continue
        found.append((names - {BACKGROUND}, labels))
        if len(found) == _LOOKED_INTO:
            break
    return found
