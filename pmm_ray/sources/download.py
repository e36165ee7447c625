"""`pmm data download`: official archives, resumed, checked, and extracted without trust.

An archive is loaded into `ROOT/archives/NAME.part`. After a broken connection the next attempt goes
on where it ended, with the same server or another: only bytes of the known checksum are renamed and
extracted. What is extracted is noted in `ROOT/archives/NAME.extracted`: the same command again does
only what is missing.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError, MayPassError
from pmm_ray.runtime.core.store_faults import naming_path
from pmm_ray.sources.archives import extract, size_of

ARCHIVES = "archives"
# what a broken connection loses at most of what came
_CHUNK = 1 << 16
_TIMEOUT_SECONDS = 30.0
# attempts in a row that brought no byte; an attempt that brought some starts the count again
_ATTEMPTS = 6
_FIRST_PAUSE_SECONDS = 1.0
_TELL_SECONDS = 10.0


@dataclass(frozen=True)
class Archive:
    """One file to download.

    `size` and `expands_to` (what extraction needs) are in bytes, for the check of the disk; what
    counts is `md5`. `top` is the folder that all in it is below.
    """

    url: str
    size: int
    expands_to: int
    md5: str
    top: str

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
            "VOCdevkit",
        ),
    ),
    "sbd": (
        Archive(
            f"{_SBD}/benchmark.tgz",
            1_419_539_633,
            2_200_000_000,
            "82b4d87ceb2ed10f6038a1cba92111cb",
            "benchmark_RELEASE",
        ),
    ),
    "coco14": (
        Archive(
            f"{_COCO}/zips/train2014.zip",
            13_510_573_713,
            13_600_000_000,
            "0da8c0bd3d6becc4dcb32757491aca88",
            "train2014",
        ),
        Archive(
            f"{_COCO}/zips/val2014.zip",
            6_645_013_297,
            6_700_000_000,
            "a3d79f5ed8d289b7a7554ce06a5782b3",
            "val2014",
        ),
        Archive(
            f"{_COCO}/annotations/annotations_trainval2014.zip",
            252_872_794,
            800_000_000,
            "0a379cfc70b0e71301e0f377548639bd",
            "annotations",
        ),
    ),
}

_A_MIRROR = "--mirror is the url of a folder, such as https://HOST/FOLDER"

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
        CannotRunError: `root` is in a bucket, too little disk, no url, a file that a server has
            not, a wrong checksum, an archive that is damaged or would write outside `root`.
        MayPassError: a server or a network that gives nothing for about a minute.
    """
    if storage.is_remote(str(root)):
        raise CannotRunError(f"{root} is no local folder: choose one, archives are unpacked there")
    root = Path(storage.absolute(str(root)))
    folder = root / ARCHIVES
    storage.make_folder(str(folder))
    wanted = [
        archive
        for archive in DATASETS[dataset]
        if not (_marker(folder, archive).exists() and (root / archive.top).is_dir())
    ]
    _check_disk(root, folder, wanted)
    stop = threading.Event()
    with ThreadPoolExecutor(max(1, parallel)) as pool:
        loads = {
            pool.submit(_load, archive, folder, mirror, say, stop): archive for archive in wanted
        }
        try:
            # in the order in which they end: a file that is not there is told at once
            for load in as_completed(loads):
                load.result()
                archive = loads[load]
                extract(folder / archive.name, root)
                storage.write_bytes(str(_marker(folder, archive)), f"{archive.url}\n".encode())
                say(f"{archive.name}: extracted below {root}")
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    say(f"{dataset}: complete in {root}; {folder} may be deleted except for *.extracted")


def _marker(folder: Path, archive: Archive) -> Path:
    return folder / f"{archive.name}.extracted"


def _part(folder: Path, archive: Archive) -> Path:
    return folder / f"{archive.name}.part"


