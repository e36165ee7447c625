"""Intermediate checkpoints: single files, visible whole or not at all, the last two kept.

With `choose: best` the network with the best score so far is beside them.
"""

from __future__ import annotations

import io
import re
from typing import Any

import torch

from pmm_ray.runtime.core import storage

_KEPT = 2
_NAME = re.compile(r"step-(\d{9})\.pt")


def save_checkpoint(folder: str, step: int, content: dict[str, Any]) -> None:
    """Write the state after `step` steps, then delete all but the last two."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    storage.write_bytes(storage.join(folder, f"step-{step:09d}.pt"), buffer.getvalue())
    for _, uri in checkpoints(folder)[:-_KEPT]:
        storage.delete_file(uri)


def save_best(folder: str, step: int, network: dict[str, torch.Tensor]) -> None:
    """Write the network that scored best after `step` steps, beside those that did before."""
    buffer = io.BytesIO()
    torch.save(network, buffer)
    storage.write_bytes(_best(folder, step), buffer.getvalue())


def load_best(folder: str, step: int) -> dict[str, Any]:
    """The network that `save_best` wrote at a step."""
    return load_checkpoint(_best(folder, step))


def forget_others(folder: str, step: int) -> None:
    """Delete the best networks of other steps, once a checkpoint says which one it is."""
    for uri in storage.list_files(folder, ".pt"):
        if uri.rsplit("/", 1)[-1].startswith("best-") and not uri.endswith(_best("", step)):
            storage.delete_file(uri)


def checkpoints(folder: str) -> list[tuple[int, str]]:
    """(step, uri) of the checkpoints in a folder, the oldest first."""
    found = []
    for uri in storage.list_files(folder, ".pt"):
        match = _NAME.fullmatch(uri.rsplit("/", 1)[-1])
        if match:
            found.append((int(match[1]), uri))
    return sorted(found)


def load_checkpoint(uri: str) -> dict[str, Any]:
    """The content of a checkpoint on the CPU; nothing in it is executed."""
    data = io.BytesIO(storage.read_bytes(uri))
    content: dict[str, Any] = torch.load(data, map_location="cpu", weights_only=True)
    return content


def _best(folder: str, step: int) -> str:
    name = f"best-{step:09d}.pt"
    return storage.join(folder, name) if folder else name
