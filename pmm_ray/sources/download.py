"""`pmm data download`: official archives, resumed, checked, and extracted without trust.

An archive is loaded into `ROOT/archives/NAME.part`. After a broken connection the next attempt goes
on where it ended. The file is renamed once its size and checksum are right. What is extracted is
noted in `ROOT/archives/NAME.extracted`: the same command again does only what is missing.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.archives import extract

ARCHIVES = "archives"
_CHUNK = 1 << 20
_TIMEOUT_SECONDS = 30.0
# attempts in a row that brought no byte; an attempt that brought some starts the count again
_ATTEMPTS = 6
_FIRST_PAUSE_SECONDS = 1.0
_TELL_SECONDS = 10.0


@dataclass(frozen=True)
class Archive:
    """One file to download.

    `size` is in bytes, for the check of the disk; what counts is the size that the server states.
    `expands_to` is what extraction needs, bytes. Without `md5` only the size is checked.
    """

    url: str
    size: int
    expands_to: int
    md5: str | None = None

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]


_VOC = "http://host.robots.ox.ac.uk/pascal/VOC/voc2012"
_SBD = "https://www2.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours"
_COCO = "http://images.cocodataset.org"

# None of the publishers states a checksum. These MD5s are those that public loaders have checked
# their downloads against for years: torchvision (VOC, SBD), LAVIS and others (COCO).
DATASETS: dict[str, tuple[Archive, ...]] = {
    "voc12": (
        Archive(
            f"{_VOC}/VOCtrainval_11-May-2012.tar",
            1_999_639_040,
            2_100_000_000,
            "6cd6e144f989b92b3379bac3b3de84fd",
        ),
    ),
    "sbd": (
        Archive(
            f"{_SBD}/benchmark.tgz",
            1_419_539_633,
            2_200_000_000,
            "82b4d87ceb2ed10f6038a1cba92111cb",
        ),
    ),
    "coco14": (
        Archive(
            f"{_COCO}/zips/train2014.zip",
            13_510_573_713,
            13_600_000_000,
            "0da8c0bd3d6becc4dcb32757491aca88",
        ),
        Archive(
            f"{_COCO}/zips/val2014.zip",
            6_645_013_297,
            6_700_000_000,
            "a3d79f5ed8d289b7a7554ce06a5782b3",
        ),
        Archive(
            f"{_COCO}/annotations/annotations_trainval2014.zip",
            252_872_794,
            800_000_000,
            "0a379cfc70b0e71301e0f377548639bd",
        ),
    ),
}

Say = Callable[[str], None]


def download(
    dataset: str,
    root: str | Path,
    *,
    mirror: str | None = None,
    parallel: int = 3,
    say: Say = print,
) -> None:
    """Download and extract a data set below `root`; goes on where it was interrupted.

    Args:
        dataset: a key of `DATASETS`.
        root: local folder.
        mirror: url of a folder that holds the archives under their own names.
        parallel: archives loaded at once.
        say: gets one line for each thing done.

    Raises:
        CannotRunError: `root` is in a bucket, too little disk, a server that gives up, a wrong
            size or checksum, an archive that is damaged or would write outside `root`.
    """
    if storage.is_remote(str(root)):
        raise CannotRunError(f"{root} is no local folder: choose one, archives are unpacked there")
    root = Path(storage.absolute(str(root)))
    folder = root / ARCHIVES
    storage.make_folder(str(folder))
    wanted = [a for a in DATASETS[dataset] if not _marker(folder, a).exists()]
    _check_disk(root, folder, wanted)
    stop = threading.Event()
    with ThreadPoolExecutor(max(1, parallel)) as pool:
        futures = [pool.submit(_load, archive, folder, mirror, say, stop) for archive in wanted]
        try:
            for archive, future in zip(wanted, futures, strict=True):
                future.result()
                extract(folder / archive.name, root)
                _marker(folder, archive).write_text(archive.url + "\n")
                say(f"{archive.name}: extracted below {root}")
        except BaseException:
            stop.set()
            raise
    say(f"{dataset}: complete in {root}; {folder} may be deleted except for *.extracted")


def _marker(folder: Path, archive: Archive) -> Path:
    return folder / f"{archive.name}.extracted"


def _check_disk(root: Path, folder: Path, archives: Sequence[Archive]) -> None:
    """Raises CannotRunError if the rest of the archives and what is in them would not fit."""
    needed = 0
    for archive in archives:
        there = sum(
            path.stat().st_size
            for path in (folder / archive.name, folder / f"{archive.name}.part")
            if path.exists()
        )
        needed += max(0, archive.size - there) + archive.expands_to
    free = shutil.disk_usage(root).free
    if needed > free:
        raise CannotRunError(
            f"{needed / 1e9:.1f} GB are needed in {root} (archives and what is in them), "
            f"{free / 1e9:.1f} GB are free"
        )


def _load(
    archive: Archive, folder: Path, mirror: str | None, say: Say, stop: threading.Event
) -> None:
    """Bring one archive, whole and checked, into the folder."""
    target = folder / archive.name
    if target.exists():
        # perhaps put there by hand
        _check_md5(archive, target, str(target))
        say(f"{archive.name}: already there")
        return
    part = target.with_name(f"{target.name}.part")
    url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
    size = _fetch(url, part, say, stop)
    if size is not None and part.stat().st_size != size:
        part.unlink()
        raise CannotRunError(f"{url}: more bytes came than the {size} stated; run it again")
    _check_md5(archive, part, url)
    part.replace(target)
    checked = "size and MD5 are right" if archive.md5 else "the size is right"
    say(f"{archive.name}: {target.stat().st_size / 1e6:.0f} MB, {checked}")


def _check_md5(archive: Archive, path: Path, source: str) -> None:
    """Raises CannotRunError, and deletes the file, if its checksum is another one."""
    if archive.md5 is None or (found := _md5(path)) == archive.md5:
        return
    path.unlink()
    raise CannotRunError(
        f"{source}: its MD5 is {found}, not {archive.md5}: the file was damaged or replaced, "
        "and has been deleted. Run the command again; if it happens twice, use --mirror"
    )


def _fetch(url: str, part: Path, say: Say, stop: threading.Event) -> int | None:
    """Load a file into `part`, from where an earlier attempt ended; the size that is stated."""
    import requests

    failures = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        try:
            return _attempt(url, part, say, stop)
        except requests.HTTPError as error:
            status = error.response.status_code
            if status < 500 and status != 429:
                raise CannotRunError(f"{url}: the server answers {status}") from error
            reason = f"the server answers {status}"
        except (requests.RequestException, _CutShortError) as error:
            reason = f"{type(error).__name__}: {error}"
        now = part.stat().st_size if part.exists() else 0
        failures = 0 if now > before else failures + 1
        if failures >= _ATTEMPTS:
            raise CannotRunError(
                f"{url}: {reason}. {now / 1e6:.0f} MB are kept: run the command again to go on"
            )
        say(f"{url}: {reason}; going on at {now / 1e6:.1f} MB")
        if stop.wait(_FIRST_PAUSE_SECONDS * 2**failures):
            raise CannotRunError("stopped")


class _CutShortError(Exception):
    """The connection ended before the stated size."""


def _attempt(url: str, part: Path, say: Say, stop: threading.Event) -> int | None:
    """One request, appended to `part`; returns the whole size if the server states it."""
    import requests

    tag = part.with_name(f"{part.name}.etag")
    start = part.stat().st_size if part.exists() else 0
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if tag.exists():
            # another version of the file on the server: from the beginning, not mixed
            headers["If-Range"] = tag.read_text()
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as response:
        if response.status_code == 416:
            # nothing is left of the range: it is whole, or longer than it should be
            return _total(response.headers.get("Content-Range"))
        response.raise_for_status()
        resumed = response.status_code == 206
        if resumed and not _begins_at(response.headers.get("Content-Range"), start):
            part.unlink()
            raise _CutShortError("the server resumed at another place")
        length = response.headers.get("Content-Length")
        etag = response.headers.get("ETag", "")
        if etag and not etag.startswith("W/"):
            tag.write_text(etag)
        else:
            tag.unlink(missing_ok=True)
        size = None if length is None else int(length) + (start if resumed else 0)
        with open(part, "ab" if resumed else "wb") as file:
            told = time.monotonic()
            for chunk in response.iter_content(_CHUNK):
                file.write(chunk)
                if stop.is_set():
                    raise CannotRunError("stopped")
                if time.monotonic() - told > _TELL_SECONDS:
                    told = time.monotonic()
                    of = "" if size is None else f" of {size / 1e6:.0f}"
                    say(f"{part.stem}: {file.tell() / 1e6:.0f}{of} MB")
    got = part.stat().st_size
    if size is not None and got < size:
        raise _CutShortError(f"the connection ended after {got} of {size} bytes")
    tag.unlink(missing_ok=True)
    return size


def _begins_at(content_range: str | None, start: int) -> bool:
    return (content_range or "").removeprefix("bytes ").startswith(f"{start}-")


def _total(content_range: str | None) -> int | None:
    """`bytes */1234` -> 1234."""
    total = (content_range or "").rpartition("/")[2]
    return int(total) if total.isdigit() else None


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
