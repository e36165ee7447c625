"""Archives that nobody vouches for: what they would write elsewhere, or cannot."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources.archives import extract

from .packed import CONTENT, tgz, zipped


def test_an_extraction_needs_room_for_what_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, data = tmp_path / "a", bytes(range(250)) * 16
    for content in (zipped(a=data, b=data), tgz(data, data)):
        folder = tmp_path / content[:2].hex()
        folder.mkdir()
        path.write_bytes(content)
        usage = shutil.disk_usage(tmp_path)
        (folder / "a").write_bytes(data)
        for free in (len(data) - 1, len(data)):
            small = usage._replace(free=free)
            with monkeypatch.context() as patch:
                patch.setattr(shutil, "disk_usage", lambda path, small=small: small)
                if free < len(data):
                    with pytest.raises(CannotRunError, match="are free"):
                        extract(path, folder)
                else:
                    extract(path, folder)
        assert (folder / "b").read_bytes() == data


class Member(NamedTuple):
    name: str
    kind: bytes = tarfile.REGTYPE
    link: str = ""


@pytest.mark.parametrize(
    "bad",
    [
        Member("../outside"),
        Member("/etc/outside"),
        Member("a/../../outside"),
        Member("link", tarfile.SYMTYPE, "/etc"),
        Member("link", tarfile.SYMTYPE, "good"),
        Member("link", tarfile.LNKTYPE, "../../outside"),
        Member("pipe", tarfile.FIFOTYPE),
        Member("device", tarfile.CHRTYPE),
    ],
)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_tar_archives_that_reach_out(tmp_path: Path, bad: Member, mode: Any) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, mode) as archive:
        for member in (Member("good"), bad):
            info = tarfile.TarInfo(member.name)
            info.type, info.linkname = member.kind, member.link
            archive.addfile(info, io.BytesIO(b""))
    folder = tmp_path / "in"
    folder.mkdir()
    with pytest.raises(CannotRunError, match=r"outside|link or device"):
        extract(path, folder)
    assert not list(folder.iterdir())  # not even the good one


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../b", "..\\outside"])
def test_zip_archives_that_reach_out(tmp_path: Path, name: str) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(zipped(good=b"", **{name: b"x"}))
    with pytest.raises(CannotRunError, match="outside"):
        extract(path, tmp_path / "in")


def test_a_link_in_a_zip_and_one_in_the_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc")
    with pytest.raises(CannotRunError, match="link"):
        extract(path, tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "outside").mkdir()
    (tmp_path / "in/train2014").symlink_to(tmp_path / "outside")
    path.write_bytes(CONTENT)
    with pytest.raises(CannotRunError, match="leads out"):
        extract(path, tmp_path / "in")
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 99])
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_damaged_archives(tmp_path: Path, damage: Callable[[bytes], bytes], kind: str) -> None:
    data = CONTENT
    if kind == "tar":
        data = tgz(bytes(range(250)) * 16)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(damage(data))
    with pytest.raises(CannotRunError, match="damaged"):
        extract(path, tmp_path)


def test_a_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pmm_ray.sources.archives._MOST_EXPANSION", 0.001)
    path = tmp_path / "a.zip"
    path.write_bytes(CONTENT)
    with pytest.raises(CannotRunError, match="claims"):
        extract(path, tmp_path)
