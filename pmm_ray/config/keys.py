"""Every key of a recipe, and what to write in place of one that there is not."""

from __future__ import annotations

import difflib
from types import NoneType
from typing import Any, TypeGuard, get_args

from pmm_ray.config.base import Section
from pmm_ray.config.sections import RunConfig


def known_keys(model: type[Section] = RunConfig, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of the configuration and its type, sections included."""
    keys: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        keys[prefix + name] = field.annotation
        # `tuple[NodeType, ...]` has the keys of a node
        for kind in (field.annotation, *get_args(field.annotation)):
            if is_section(kind):
                keys |= known_keys(kind, f"{prefix}{name}.")
    return keys


def is_section(kind: Any) -> TypeGuard[type[Section]]:
    """Whether the type of a key is a `Section`."""
    return isinstance(kind, type) and issubclass(kind, Section)


def is_text(kind: Any) -> bool:
    """Whether the type of a key is text, or text or nothing."""
    return kind is str or set(get_args(kind)) == {str, NoneType}


def nested(key: str) -> str:
    """A dotted key as a recipe has it: `masks: {alpha: ...}`."""
    *sections, last = key.split(".")
    text = f"{last}: ..."
    for name in reversed(sections):
        text = f"{name}: {{{text}}}"
    return text


def hint(key: str) -> str:
    """What to write in place of an unknown key: begins with `; `, empty where nothing is near."""
    keys = known_keys()
    if key in keys:  # of a recipe: dots within one name
        return f"; write it as `{nested(key)}`: keys with dots are for --set"
    section, _, name = key.rpartition(".")
    inside = [known for known in keys if not section or known.startswith(f"{section}.")]
    same = [known for known in inside if known.endswith(f".{name}")]
    if same:
        return f"; did you mean {' or '.join(same)}?"
    own = {known.removeprefix(f"{section}."): known for known in inside}
    close = difflib.get_close_matches(name, own, n=1, cutoff=0.65)
    if section in keys and not close:
        return f"; {section} has {', '.join(name for name in own if '.' not in name)}"
    if not close:
        own = {known.rpartition(".")[2]: known for known in inside}
        close = difflib.get_close_matches(name, own, n=1, cutoff=0.65)
    if close:
        return f"; did you mean {own[close[0]]}?"
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.65)
    return f"; did you mean {close[0]}?" if close else ""
