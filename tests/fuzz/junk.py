"""Folders of anything: odd names, endings in any case, other formats, links, sub-folders."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image

Item = tuple[str, bytes, bytes | str]
SIZE = (8, 6)


def encoded(kind: str, mode: str = "RGB") -> bytes:
    out = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(np.zeros(SIZE[::-1], np.uint16)).save(out, kind)
    else:
        Image.new(mode, SIZE).save(out, kind)
    return out.getvalue()


def cam(key: int = 0) -> bytes:
    out = io.BytesIO()
    np.savez(
        out, keys=np.array([key]), cam=np.linspace(0, 1, 12, dtype=np.float16).reshape(1, 3, 4)
    )
    return out.getvalue()


def scores(planes: int = 3) -> bytes:
    """Of a background and classes, shares that add up to one."""
    out = io.BytesIO()
    np.savez(out, scores=np.full((planes, *SIZE[::-1]), 1 / planes, np.float16))
    return out.getvalue()


PHOTO, MASK, CAM, SCORES = encoded("JPEG"), encoded("PNG", "L"), cam(), scores()
_CONTENTS = [
    *(PHOTO, MASK, CAM, encoded("GIF", "P"), encoded("TIFF"), encoded("PNG", "I;16")),
    *(encoded("PNG", "RGBA"), encoded("JPEG", "CMYK"), cam(-3), cam(400)),
    *(b"", b"junk", b"<!DOCTYPE html><html></html>", b"version https://git-lfs.github.com/spec/v1"),
    *(scores(1), scores(21), b"PK\x03\x04", b"\x1f\x8b\x08\0"),
    *("dangling", "up", "itself"),
]
_STEMS = (
    *("a", "b", "A", "a b", "b%20c", "b c", "ж", "é", "e\u0301", ".a", "._a", "a.b", "-"),
    *(
        "a.jpg",
        "a_mask",
        "b%20c.jpg?raw=1",
        "x" * 200,
        "007",
        "7",
        "a\nb",
        "a,b",
        "a;b",
        "'",
        "Thumbs",
        ".DS_Store",
        "labels",
        "classes",
    ),
)
_ENDINGS = (
    *(".jpg", ".JPG", ".png", ".PNG", ".heic", ".dng", ".txt", "", ".npz", ".NPZ", ".npy"),
    *(".jpg.jpg", ".gif", ".tiff", ".db", ".csv", ".json", ".xml"),
)
_FOLDERS = (
    *("", "", "", "images", "images/sub", "masks", "masks/sub", "sub", ".hidden", "out", "a"),
    *("Images", "MASKS", "train/masks", "@eaDir", "__MACOSX"),
)
_named = st.tuples(st.sampled_from(_STEMS), st.sampled_from(_ENDINGS)).map("".join)
_raw = st.binary(min_size=1, max_size=4).filter(lambda name: not {0, 46, 47} & set(name))
names = _named.map(os.fsencode) | _raw
items = st.tuples(st.sampled_from(_FOLDERS), names, st.sampled_from(_CONTENTS))
junk = st.lists(items, max_size=14)
"""What a folder may hold: (sub-folder, name, content or kind of link)."""


def sound(ending: str, content: bytes, folder: str = "") -> st.SearchStrategy[list[Item]]:
    """Junk beside one to three files that are as they should be."""
    good = st.lists(st.sampled_from([b"good", b"better", b"sub good"]), min_size=1, unique=True)
    named = good.map(lambda found: [(folder, name + ending.encode(), content) for name in found])
    return st.tuples(junk, named).map(lambda two: [*two[0], *two[1]])


def make(root: str, items: list[Item]) -> int:
    """Write them; returns how many files and links to none there are."""
    Path(root).mkdir(parents=True, exist_ok=True)
    for folder, name, content in items:
        place = Path(root, folder)
        try:
            place.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError):
            continue  # a file has the folder's name
        path = Path(os.fsdecode(os.fsencode(place) + b"/" + name))
        if path.is_symlink() or path.exists():
            continue
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            targets = {"dangling": "nowhere", "up": root, "itself": path.name}
            path.symlink_to(targets[content])
    return sum(len(files) for _, _, files in os.walk(root))
