"""A label space by its name or from a file: what `--label-space` takes."""

from __future__ import annotations

import csv
import io
import json

from pmm_ray.labels import BACKGROUND, COCO14, VOC12, LabelSpace
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.manifest import open_manifest

KNOWN = {space.name: space for space in (VOC12, COCO14)}


def read_label_space(word: str) -> LabelSpace:
    """The label space that a word or file names.

    Args:
        word: `voc12`, `coco14`, or a file: a manifest (`.parquet`), a label space or COCO-style
            `categories` (`.json`), a table `id,name` of mask values (`.csv`), or the class names,
            one a line in the order of their ids.

    Raises:
        CannotRunError: no such name or file, or one that makes no label space.
    """
    if word in KNOWN:
        return KNOWN[word]
    uri = storage.absolute(word)
    if not storage.exists(uri):
        raise CannotRunError(
            f"no label space {word!r}: it is one of {', '.join(KNOWN)}, or a file with the names"
        )
    if uri.endswith(".parquet"):
        return open_manifest(uri).label_space
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
        if uri.endswith(".json"):
            return _from_json(text)
        if uri.endswith(".csv"):
            return _from_csv(text)
        return LabelSpace.from_names([line.strip() for line in text.splitlines() if line.strip()])
    except UnicodeDecodeError as error:
        raise CannotRunError(f"{uri} is not UTF-8 text") from error
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise CannotRunError(f"{uri} makes no label space: {error}") from error


def _from_json(text: str) -> LabelSpace:
    content = json.loads(text)
    if isinstance(content, dict) and "categories" in content:
        return _of({int(c["id"]): str(c["name"]) for c in content["categories"]})
    return LabelSpace.from_json(text)


def _from_csv(text: str) -> LabelSpace:
    rows = csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)
    if not {"id", "name"} <= set(rows.fieldnames or ()):
        raise ValueError("the first line must name the columns id and name")
    return _of({int(row["id"]): row["name"].strip() for row in rows})


def _of(name_of: dict[int, str]) -> LabelSpace:
    """From mask values and names; the background may stand among them as 0."""
    classes = {number: name_of[number] for number in sorted(name_of) if number}
    names = (BACKGROUND, *classes.values())
    return LabelSpace("custom", names, (0, *classes))
