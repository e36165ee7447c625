"""Extracting archives that nobody vouches for: nothing leaves the folder, no link is made."""

from __future__ import annotations

import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import IO

from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.store_faults import naming_path

# files of photographs do not shrink much; an archive that claims more is a bomb
_MOST_EXPANSION = 200


def extract(archive: Path, folder: Path) -> None:
    """Extract a tar (plain, gzip) or zip archive; every name is checked before a byte is written.

    Args:
        folder: where to; files in it of the same name are replaced.

    Raises:
        CannotRunError: damaged, not an archive, a name that leaves the folder, a link, a device,
            more than the disk holds.
    """
    try:
        if zipfile.is_zipfile(archive):
            _extract_zip(archive, folder)
        else:
            _extract_tar(archive, folder)
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise CannotRunError(
            f"{archive} is damaged or no archive ({error}): delete it and run the command again"
        ) from error


def _extract_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        members = file.infolist()
        for member in members:
            _check_name(archive, member.filename)
            mode = member.external_attr >> 16
            if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise CannotRunError(f"{archive} holds a link or device: {member.filename!r}")
        sizes = [(member.filename, member.file_size) for member in members]
        _check_size(archive, folder, sizes)
        for member in members:
            if member.is_dir():
                continue
            with file.open(member) as source:
                _write(folder, member.filename, source)


def _extract_tar(archive: Path, folder: Path) -> None:
    # two passes: nothing is written of an archive with one bad name
    with tarfile.open(archive) as file:
        sizes = []
        for member in file:
            _check_name(archive, member.name)
            if not (member.isfile() or member.isdir()):
                raise CannotRunError(f"{archive} holds a link or device: {member.name!r}")
            sizes.append((member.name, member.size))
    _check_size(archive, folder, sizes)
    with tarfile.open(archive) as file:
        for member in file:
            if member.isfile():
                source = file.extractfile(member)
                assert source is not None
                with source:
                    _write(folder, member.name, source)


def size_of(path: Path) -> int:
    """Of a file, bytes; 0 where there is none."""
    return path.stat().st_size if path.is_file() else 0


def _check_name(archive: Path, name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise CannotRunError(f"{archive} would write outside its folder: {name!r}")


def _check_size(archive: Path, folder: Path, sizes: Sequence[tuple[str, int]]) -> None:
    """Refuse a bomb, and members (name, bytes) for which, with what is extracted, is no room."""
    total = sum(size for _, size in sizes)
    if total > _MOST_EXPANSION * max(archive.stat().st_size, 1 << 20):
        raise CannotRunError(f"{archive} claims {total / 1e9:.1f} GB of content: not extracted")
    needed = sum(max(0, size - size_of(folder / name)) for name, size in sizes)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise CannotRunError(
            f"{archive} needs {needed / 1e9:.1f} GB in {folder}, {free / 1e9:.1f} GB are free"
        )


def _write(folder: Path, name: str, source: IO[bytes]) -> None:
    """One file, through a temporary name: what has its name is whole."""
    target = folder / PurePosixPath(name)
    # a link that someone put into the folder must not lead out of it
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.parent.resolve().is_relative_to(folder.resolve()):
        raise CannotRunError(f"{target.parent} leads out of {folder} through a link")
    temporary = target.with_name(f".{target.name}.tmp")
    with naming_path(str(temporary)), open(temporary, "wb") as file:
        shutil.copyfileobj(source, file, 1 << 20)
    temporary.replace(target)
