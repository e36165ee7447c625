"""`renewed.json`: what an attempt with `--fresh` or `--retry-errors` has begun anew.

The same command goes on with it where the attempt was interrupted. Else each attempt of a job that
a cluster starts again would begin with the first stage.
"""

from __future__ import annotations

import json

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.selection import Selection
from pmm_ray.runtime.core.stage import StageFolder


class Renewals:
    """The stages that attempts with the same selection have begun anew, until one of them ends.

    Args:
        selection: of this attempt.
    """

    def __init__(self, run_dir: str, selection: Selection) -> None:
        self._uri = storage.join(run_dir, "renewed.json")
        self._renews = selection.fresh or selection.retry_errors
        chosen = ("first", "last", "only", "fresh", "retry_errors")
        self._selection = [*selection.plan, *(str(getattr(selection, name)) for name in chosen)]
        self._names: list[str] = []

    def load(self) -> bool:
        """Read what an interrupted attempt left; returns whether this one goes on with it."""
        if self._renews:
            try:
                kept = json.loads(storage.read_bytes(self._uri))
            except (FileNotFoundError, ValueError):
                return False  # or damaged: all is begun anew
            if kept["selection"] == self._selection:
                self._names = kept["stages"]
        return bool(self._names)

    def __contains__(self, folder: StageFolder) -> bool:
        return _name(folder) in self._names

    def add(self, folder: StageFolder) -> None:
        """A stage was begun anew."""
        if folder not in self:
            self._names.append(_name(folder))
            content = {"selection": self._selection, "stages": self._names}
            storage.write_bytes(self._uri, json.dumps(content, indent=1).encode())

    def end(self) -> None:
        """The attempt has come to its end: the next one begins anew."""
        storage.delete_file(self._uri)


def _name(folder: StageFolder) -> str:
    return f"{folder.stage}-{folder.hash}"
