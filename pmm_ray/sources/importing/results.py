"""What commands of ours made in a folder; what a user has beside it is still the user's."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.files import (
    DIFFERENCES_FILE,
    MANIFEST_FILE,
    MASKS_MARKER,
    OBJECTS_FOLDER,
    RECORD_FILE,
    RESOLVED_FILE,
    SUMMARY_FILE,
)
from pmm_ray.runtime.core.manifest import SOURCE_KEY
from pmm_ray.runtime.core.store_faults import passing
from pmm_ray.sources.importing.importer import STAGE

SOURCE_WRITES = {
    "voc12": (DIFFERENCES_FILE,),
    "coco14": (OBJECTS_FOLDER, DIFFERENCES_FILE),
    "coco": (OBJECTS_FOLDER,),
    "parquet": ("images",),
    "shapes": ("images", "labels.csv", "classes.txt"),
}
"""What an import of a source may write beside its manifest, errors and masks."""

_RUN_WRITES = (
    *(RECORD_FILE, RESOLVED_FILE, "report.html", "plan.json", "renewed.json"),
    *("events", "tensorboard"),
)
_HASH = re.compile(rb"[0-9a-f]{8}")


def results_in(uris: Iterable[str], root: str, out: str, source: str = "") -> set[str]:
    """The files and folders that commands of ours made, by what the files say that only we write.

    Args:
        uris: of all files below `root`.
        root: the folder that is read: of an import's folder itself the data set stays.
        out: where this command's results go: what it writes there is ours, too.
        source: that is imported, if its photographs are.
    """
    found = set(_written(storage.absolute(out), source))
    for uri in uris:
        if posixpath.basename(uri) in (MANIFEST_FILE, RECORD_FILE, SUMMARY_FILE, MASKS_MARKER):
            found.update(_said_by(uri, root))
    return found


def is_result(uri: str, root: str, results: Collection[str]) -> bool:
    """Whether a file below `root` is one of these, or in one of these folders."""
    place = uri
    while len(place) > len(root):
        if place in results:
            return True
        place = storage.parent(place)
    return False


def source_of_manifest(uri: str) -> str:
    """The source of a manifest; empty if there is none of ours."""
    try:
        return tables.table_metadata(uri).get(SOURCE_KEY, "")
    except (OSError, ValueError) as error:
        if passing(error):
            raise
        return ""


def _written(folder: str, source: str) -> list[str]:
    names = (MANIFEST_FILE, *SOURCE_WRITES.get(source, ()))
    # the folder of errors may be a user's, too
    errors = tables.part_uri(storage.join(folder, "errors"), STAGE)
    return [errors, *(storage.join(folder, name) for name in names)]


def _said_by(uri: str, root: str) -> Sequence[str]:
    """What is ours by a file of one of our names; nothing by another program's."""
    folder, name = storage.parent(uri), posixpath.basename(uri)
    if name == MANIFEST_FILE:
        source = source_of_manifest(uri)
        return _written(folder, source if folder != root else "") if source else []
    try:
        data = storage.read_bytes(uri)
        if name == MASKS_MARKER:
            return [folder] if _HASH.fullmatch(data) else []
        content = json.loads(data)
    # what cannot be read says nothing
    except (OSError, ValueError, RecursionError):
        return []
    if name == SUMMARY_FILE:
        return [folder] if isinstance(content, dict) and "pixel_labels_used" in content else []
    with suppress(TypeError, KeyError, ValueError):
        folders = [stage["folder"] for stage in content["stages"]]
        return [storage.join(folder, one) for one in (*_RUN_WRITES, *folders)]
    return []
