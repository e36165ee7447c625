"""A folder of photographs with a CSV file of labels: the simplest data set a user can bring.

    ROOT/images/*.jpg      also jpeg, png, bmp, tif, tiff, webp
    ROOT/labels.csv        image_id,labels[,split]   labels separated by ';'
    ROOT/classes.txt       optional: one class name a line, in the order of their ids
    ROOT/masks/ID.png      optional ground truth: indexed or grey, values in the order of the ids

A file's image id is its name without the ending. Where that is not an allowed id (spaces, other
scripts, too long), every run of other characters becomes '-' and '-' with ten hex digits of the
name's SHA-256 is added: "Мой кот 1" becomes "1-" and its digits. `labels.csv` and `masks/` use the
file's own name, never the made id.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from pmm_ray.labels import BACKGROUND, LabelSpace, normalize_name
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.rows.images import MAX_PIXELS
from pmm_ray.sources.importing import Importer, ImportReport

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
DEFAULT_SPLIT = "train"
# the class of a label space that nothing names: unlabelled photographs without class names
UNNAMED_CLASS = "object"

_LABEL_COLUMNS = ("labels", "label")
_SEPARATOR = ";"


@dataclass(frozen=True)
class LabelLine:
    """A line of the CSV file; `fault` says what is wrong with it."""

    name: str
    labels: tuple[str, ...]
    split: str
    fault: str = ""


def import_folder(
    root: str,
    out: str,
    *,
    labels_csv: str | None = None,
    class_names: Sequence[str] | None = None,
    read_labels: bool = True,
    max_pixels: int = MAX_PIXELS,
) -> ImportReport:
    """Write the manifest of a folder of photographs, used in place. EXIF orientation is applied.

    Photographs that the CSV does not name are unlabelled, as all are without a CSV; lines of the
    CSV without a photograph are `missing` errors. Two files that share a name (`a.jpg`, `a.png`)
    and two lines for one file are `label` errors; the first of them stays.

    Args:
        root: holds `images/`, or the photographs themselves; subfolders are not searched.
        out: folder that gets `manifest.parquet` and `errors/`.
        labels_csv: UTF-8, default `ROOT/labels.csv` if there is one. Columns `image_id` (a file
            name with or without its ending), `labels` (or `label`), and optionally `split`;
            without it every photograph is in split `train`.
        class_names: the classes in the order of their ids; default: `ROOT/classes.txt`, else the
            names in the CSV, sorted.
        read_labels: False leaves any CSV aside: all photographs are unlabelled.
        max_pixels: a photograph that declares more becomes an error row.

    Raises:
        CannotRunError: no photographs, or a CSV that cannot be read.
        ValueError: class names that make no label space.
    """
    root = storage.absolute(root)
    below = storage.join(root, "images")
    folder = below if storage.exists(below) else root
    uris = [uri for uri in storage.list_files(folder) if uri.lower().endswith(IMAGE_SUFFIXES)]
    if not uris:
        raise CannotRunError(f"no photographs ({', '.join(IMAGE_SUFFIXES)}) in {folder}")
    default_csv = storage.join(root, "labels.csv")
    csv_uri = labels_csv or (default_csv if storage.exists(default_csv) else None)
    lines = read_labels_csv(csv_uri) if csv_uri and read_labels else []
    space = _label_space(root, class_names, lines)
    importer = Importer(out, space, source="folder", exif="apply", max_pixels=max_pixels)
    by_name: dict[str, LabelLine] = {}
    for line in lines:
        if line.name in by_name:
            importer.fail(line.name, "label", "the CSV names it twice; the first line counts")
        by_name.setdefault(line.name, line)
    masks = {file_stem(uri): uri for uri in storage.list_files(storage.join(root, "masks"), ".png")}
    used: set[str] = set()
    for uri in uris:
        stem = file_stem(uri)
        name = next((n for n in (file_name(uri), stem) if n in by_name), stem)
        used.add(name)
        line = by_name.get(name, LabelLine(name, (), DEFAULT_SPLIT))
        labels = partial(_label_ids, line, space)
        importer.add(safe_image_id(stem), uri, line.split, labels, masks.get(stem))
    for name in by_name.keys() - used:
        importer.fail(name, "missing", f"the CSV names it, but it is not in {folder}")
    importer.errors.sort(key=lambda error: error.image_id)
    unused = len(masks.keys() - {file_stem(uri) for uri in uris})
    return importer.finish({"masks without a photograph": unused} if unused else None)


def safe_image_id(name: str) -> str:
    """The name itself if it is an allowed image id, else a safe id that only it gets."""
    if tables.IMAGE_ID_PATTERN.fullmatch(name):
        return name
    name = unicodedata.normalize("NFC", name)
    readable = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:100]
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:10]
    return f"{readable or 'image'}-{digest}"


def file_name(uri: str) -> str:
    """The last part of a uri, composed (Unicode NFC)."""
    # a Mac stores file names decomposed, a CSV is mostly written composed
    return unicodedata.normalize("NFC", uri.rsplit("/", 1)[-1])


def file_stem(uri: str) -> str:
    """The file's name without its ending."""
    return file_name(uri).rsplit(".", 1)[0]


