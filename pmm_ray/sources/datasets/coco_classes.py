"""The classes of COCO-style files: categories, less the background and roots that nothing uses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pmm_ray.labels import BACKGROUND, IGNORE_8BIT, IGNORE_16BIT, LabelSpace, is_background
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.datasets.coco_json import Category, read_categories, used_categories


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
    usable = all(n is not None and 0 < n < IGNORE_16BIT for n in numbers)
    usable = usable and not {IGNORE_8BIT, IGNORE_16BIT} & set(numbers)
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
    used = {key for uri in uris for key in used_categories(uri)}
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
