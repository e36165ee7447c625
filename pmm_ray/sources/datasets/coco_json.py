"""The entries of COCO-style JSON, one after another, and the classes that its categories make.

Categories are classes but for the background and roots that nothing uses.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pmm_ray.labels import (
    BACKGROUND,
    IGNORE_8BIT,
    IGNORE_16BIT,
    LabelSpace,
    is_background,
    normalize_name,
)
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.reading.json_stream import read_items
from pmm_ray.sources.reading.names import join_key


@dataclass(frozen=True)
class CocoImage:
    """An entry of `images`; `fault` says what it lacks. Sizes are 0 where it states none."""

    key: str
    file_name: str
    height: int
    width: int
    split: str = ""
    """Not in the official files; own ones may name a `split` or `subset` for each image."""
    fault: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), px; (0, 0) where the entry does not state both."""
        return (self.height, self.width) if self.height and self.width else (0, 0)


@dataclass(frozen=True)
class Category:
    """An entry of `categories`; `key` is its id as `join_key` gives it."""

    key: str
    name: str
    parent: str = ""

    @property
    def number(self) -> int | None:
        return int(self.key) if self.key.isdecimal() else None


def read_images(uri: str) -> list[CocoImage]:
    """The entries of `images`, in the order of the file.

    Raises:
        CannotRunError: no such file, not JSON, or none with an id and a file_name.
    """
    images = [
        _image(entry, position) for position, entry in enumerate(read_items(uri, "images.item"))
    ]
    if not images:
        raise CannotRunError(f"{uri} has no list `images`: it is not a COCO annotation file")
    if all(image.fault for image in images):
        raise CannotRunError(f"{uri}: {images[0].fault}")
    return images


def _image(entry: Any, position: int) -> CocoImage:
    try:
        height, width = (int(entry.get(side) or 0) for side in ("height", "width"))
        name = entry["file_name"]
        if not isinstance(name, str) or not name.strip():
            raise ValueError(f"file_name {name!r}")
        split = str(entry.get("split") or entry.get("subset") or "")
        return CocoImage(join_key(entry["id"]), name, height, width, split)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        fault = (
            f"entry {position} of `images` needs id, file_name and sizes that are whole numbers: "
            f"{type(error).__name__} {error}"
        )
        return CocoImage("", f"entry-{position}", 0, 0, fault=fault)


def read_categories(uri: str) -> list[Category]:
    """The entries of `categories`. Raises CannotRunError if there are none, or an id twice."""
    found: dict[str, Category] = {}
    for entry in read_items(uri, "categories.item"):
        try:
            key, name = join_key(entry["id"]), normalize_name(str(entry["name"]))
            if entry["name"] is None:
                raise ValueError("no name")
            parent = normalize_name(str(entry.get("supercategory") or ""))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CannotRunError(f"{uri}: an entry of `categories` lacks id or name") from error
        if found.setdefault(key, Category(key, name, parent)).name != name:
            raise CannotRunError(f"{uri}: the category id {key} occurs twice")
    if not found:
        raise CannotRunError(f"{uri} has no list `categories`: it is not a COCO annotation file")
    return list(found.values())


def _used_categories(uri: str) -> set[str]:
    """The keys of the categories that an annotation has."""
    used = set()
    for value in read_items(uri, "annotations.item.category_id"):
        with contextlib.suppress(ValueError):
            used.add(join_key(value))
    return used


def read_annotations(uri: str) -> Iterator[Any]:
    """The entries of `annotations` as they stand, one after another."""
    yield from read_items(uri, "annotations.item")


def misplaced_annotations(uri: str) -> str:
    """Where a file without a list `annotations` has them instead, and what to do; else empty."""
    if any(isinstance(found, dict) for found in read_items(uri, "annotations")):
        return (
            "`annotations` is a dictionary: write its values as a list, each with its image_id and "
            "category_id"
        )
    for entry in read_items(uri, "images.item"):
        if isinstance(entry, dict) and entry.get("annotations"):
            return (
                "the entries of `images` hold the annotations: write them as one list "
                "`annotations` beside `images`, each with its image_id and category_id"
            )
    return ""


@dataclass(frozen=True)
class CocoClasses:
    """The classes of all files, and the contiguous id of each category key (0: no class)."""

    space: LabelSpace
    label_of: dict[str, int]
    background: str
    notes: tuple[str, ...]


def read_classes(uris: Sequence[str]) -> CocoClasses:
    """The classes in the order of the categories' ids.

    Raises:
        CannotRunError: categories that make no label space; the file is named.
    """
    categories: dict[str, Category] = {}
    for uri in uris:
        for found in read_categories(uri):
            known = categories.setdefault(found.key, found)
            if known.name != found.name:
                raise CannotRunError(
                    f"category {found.key} is {known.name!r} in one file and {found.name!r} in "
                    f"{uri}"
                )
    dropped = _unused_roots(categories, uris)
    kept = sorted((c for c in categories.values() if c.key not in dropped), key=_order)
    background = next((c.name for c in kept if is_background(c.name)), "")
    classes = [c for c in kept if not is_background(c.name)]
    names = [c.name for c in classes]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        keys = [c.key for c in classes if c.name == twice[0]]
        raise CannotRunError(
            f"{uris[0]}: the categories {' and '.join(keys)} are all called {twice[0]!r}, and "
            "annotations have them: give each its own name"
        )
    numbers = [c.number for c in classes]
    usable = all(n is not None and 0 < n < IGNORE_16BIT and n != IGNORE_8BIT for n in numbers)
    dataset_ids = [n for n in numbers if n is not None] if usable else range(1, len(names) + 1)
    try:
        space = LabelSpace("coco-style", (BACKGROUND, *names), (0, *dataset_ids))
    except ValueError as error:
        raise CannotRunError(f"{uris[0]}: its categories make no label space: {error}") from error
    label_of = dict.fromkeys(categories, 0) | {c.key: i for i, c in enumerate(classes, 1)}
    notes = [
        f"category {categories[key].name!r} ({key}) is dropped: {why}"
        for key, why in dropped.items()
    ]
    return CocoClasses(space, label_of, background, tuple(notes))


def _order(category: Category) -> tuple[bool, int, str]:
    number = category.number
    return number is None, number or 0, category.key


def _unused_roots(categories: dict[str, Category], uris: Sequence[str]) -> dict[str, str]:
    """Why categories are no classes: roots of others or second ones of a name, never annotated."""
    names = Counter(c.name for c in categories.values())
    parents = {c.parent for c in categories.values() if c.parent != c.name}
    suspects = [c for c in categories.values() if c.name in parents or names[c.name] > 1]
    if not suspects:
        return {}
    used = {key for uri in uris for key in _used_categories(uri)}
    dropped: dict[str, str] = {}
    for category in sorted(suspects, key=_order):
        if category.key in used:
            continue
        if category.name in parents:
            dropped[category.key] = "it is the root of others, and nothing has it"
        elif names[category.name] > 1:
            dropped[category.key] = "another has its name, and nothing has this one"
        names[category.name] -= 1
    return dropped
