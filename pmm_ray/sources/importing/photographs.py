"""The photographs of a folder, and what else is there: nothing of it goes unmentioned."""

from __future__ import annotations

import posixpath
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.files import IMPORT_MARKER, SUMMARY_FILE
from pmm_ray.runtime.core.marker import held_in
from pmm_ray.runtime.rows.images import CONVERT, IMAGE_SUFFIXES, UNREAD
from pmm_ray.sources.importing.importer import Importer
from pmm_ray.sources.importing.results import is_result, results_in
from pmm_ray.sources.reading.names import (
    ending_of,
    has_ending,
    is_hidden,
    path_below,
    safe_image_id,
    stem_path,
)

IMAGE_FOLDERS = ("images", "JPEGImages")
"""Where photographs are looked for below a root; else they are in the root itself."""
MASK_FOLDERS = ("masks", "SegmentationClassPNG", "SegmentationClass")
"""Where the ground truth of a folder is looked for."""
LABEL_FILES = ("labels.csv", "_classes.csv")
CLASS_FILES = ("classes.txt", "class_names.txt", "labelmap.txt")
"""Lists of class names: ours, LabelMe's, CVAT's."""
TABLES = (
    *(".csv", ".tsv", ".tab", ".xlsx", ".xls", ".ods", ".numbers", ".txt", ".parquet"),
    *(".json", ".jsonl", ".ndjson", ".yaml", ".yml", ".csv.gz", ".tsv.gz", ".json.gz"),
)
"""Endings of files that may hold labels."""

LEFT_OUT = {
    "hidden": "hidden",
    "results": "results of an earlier command",
    "masks": "in the folder of masks",
    "labels": "labels and class names",
    "other": "no ending of a photograph",
}
"""Why a file of a folder is passed over; one beside the folder of photographs is `not in` it."""

_MASKS = {name.casefold() for name in MASK_FOLDERS}
_LABELS = {name.casefold() for name in (*LABEL_FILES, *CLASS_FILES)}


@dataclass(frozen=True)
class PhotographFolder:
    """What is in a folder.

    `names` are those of the files and folders of `root`, but for empty folders; `files` are the
    uris of photographs by their paths below `folder`, with their endings; `broken` is what is wrong
    with those that cannot be opened, by the same; `left_out` the names of all other files by
    reason; `results` the uris of the files and folders that commands of ours made.
    """

    root: str
    folder: str
    names: frozenset[str]
    files: dict[str, str]
    broken: dict[str, RowError]
    left_out: dict[str, list[str]]
    results: set[str]

    @property
    def found(self) -> int:
        """Files that were met."""
        return len(self.files) + len(self.broken) + sum(map(len, self.left_out.values()))

    def image_id(self, name: str) -> str:
        """The image id of a photograph."""
        return safe_image_id(stem_path(name))

    def misnamed(self) -> dict[str, str]:
        """The files among the photographs that have no ending of one, nor one of a table: their
        paths below `root`, by those below `folder`, with their endings and without."""
        uris = (f"{self.root}/{name}" for name in self.left_out.get(LEFT_OUT["other"], ()))
        below = f"{self.folder}/"
        found = {
            path_below(uri, self.folder): path_below(uri, self.root)
            for uri in uris
            if uri.startswith(below) and not has_ending(uri, (*TABLES, ".xml"))
        }
        return {stem_path(path): name for path, name in found.items()} | found

    def report(self, importer: Importer) -> None:
        """Hand over what is no photograph that can be used."""
        for name, error in self.broken.items():
            importer.fail(stem_path(name), error.kind, error.message, error.uri)
        for reason, names in self.left_out.items():
            importer.leave_out(reason, *names)


