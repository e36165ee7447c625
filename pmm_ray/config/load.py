"""Recipes: YAML plus `--set section.key=value`, with errors that name the key and the fix."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pmm_ray.config.base import ConfigError, Section
from pmm_ray.config.keys import hint, is_section, is_text, known_keys, nested
from pmm_ray.config.plain_yaml import read_yaml
from pmm_ray.config.sections import RunConfig


def load_recipe(path: str | Path | None, settings: Iterable[str] = ()) -> RunConfig:
    """Read a local recipe, apply `--set` values and validate; of a uri see `read_recipe`.

    Args:
        path: a YAML file; its keys are those of `RunConfig`. None: all defaults.
        settings: `section.key=value`, the value in YAML (`3`, `true`, `[1, 2]`, `null`); where the
            key takes text, as it stands. A section, `masks={alpha: 3}`, keeps its other keys.

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown (the nearest known key is
            named) or written twice, or a value does not fit.
    """
    if path is None:
        return parse_recipe(b"", settings, "the configuration")
    return parse_recipe(recipe_bytes(path), settings, path)


def refuse_unread(settings: Iterable[str], command: str, reads: Collection[str]) -> None:
    """Refuse a `--set` that a command would pass over.

    Args:
        settings: as of `load_recipe`, and known by it.
        command: `pmm masks`, for the message.
        reads: the sections and keys that it reads.

    Raises:
        ConfigError: a key is none of them.
    """
    for setting in settings:
        key = _plain(setting.partition("=")[0])
        if not any(_within(key, one) or _within(one, key) for one in reads):
            raise ConfigError(f"--set {setting}: {command} reads {', '.join(reads)}, not this")


def _within(key: str, section: str) -> bool:
    return f"{key}.".startswith(f"{section}.")


def recipe_bytes(path: str | Path) -> bytes:
    """A local recipe as it stands. Raises ConfigError where it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from error


def parse_recipe(
    content: bytes, settings: Iterable[str], path: str | Path, *, without: str = ""
) -> RunConfig:
    """As `load_recipe`, of a recipe that is read already.

    Args:
        content: YAML, UTF-8.
        path: of the recipe, for messages.
        without: a section that does not count.
    """
    tree = _parse(content, path)
    tree.pop(without, None)
    settings = list(settings)
    for setting in settings:
        _apply(tree, setting)
    try:
        return RunConfig.model_validate(_without_empty(tree, RunConfig))
    except ValidationError as error:
        written = {setting.partition("=")[0] for setting in settings}
        raise ConfigError(_explain(error, path, {_plain(key) for key in written})) from error


def _parse(content: bytes, path: str | Path) -> dict[str, Any]:
    try:
        tree = read_yaml(content.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error}: save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as `masks:`, got {type(tree).__name__}")
    return tree


def _plain(key: str) -> str:
    return ".".join(part.strip() for part in key.split("."))


def _apply(tree: dict[str, Any], setting: str) -> None:
    key, separator, text = setting.partition("=")
    key = _plain(key)
    if not separator or not key:
        raise ConfigError(f"--set {setting}: write it as section.key=value")
    node = tree
    *parents, last = key.split(".")
    for name in parents:
        child = node.get(name)
        if child is None:  # of a section whose keys are all commented out, too
            child = node[name] = {}
        if not isinstance(child, dict):
            raise ConfigError(f"--set {setting}: {name} is a value, not a section")
        node = child
    kind = known_keys().get(key)
    try:
        value = _value(text, kind)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {setting}: the value is not valid YAML: {error}") from error
    _merge(node, last, value, kind)


def _merge(node: dict[str, Any], name: str, value: Any, kind: Any) -> None:
    """Keys that a section has already stay, where the value does not name them."""
    old = node.get(name)
    if not (is_section(kind) and isinstance(old, dict) and isinstance(value, dict)):
        node[name] = value
        return
    for inner, its in value.items():
        field = kind.model_fields.get(inner)
        _merge(old, inner, its, None if field is None else field.annotation)


def _value(text: str, kind: Any) -> Any:
    """Text stays as it is where the key takes text: `data.root=/data/x #1` has no comment."""
    plain = text.strip()
    quoted = plain[:1] in ("'", '"') and plain[-1:] == plain[:1] and len(plain) > 1
    if not is_text(kind) or quoted or (kind is not str and plain in ("", "~", "null")):
        return read_yaml(text)
    return plain


def _without_empty(tree: dict[str, Any], model: type[Section]) -> dict[str, Any]:
    """Without the sections whose keys are all commented out: they have their defaults."""
    out = {}
    for name, value in tree.items():
        field = model.model_fields.get(name)
        kind: Any = None if field is None else field.annotation
        if is_section(kind) and isinstance(value, dict):
            out[name] = _without_empty(value, kind)
        elif not is_section(kind) or value is not None:
            out[name] = value
    return out


def _explain(error: ValidationError, path: str | Path, written: Collection[str]) -> str:
    """What is wrong in the file, and what is wrong in the keys that `--set` wrote."""
    lines: list[tuple[str, str]] = []  # key, text
    known = known_keys()
    unions: dict[str, int] = {}  # key of a value that may be of several kinds -> its line
    for item in error.errors():
        parts = [str(part) for part in item["loc"] if not isinstance(part, int)]
        key, outer = ".".join(parts), ".".join(parts[:-1])
        if item["type"] == "extra_forbidden":
            lines.append((key, f"unknown key {key}{hint(key)}"))
        elif key in known or outer not in known:
            lines.append((key, f"{key or 'recipe'} = {item.get('input')!r}: {_message(item, key)}"))
        # pydantic tries each kind of such a value, and names it after the key
        elif outer in unions:
            text = lines[unions[outer]][1]
            lines[unions[outer]] = (outer, f"{text}; or: {item['msg']}")
        else:
            unions[outer] = len(lines)
            lines.append((outer, f"{outer} = {item.get('input')!r}: {item['msg']}"))
    by_set = [
        # of `maskss.alpha` the unknown key is `maskss`
        any(_within(key, one) or _within(one, key) for one in written)
        for key, _ in lines
    ]
    texts = {
        source: "; ".join(text for (_, text), of in zip(lines, by_set, strict=True) if of is which)
        for source, which in ((str(path), False), ("--set", True))
    }
    return "; ".join(f"{source}: {text}" for source, text in texts.items() if text)


def _message(item: Any, key: str) -> str:
    if item["type"] == "model_type":
        first = next(iter(known_keys()[key].model_fields))
        return f"{key} is a section: write `{nested(f'{key}.{first}')}`"
    if item["type"] == "string_type":
        return f"{item['msg']}: put it in quotes"
    return str(item["msg"]).removeprefix("Value error, ")


def to_yaml(config: RunConfig) -> str:
    """The whole resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
