"""Exports of annotation tools that are not read: recognised, and refused with the one to choose."""

from __future__ import annotations

import re

from pmm_ray.runtime.core import storage
from pmm_ray.sources.names import has_ending

FOREIGN = {
    "YOLO text": "export COCO segmentation instead (Roboflow, CVAT and Label Studio write it)",
    "Label Studio JSON": "choose `COCO` (polygons) or `Brush labels to COCO` in its export dialog",
    "LabelMe JSON": "run its `labelme2coco.py`, or `labelme2voc.py` for masks with class_names.txt",
    "VIA JSON": "export annotations as COCO in its menu",
    "CVAT XML": "choose `COCO 1.0` in its export dialog",
}
"""What is recognised, and what to do instead."""

_HEAD_BYTES = 1 << 16
_MOST_LOOKED_INTO = 5
_YOLO_LINE = re.compile(rb"\A\s*\d+(?:\s+-?\d*\.?\d+){4,}\s*$", re.MULTILINE)
# words that all stand near the beginning of such a JSON file
_JSON_WORDS = {
    "LabelMe JSON": (b'"shapes"', b'"imagePath"'),
    "VIA JSON": (b'"regions"', b'"filename"'),
    "Label Studio JSON": (b'"data"', b'"annotations"'),
}


def foreign_export(root: str) -> str:
    """What to say of an export in a folder, or of one file; empty if it is none that is known.

    Args:
        root: uri; of a folder its own files, and those in `labels/`, are looked into.
    """
    if has_ending(root, ".json"):
        return _sentence(_format_of(root), root)
    names = ("", "labels", "labels/train", "train/labels", "annotations")
    for place in (f"{root}/{name}".rstrip("/") for name in names):
        files = [entry.uri for entry in storage.list_entries(place) if not entry.fault]
        files = [uri for uri in files if has_ending(uri, (".json", ".xml", ".txt"))]
        for uri in files[:_MOST_LOOKED_INTO]:
            if sentence := _sentence(_format_of(uri), uri):
                return sentence
    return ""


def _sentence(name: str, uri: str) -> str:
    return f"{uri} is {name}, which is not read: {FOREIGN[name]}" if name else ""


def _format_of(uri: str) -> str:
    head = storage.read_bytes(uri, _HEAD_BYTES)
    if has_ending(uri, ".txt"):
        return "YOLO text" if _YOLO_LINE.match(head) else ""
    if has_ending(uri, ".xml"):
        return "CVAT XML" if b"<annotations>" in head and b"<image " in head else ""
    for name, words in _JSON_WORDS.items():
        a_list = head.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"[")
        if all(word in head for word in words) and (a_list or name != "Label Studio JSON"):
            return name
    return ""
