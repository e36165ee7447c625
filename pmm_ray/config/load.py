"""Recipes: YAML plus `--set section.key=value`, with errors that name the key and the fix."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from pmm_ray.config.base import ConfigError, Section
from pmm_ray.config.plain_yaml import read_yaml
from pmm_ray.config.sections import RunConfig


def known_keys(model: type[Section] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the configuration, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, Section):
            yield from known_keys(annotation, f"{prefix}{name}.")


def nearest_key(key: str) -> str | None:
    """The known key that looks most like a mistyped one."""
    keys = list(known_keys())
    close = difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    if close:
        return close[0]
    tail = key.rsplit(".", 1)[-1]
    by_tail = {k.rsplit(".", 1)[-1]: k for k in keys}
    close = difflib.get_close_matches(tail, list(by_tail), n=1, cutoff=0.6)
    return by_tail[close[0]] if close else None


def load_recipe(path: str | Path | None, settings: Iterable[str] = ()) -> RunConfig:
    """Read a local recipe, apply `--set` values and validate; of a uri see `read_recipe`.

    Args:
        path: a YAML file; its keys are those of `RunConfig`. None: all defaults.
        settings: `section.key=value`, the value in YAML (`3`, `true`, `[1, 2]`, `null`).

    Raises:
        ConfigError: the file is missing or not YAML, a key is unknown (the nearest known key is
            named) or written twice, or a value does not fit.
    """
    if path is None:
        return parse_recipe(b"", settings, "the configuration")
    return parse_recipe(recipe_bytes(path), settings, path)


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
    for setting in settings:
        _apply(tree, setting)
    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(error, path)) from error


def _parse(content: bytes, path: str | Path) -> dict[str, Any]:
    try:
        tree = read_yaml(content.decode()) or {}
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no text in UTF-8: {error}: save it as UTF-8") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected sections such as `masks:`, got {type(tree).__name__}")
    return tree


def _apply(tree: dict[str, Any], setting: str) -> None:
    key, separator, value = setting.partition("=")
    key = key.strip()
    if not separator or not key:
        raise ConfigError(f"--set {setting}: write it as section.key=value")
    node = tree
    *parents, last = key.split(".")
    for name in parents:
        child = node.setdefault(name, {})
        if not isinstance(child, dict):
            raise ConfigError(f"--set {setting}: {name} is a value, not a section")
        node = child
    try:
        node[last] = read_yaml(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {setting}: the value is not valid YAML: {error}") from error


def _explain(error: ValidationError, path: str | Path) -> str:
    lines: list[str] = []
    known = set(known_keys())
    unions: dict[str, int] = {}  # key of a value that may be of several kinds -> its line
    for item in error.errors():
        parts = [str(part) for part in item["loc"] if not isinstance(part, int)]
        key, outer = ".".join(parts), ".".join(parts[:-1])
        if item["type"] == "extra_forbidden":
            nearest = nearest_key(key)
            hint = f"; did you mean {nearest}?" if nearest else ""
            lines.append(f"unknown key {key}{hint}")
        elif key in known or outer not in known:
            lines.append(f"{key or 'recipe'} = {item.get('input')!r}: {item['msg']}")
        # pydantic tries each kind of such a value, and names it after the key
        elif outer in unions:
            lines[unions[outer]] += f"; or: {item['msg']}"
        else:
            unions[outer] = len(lines)
            lines.append(f"{outer} = {item.get('input')!r}: {item['msg']}")
    return f"{path}: " + "; ".join(lines)


def to_yaml(config: RunConfig) -> str:
    """The whole resolved configuration as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
