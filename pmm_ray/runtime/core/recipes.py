"""Recipes that may be in a bucket; `config` itself knows this machine's files only."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pmm_ray.config import ConfigError, RunConfig, parse_recipe, recipe_bytes
from pmm_ray.runtime.core import storage


def read_recipe(
    recipe: str | Path, settings: Iterable[str] = (), *, without: str = ""
) -> RunConfig:
    """As `load_recipe`, of a path or uri.

    Args:
        without: a section of the recipe that does not count.

    Raises:
        ConfigError: see `load_recipe`.
        MayPassError: its store fails.
    """
    place = str(recipe)
    if not storage.is_remote(place):
        content = recipe_bytes(place.removeprefix("file://"))
    else:
        try:
            content = storage.read_bytes(place)
        except OSError as error:
            raise ConfigError(f"cannot read the recipe {place}: {error}") from error
    return parse_recipe(content, settings, place, without=without)
