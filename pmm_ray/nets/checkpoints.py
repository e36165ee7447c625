"""Trained networks as files: a plain state dict and a small description, no code."""

from __future__ import annotations

import io
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from pmm_ray.nets.weights import load_torch
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError

FORMAT_VERSION = 1

_Section = TypeVar("_Section", bound=BaseModel)


def save_model(uri: str, kind: str, module: nn.Module, meta: dict[str, Any]) -> None:
    """Write a network so that its file appears whole or not at all.

    Args:
        uri: the file, local or in a bucket.
        kind: what it is, `classifier` or `segmenter`.
        module: its state dict is stored, on the CPU.
        meta: what is needed to build it again; plain values, lists and dicts.
    """
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    buffer = io.BytesIO()
    content = {"kind": kind, "version": FORMAT_VERSION, "meta": meta, "state_dict": state}
    torch.save(content, buffer)
    storage.write_bytes(uri, buffer.getvalue())


def load_model(uri: str, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """(state dict, meta) of a file that `save_model` wrote.

    Raises:
        CannotRunError: unreadable, of another kind or version.
    """
    content = load_torch(uri)
    wanted = {"kind", "version", "meta", "state_dict"}
    if not isinstance(content, dict) or not wanted <= content.keys():
        raise CannotRunError(f"{uri} is not a trained {kind} of this project")
    if content["kind"] != kind or content["version"] != FORMAT_VERSION:
        raise CannotRunError(
            f"{uri} holds a {content['kind']}, version {content['version']}: "
            f"a {kind}, version {FORMAT_VERSION}, is needed"
        )
    return content["state_dict"], content["meta"]


def stored_section(section: type[_Section], meta: dict[str, Any], uri: str) -> _Section:
    """The configuration a network was trained with, its weights no longer asked for.

    Raises:
        CannotRunError: this version of the project does not know such a configuration.
    """
    try:
        return section.model_validate({**meta["config"], "weights": "none"})
    except (KeyError, TypeError, ValidationError) as error:
        raise CannotRunError(
            f"{uri} was trained with a configuration that this version does not know: {error}"
        ) from error
