"""The folder that an export writes: what is in it of an earlier one and not of this one is deleted.

Programs take whole folders. A photograph that was withdrawn, or is now in another split, or a file
with the class numbers of another list would still be trained on. But a photograph that cannot be
read today (a mount that is away) may be there tomorrow: what an earlier export wrote of it stays.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from pmm_ray.commands.export.source import Written, in_threads
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.marker import read_marker
from pmm_ray.runtime.core.progress import Progress

# says that what is beside it was exported: a line for us, and the names of the files
_MARKER = ".pmm-export"
_TITLE = "Made by pmm export, which may overwrite and delete these files:\n"


class Out:
    """Names, relative to a folder, of the files that exports wrote there.

    A file that is not among them is never deleted. One that a killed export wrote is not, if the
    process had no time to say so: `close` names what is left.
    """

    def __init__(self, uri: str) -> None:
        """Raises CannotRunError: the folder holds what no export wrote."""
        self.uri = uri
        marked = read_marker(uri, _MARKER)
        self._earlier = set((marked or b"").decode().splitlines()[1:])
        self._written: set[str] = set()
        self._failed: set[tuple[str, str]] = set()
        if marked is None:
            self._mark()

    def place(self, *parts: str) -> str:
        """The uri of a file that is written next, below the folder."""
        name = "/".join(parts)
        self._written.add(name)
        return storage.join(self.uri, name)

    def keep(self, split: str, image_id: str) -> None:
        """Leave the files `.../SPLIT/ID.*` of an image that cannot be written this time."""
        self._failed.add((split, image_id))

    def keep_names(self) -> None:
        """Note what was written so far, beside what was there: the export has not ended well."""
        self._earlier |= self._written
        self._mark()

    def close(self, written: Written, progress: Progress) -> None:
        """Delete what only earlier exports wrote, and say what no export is known to have.

        Where no image could be written, all stays as it is.
        """
        if not written.image_ids:
            self.keep_names()
            return
        earlier = self._earlier - self._written
        kept = {name for name in earlier if self._is_kept(name)}
        stale = [storage.join(self.uri, name) for name in sorted(earlier - kept)]
        for _ in in_threads(storage.delete_file, stale):
            pass
        self._earlier = self._written | kept
        self._mark()
        if stale:
            progress.message(f"{self.uri}: deleted {len(stale)} files of an earlier export")
        if kept:
            progress.message(
                f"{self.uri}: kept {len(kept)} files of an earlier export, of images that failed in"
                f" this one, such as {min(kept)}"
            )
        tops = sorted({name.split("/")[0] for name in self._written if "/" in name})
        held = [u for top in tops for u in storage.list_files(f"{self.uri}/{top}", recursive=True)]
        known = {storage.join(self.uri, name) for name in self._earlier}
        if foreign := [uri for uri in held if uri not in known]:
            progress.message(
                f"{len(foreign)} files are in its folders that this export did not write, such as "
                f"{storage.printable(foreign[0])}: programs may read them, too"
            )

    def _is_kept(self, name: str) -> bool:
        path = PurePosixPath(name)
        # mmsegmentation's masks of several kinds of photographs have two endings
        return any(
            (path.parent.name, p) in self._failed for p in (path.stem, path.with_suffix("").stem)
        )

    def _mark(self) -> None:
        text = _TITLE + "".join(f"{name}\n" for name in sorted(self._earlier))
        storage.write_bytes(storage.join(self.uri, _MARKER), text.encode())
