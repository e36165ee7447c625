"""Exports of annotation tools that are not read: recognised, and refused with the one to choose."""

from __future__ import annotations

import posixpath
import re
from collections import Counter
from collections.abc import Iterable

from pmm_ray.runtime.core import storage
from pmm_ray.sources.reading.names import ending_of, has_ending, is_hidden, path_below

FOREIGN = {
    "YOLO text": "export COCO segmentation instead (Roboflow, CVAT and Label Studio write it)",
    "Label Studio JSON": "choose `COCO` (polygons) or `Brush labels to COCO` in its export dialog",
    "LabelMe JSON": "run its `labelme2coco.py`, or `labelme2voc.py` for masks with class_names.txt",
    "VIA JSON": "export annotations as COCO in its menu",
    "Datumaro JSON": "export COCO instead (`datum convert -f coco`)",
    "Supervisely JSON": "export COCO instead",
    "CVAT XML": "choose `COCO 1.0` in its export dialog",
    "VOC XML": "`voc12` reads it beside ImageSets/; else write the classes into labels.csv",
    "Roboflow's table of mask values": "export COCO segmentation instead",
    "COCO JSON": "give the file itself, as `data.source: coco`",
}
"""What is recognised, and what to do instead."""

_HEAD_BYTES = 1 << 16
# files that are looked into: of each ending in each folder, and in all
_MOST_ALIKE, _MOST_LOOKED_INTO = 3, 60
_YOLO_LINE = re.compile(rb"\A\s*\d+(?:\s+-?\d*\.?\d+){4,}\s*$", re.MULTILINE)
# words that all stand near the beginning of such a file
_WORDS: dict[str, tuple[tuple[str, tuple[bytes, ...]], ...]] = {
    ".json": (
        ("LabelMe JSON", (b'"shapes"', b'"imagePath"')),
        ("LabelMe JSON", (b'"shapes"', b'"shape_type"')),
        ("LabelMe JSON", (b'"imageData"',)),
        ("VIA JSON", (b'"regions"', b'"filename"')),
        ("Datumaro JSON", (b'"items"', b'"categories"')),
        ("Supervisely JSON", (b'"objects"', b'"classTitle"')),
        ("COCO JSON", (b'"images"', b'"file_name"')),
        ("COCO JSON", (b'"annotations"', b'"category_id"')),
        ("Label Studio JSON", (b'"data"', b'"annotations"')),
        ("Label Studio JSON", (b'"annotator"', b'"id"')),
    ),
    ".xml": (
        ("CVAT XML", (b"<annotations>", b"<image ")),
        ("CVAT XML", (b"<annotations>", b"<meta>")),
        ("VOC XML", (b"<annotation", b"<filename>", b"<object>")),
    ),
    ".csv": (("Roboflow's table of mask values", (b"Pixel Value", b"Class")),),
}
_LISTS = ("Label Studio JSON",)


def foreign_export(root: str, names: Iterable[str] | None = None, *, coco: bool = True) -> str:
    """What to say of an export in a folder, or of one file; empty if it is none that is known.

    Args:
        root: uri; of a folder a few files of each kind are looked into, sub-folders too.
        names: paths of its files below it, where they are known; else it is listed.
        coco: whether COCO's own JSON counts, which another source reads.
    """
    if ending_of(root) in _WORDS:
        return _sentence(root, coco)
    if names is None:
        entries = storage.list_entries(root, recursive=True)
        names = [path_below(entry.uri, root) for entry in entries if not entry.fault]
    alike: Counter[tuple[str, str]] = Counter()
    looked_into = 0
    for name in names:
        ending = ending_of(name)
        if ending not in (*_WORDS, ".txt") or is_hidden(name):
            continue
        kind = (posixpath.dirname(name), ending)
        alike[kind] += 1
        if alike[kind] > _MOST_ALIKE or looked_into == _MOST_LOOKED_INTO:
            continue
        looked_into += 1
        if sentence := _sentence(storage.join(root, name), coco):
            return sentence
    return ""


def _sentence(uri: str, coco: bool) -> str:
    name = _format_of(uri)
    known = name and (coco or name != "COCO JSON")
    return f"{uri} is {name}, which is not read: {FOREIGN[name]}" if known else ""


def _format_of(uri: str) -> str:
    try:
        head = storage.read_bytes(uri, _HEAD_BYTES)
    except OSError:  # a file that cannot be opened is none that is known
        return ""
    if has_ending(uri, ".txt"):
        return "YOLO text" if _YOLO_LINE.match(head) else ""
    a_list = head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")
    for name, words in _WORDS[ending_of(uri)]:
        if all(word in head for word in words) and (a_list or name not in _LISTS):
            return name
    return ""