def find_photographs(root: str, out: str) -> PhotographFolder:
    """All photographs below a folder, sub-folders too.

    Args:
        root: holds `images/` or `JPEGImages/`, or the photographs themselves.
        out: where results go: they are left out, as are older ones below `root`.

    Raises:
        CannotRunError: there are none; what is there instead is named.
    """
    root = storage.absolute(root)
    entries = storage.list_entries(root, recursive=True)
    # ours is gone when the import ends
    entries = [e for e in entries if posixpath.basename(e.uri) != IMPORT_MARKER]
    below = len(root.rstrip("/")) + 1
    names = frozenset(entry.uri[below:].split("/", 1)[0] for entry in entries)
    folder = (places_in(root, IMAGE_FOLDERS, names) or [root])[0]
    results = results_in((entry.uri for entry in entries), root, out)
    files: dict[str, str] = {}
    broken: dict[str, RowError] = {}
    left_out: dict[str, list[str]] = {}
    for entry in entries:
        name = path_below(entry.uri, folder)
        reason = why_left_out(entry.uri, root, folder, results)
        if entry.folder and reason == LEFT_OUT["other"]:
            reason = ""
        if reason:
            left_out.setdefault(reason, []).append(path_below(entry.uri, root))
        elif entry.fault:
            broken[name] = RowError("missing", entry.fault, entry.uri)
        elif has_ending(name, UNREAD):
            text = f"{ending_of(name)} is not read: {CONVERT}"
            broken[name] = RowError("decode", text, entry.uri)
        else:
            files[name] = entry.uri
    if not files and not broken:
        there = "".join(
            f"\n  {len(names)} left out: {reason} ({storage.printable(', '.join(names[:3]))})"
            for reason, names in sorted(left_out.items())
        )
        if not entries:
            storage.refuse_no_folder(root)
        endings = ", ".join(IMAGE_SUFFIXES[:8])
        raise CannotRunError(f"no photographs ({endings}, ...) in {folder}{there}")
    return PhotographFolder(root, folder, names, files, broken, left_out, results)


def why_left_out(uri: str, root: str, folder: str, results: set[str]) -> str:
    """Why a file is passed over; empty for a photograph.

    Args:
        root: of the data set.
        folder: of its photographs, `root` itself or below it.
        results: from `results_in`.
    """
    path = path_below(uri, root)
    parts = path.split("/")
    if is_hidden(path):
        return LEFT_OUT["hidden"]
    if is_result(uri, root, results):
        return LEFT_OUT["results"]
    in_folder = uri.startswith(folder.rstrip("/") + "/")
    # below the photographs a folder may be called anything
    if not (in_folder and folder != root) and {part.casefold() for part in parts[:-1]} & _MASKS:
        return LEFT_OUT["masks"]
    if path.casefold() in _LABELS or parts[1:] == ["_classes.csv"]:
        return LEFT_OUT["labels"]
    if not has_ending(path, IMAGE_SUFFIXES):
        return LEFT_OUT["other"]
    return "" if in_folder else f"not in {folder}"


def beside_table(place: str, parts: Sequence[str]) -> list[str]:
    """What a table's folder holds that is not of the table: a user's own files, perhaps."""
    ours = {*parts, *(storage.join(place, name) for name in ("index.parquet", SUMMARY_FILE))}
    errors = storage.join(place, "errors") + "/"
    uris = [entry.uri for entry in storage.list_entries(place, recursive=True)]
    return [uri for uri in uris if uri not in ours and not uri.startswith(errors)]


def places_in(root: str, names: Sequence[str], there: Collection[str] | None = None) -> list[str]:
    """The files and folders of these names in a folder, in the order of the names.

    Where there is none of them: those of these names in another case.

    Args:
        there: what the folder holds, if that is known.
    """
    if there is None:
        # first without a listing: in Google's store it is of all files below, perhaps millions
        there = held_in(root, names) or storage.list_names(root)
    other = (held for name in names for held in sorted(there) if held.casefold() == name.casefold())
    found = [name for name in names if name in there] or list(other)
    return [storage.join(root, name) for name in found]