def _check_disk(root: Path, folder: Path, archives: Sequence[Archive]) -> None:
    """Raises CannotRunError if the rest of the archives and what is in them would not fit."""
    needed = 0
    for archive in archives:
        loaded = size_of(folder / archive.name) + size_of(_part(folder, archive))
        extracted = sum(size_of(path) for path in (root / archive.top).rglob("*"))
        needed += max(0, archive.size - loaded) + max(0, archive.expands_to - extracted)
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
    part = _part(folder, archive)
    url = f"{mirror.rstrip('/')}/{archive.name}" if mirror else archive.url
    _fetch(url, part, say, stop)
    _check_md5(archive, part, url)
    part.replace(target)
    say(f"{archive.name}: {size_of(target) / 1e6:.0f} MB, the MD5 is right")


def _check_md5(archive: Archive, path: Path, source: str) -> None:
    """Raises CannotRunError, and deletes the file, if its checksum is another one."""
    if (found := _md5(path)) == archive.md5:
        return
    path.unlink()
    raise CannotRunError(
        f"{source}: its MD5 is {found}, not {archive.md5}: the file was damaged or replaced, "
        "and has been deleted. Run the command again; if it happens twice, use --mirror"
    )


def _fetch(url: str, part: Path, say: Say, stop: threading.Event) -> None:
    """Load a file into `part`, from where an earlier attempt ended."""
    import requests
    from urllib3.exceptions import HTTPError

    failures = 0
    while True:
        before = size_of(part)
        try:
            return _attempt(url, part, say, stop)
        except requests.HTTPError as error:
            status = error.response.status_code
            if status < 500 and status != 429:
                raise CannotRunError(f"{url}: the server answers {status}") from error
            reason = f"the server answers {status}"
        except _CutShortError as error:
            reason = str(error)
        except (requests.RequestException, HTTPError) as error:
            if isinstance(error, ValueError):  # of the url itself
                raise CannotRunError(f"{url}: {error}: {_A_MIRROR}") from error
            reason = f"{type(error).__name__}: {error}"
        now = size_of(part)
        failures = 0 if now > before else failures + 1
        if failures >= _ATTEMPTS:
            raise MayPassError(
                f"{url}: {reason}. {now / 1e6:.0f} MB are kept: run the command again to go on"
            )
        say(f"{url}: {reason}; going on at {now / 1e6:.1f} MB")
        if stop.wait(_FIRST_PAUSE_SECONDS * 2**failures):
            raise CannotRunError("stopped")


class _CutShortError(Exception):
    """The connection brought less than the file."""


def _attempt(url: str, part: Path, say: Say, stop: threading.Event) -> None:
    """One request; what it brings is added to `part`, which never loses a byte.

    A server without ranges begins anew: its bytes go over the same ones. Whether they were the same
    is for the checksum to say; a tag of the server would not tell of a mirror.
    """
    import requests

    start = size_of(part)
    headers = {"Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT_SECONDS) as response:
        if response.status_code == 416:
            return  # nothing is left of the range
        response.raise_for_status()
        at, size = 0, response.raw.length_remaining
        if response.status_code == 206:
            if not _begins_at(response.headers.get("Content-Range"), start):
                raise _CutShortError("the server resumed at another place")
            at, size = start, None if size is None else start + size
        elif start and size == start:
            return
        elif start and (size is None or size < start):
            # a page to log in, or to say that there is nothing
            raise _CutShortError(
                f"the server sends {size or 'an unknown number of'} bytes where {start} are known; "
                f"if it goes on, delete {part}"
            )
        with naming_path(str(part)), open(part, "r+b" if start else "wb") as file:
            file.seek(at)
            told = time.monotonic()
            # as it is: some servers say of a .tgz that gzip is its encoding
            for chunk in response.raw.stream(_CHUNK, decode_content=False):
                file.write(chunk)
                if stop.is_set():
                    raise CannotRunError("stopped")
                if time.monotonic() - told > _TELL_SECONDS:
                    told = time.monotonic()
                    of = "" if size is None else f" of {size / 1e6:.0f}"
                    say(f"{part.stem}: {file.tell() / 1e6:.0f}{of} MB")
            got = file.tell()
    if size is not None and got < size:
        raise _CutShortError(f"the connection ended after {got} of {size} bytes")


def _begins_at(content_range: str | None, start: int) -> bool:
    return (content_range or "").removeprefix("bytes ").startswith(f"{start}-")


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, partial(hashlib.md5, usedforsecurity=False)).hexdigest()
