"""Downloads from a server that cuts connections, changes its mind and sends other bytes."""

from __future__ import annotations

import hashlib
import io
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pmm_ray.cli import main
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.sources import download as module
from pmm_ray.sources.archives import extract
from pmm_ray.sources.download import DATASETS, Archive, download


class Server:
    """Serves bytes; what it does wrong is set by the test."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.cut_after: int | None = None
        self.cuts = 0
        self.ranges = True
        self.etag = '"one"'
        self.statuses: list[int] = []
        self.at_once = 0
        self.most_at_once = 0
        self.gate: threading.Barrier | None = None
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments: Any) -> None:
                pass

            def do_GET(self) -> None:
                server.answer(self)

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/data"
        self.thread = threading.Thread(target=self.http.serve_forever, daemon=True)
        self.thread.start()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.rsplit("/", 1)[-1]
        wanted = request.headers.get("Range")
        self.requests.append((name, wanted))
        request.close_connection = True
        if self.gate is not None:
            self.gate.wait(20)
        if self.statuses:
            request.send_error(self.statuses.pop(0))
            return
        data = self.files.get(name)
        if data is None:
            request.send_error(404)
            return
        start = 0
        same = request.headers.get("If-Range", self.etag) == self.etag
        if wanted and self.ranges and same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                request.send_response(416)
                request.send_header("Content-Range", f"bytes */{len(data)}")
                request.send_header("Content-Length", "0")
                request.end_headers()
                return
        request.send_response(206 if start else 200)
        if start:
            request.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        request.send_header("Content-Length", str(len(data) - start))
        request.send_header("ETag", self.etag)
        request.end_headers()
        end = len(data)
        if self.cut_after is not None and self.cuts:
            end = min(end, start + self.cut_after)
            self.cuts -= 1
        request.wfile.write(data[start:end])

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "_FIRST_PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(module, "_CHUNK", 1000)
    server = Server()
    yield server
    server.close()


def zipped(**files: bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, data in files.items():
            archive.writestr(name.replace("__", "/"), data)
    return out.getvalue()


CONTENT = zipped(train2014__a=bytes(range(256)) * 40)


def archive(server: Server, name: str = "a.zip", data: bytes = CONTENT) -> Archive:
    server.files[name] = data
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return Archive(f"{server.url}/{name}", len(data), 2 * len(data), digest)


def run(root: Path, *archives: Archive, **options: Any) -> list[str]:
    lines: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DATASETS, "test", archives)
        download("test", root, say=lines.append, **options)
    return lines


def test_a_cut_connection_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    wanted = archive(server)
    server.cut_after, server.cuts = 3000, 3
    run(tmp_path, wanted)
    assert [r for _, r in server.requests] == [None, "bytes=3000-", "bytes=6000-", "bytes=9000-"]
    assert (tmp_path / "train2014/a").read_bytes() == bytes(range(256)) * 40
    assert not list(tmp_path.rglob("*.part*"))
    run(tmp_path, wanted)
    assert len(server.requests) == 4  # all done: nothing is asked for


def test_what_an_earlier_process_left_is_gone_on_with(server: Server, tmp_path: Path) -> None:
    wanted = archive(server)
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives/a.zip.part").write_bytes(CONTENT[:5000])
    run(tmp_path, wanted)
    assert [r for _, r in server.requests] == ["bytes=5000-"]
    whole = tmp_path / "second/archives"
    whole.mkdir(parents=True)
    (whole / "a.zip.part").write_bytes(CONTENT)
    run(tmp_path / "second", wanted)
    assert (tmp_path / "second/train2014/a").exists()


def test_a_server_without_ranges_begins_again(server: Server, tmp_path: Path) -> None:
    wanted = archive(server)
    server.cut_after, server.cuts, server.ranges = 3000, 1, False
    run(tmp_path, wanted)
    assert (tmp_path / "archives/a.zip").read_bytes() == CONTENT


def test_another_version_is_not_mixed_with_the_first(server: Server, tmp_path: Path) -> None:
    archive(server)
    server.cut_after, server.cuts = 3000, 1
    other = zipped(train2014__a=b"other" * 2000)

    def answer(request: BaseHTTPRequestHandler) -> None:
        Server.answer(server, request)
        server.files["a.zip"], server.etag = other, '"two"'

    server.answer = answer  # type: ignore[method-assign]
    run(tmp_path, Archive(f"{server.url}/a.zip", 1, 1))
    assert (tmp_path / "train2014/a").read_bytes() == b"other" * 2000


def test_a_wrong_checksum_is_refused_and_the_file_deleted(server: Server, tmp_path: Path) -> None:
    wanted = archive(server)
    server.files["a.zip"] = zipped(train2014__a=b"evil")
    with pytest.raises(CannotRunError, match="MD5"):
        run(tmp_path, wanted)
    assert not (tmp_path / "train2014").exists()
    assert not list((tmp_path / "archives").iterdir())
    server.files["a.zip"] = CONTENT
    run(tmp_path, wanted)


def test_a_file_put_there_by_hand_is_checked(server: Server, tmp_path: Path) -> None:
    wanted = archive(server)
    (tmp_path / "archives").mkdir()
    by_hand = tmp_path / "archives/a.zip"
    by_hand.write_bytes(zipped(train2014__a=b"evil"))
    with pytest.raises(CannotRunError, match=r"a\.zip: its MD5 is"):
        run(tmp_path, wanted)
    assert not by_hand.exists()
    by_hand.write_bytes(CONTENT)
    run(tmp_path, wanted)
    assert not server.requests


def test_the_official_archives_have_checksums() -> None:
    archives = [archive for group in DATASETS.values() for archive in group]
    assert all(len(archive.md5 or "") == 32 for archive in archives)
    assert {archive.url.split("/")[2] for archive in archives} == {
        "host.robots.ox.ac.uk",
        "www2.eecs.berkeley.edu",
        "images.cocodataset.org",
    }


def test_a_server_that_gives_nothing_is_given_up(server: Server, tmp_path: Path) -> None:
    wanted = archive(server)
    server.cut_after, server.cuts = 0, 1000
    with pytest.raises(CannotRunError, match="run the command again"):
        run(tmp_path, wanted)
    assert len(server.requests) == 6
    server.cuts, server.statuses = 0, [503, 500]
    run(tmp_path, wanted)
    with pytest.raises(CannotRunError, match="404"):
        run(tmp_path, Archive(f"{server.url}/absent.zip", 1, 1))


def test_archives_are_loaded_side_by_side(server: Server, tmp_path: Path) -> None:
    # nobody is answered before both have asked
    server.gate = threading.Barrier(2)
    run(tmp_path, archive(server), archive(server, "b.zip", zipped(val2014__b=b"b")), parallel=2)
    assert (tmp_path / "val2014/b").read_bytes() == b"b"


def test_the_disk_is_looked_at_first(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = archive(server)
    usage = shutil.disk_usage(tmp_path)._replace(free=wanted.size + wanted.expands_to - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(CannotRunError, match="GB are free"):
        run(tmp_path, wanted)
    assert not server.requests


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
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w:gz") as archive:
            info = tarfile.TarInfo("a")
            info.size = 4000
            archive.addfile(info, io.BytesIO(bytes(range(250)) * 16))
        data = out.getvalue()
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


def test_the_command_with_a_mirror(
    server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    names = {a.name for archives in DATASETS.values() for a in archives}
    assert len(names) == 5
    for name in names:
        server.files[name] = CONTENT
    with pytest.raises(SystemExit) as ended:
        main(["data", "download", "sbd", str(tmp_path), "--mirror", server.url])
    # the mirror's bytes are not the official ones, and are told from them
    assert ended.value.code == 1
    assert "MD5" in capfd.readouterr().err
    assert server.requests == [("benchmark.tgz", None)]


def test_archives_are_not_unpacked_in_a_bucket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CannotRunError, match="s3://bucket/voc is no local folder"):
        download("voc12", "s3://bucket/voc")
    assert not [*tmp_path.iterdir()]