def read_labels_csv(uri: str) -> list[LabelLine]:
    """The lines of a CSV file with the columns image_id and labels (or label).

    Raises:
        CannotRunError: no such file, not UTF-8, or without those columns.
    """
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise CannotRunError(f"no labels file at {uri}") from error
    except UnicodeDecodeError as error:
        raise CannotRunError(f"{uri} is not UTF-8 text: save it as CSV UTF-8") from error
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        columns = [column.strip() for column in reader.fieldnames or ()]
        reader.fieldnames = columns
        labels = next((column for column in _LABEL_COLUMNS if column in columns), None)
        if "image_id" not in columns or labels is None:
            raise CannotRunError(
                f"{uri}: the first line must name the columns image_id and labels, separated by "
                f"','; it names {columns}"
            )
        return [_line(record, labels, reader.line_num) for record in reader]
    except csv.Error as error:
        raise CannotRunError(f"{uri} is not a CSV file: {error}") from error


def _line(record: dict[Any, Any], label_column: str, number: int) -> LabelLine:
    fault = ""
    # the csv module files surplus fields under None
    if None in record:
        fault = (
            f"line {number} of the CSV has more columns than its first: "
            f"separate the classes of an image by {_SEPARATOR!r}"
        )
    words = (record[label_column] or "").split(_SEPARATOR)
    return LabelLine(
        name=unicodedata.normalize("NFC", (record["image_id"] or "").strip()),
        labels=tuple(name for word in words if (name := normalize_name(word))),
        split=(record.get("split") or "").strip() or DEFAULT_SPLIT,
        fault=fault,
    )


def _label_space(
    root: str, class_names: Sequence[str] | None, lines: Sequence[LabelLine]
) -> LabelSpace:
    class_names = class_names if class_names is not None else read_class_names(root)
    if class_names is None:
        found = {name for line in lines if not line.fault for name in line.labels}
        class_names = sorted(found - {BACKGROUND}) or [UNNAMED_CLASS]
    try:
        return LabelSpace.from_names(list(class_names), name="folder")
    except ValueError as error:
        raise CannotRunError(f"classes.txt or labels.csv of {root}: {error}") from error


def read_class_names(root: str) -> list[str] | None:
    """The lines of `ROOT/classes.txt`, if there is one."""
    uri = storage.join(root, "classes.txt")
    if not storage.exists(uri):
        return None
    text = storage.read_bytes(uri).decode("utf-8-sig")
    return [line.strip() for line in text.splitlines() if line.strip()]


def _label_ids(line: LabelLine, space: LabelSpace) -> list[int]:
    if line.fault:
        raise ValueError(line.fault)
    ids = [space.id_of(name) for name in line.labels]
    if 0 in ids:
        raise ValueError(f"{BACKGROUND!r} is no label: every photograph has some")
    return ids
