"""Downloads from a server that cuts connections, changes its mind and sends other bytes."""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from pmm_ray.cli import main
from pmm_ray.runtime.core.errors import CannotRunError, MayPassError
from pmm_ray.sources import download as module
from pmm_ray.sources.archives import extract
from pmm_ray.sources.download import DATASETS, Archive, download

from .packed import CONTENT, tgz, zipped


class Server:
    """Serves bytes; what it does wrong is set by the test."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.cut_after: int | None = None
        self.cuts = 0
        self.ranges = True
        self.lengths = True
        self.headers: dict[str, str] = {}
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
        if wanted and self.ranges:
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
        if self.lengths:
            request.send_header("Content-Length", str(len(data) - start))
        for header in self.headers.items():
            request.send_header(*header)
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


def archive(
    server: Server, name: str = "a.zip", data: bytes = CONTENT, top: str = "train2014"
) -> Archive:
    server.files[name] = data
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return Archive(f"{server.url}/{name}", len(data), 2 * len(data), digest, top)


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


def test_a_server_without_ranges_begins_again(server: Server, tmp_path: Path) -> None:
    wanted = archive(server)
    server.cut_after, server.cuts, server.ranges = 3000, 1, False
    run(tmp_path, wanted)
    assert (tmp_path / "archives/a.zip").read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_a_part_that_is_whole_is_taken(server: Server, tmp_path: Path, ranges: bool) -> None:
    server.ranges = ranges
    wanted = archive(server)
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives/a.zip.part").write_bytes(CONTENT)
    run(tmp_path, wanted)
    assert (tmp_path / "train2014/a").exists()


def test_a_mirror_goes_on_with_what_came_from_elsewhere(server: Server, tmp_path: Path) -> None:
    wanted = replace(archive(server), url="http://127.0.0.1:9/a.zip")
    (tmp_path / "archives").mkdir()
    part = tmp_path / "archives/a.zip.part"
    part.write_bytes(CONTENT[:5000])
    with pytest.raises(MayPassError, match="MB are kept: run the command again"):
        run(tmp_path, wanted)
    assert part.read_bytes() == CONTENT[:5000]
    server.headers = {"ETag": '"the mirror"'}
    run(tmp_path, wanted, mirror=server.url)
    assert [r for _, r in server.requests] == ["bytes=5000-"]


@pytest.mark.parametrize("lengths", [True, False])
def test_a_page_to_log_in_takes_nothing_away(server: Server, tmp_path: Path, lengths: bool) -> None:
    wanted = archive(server)
    server.files["a.zip"], server.ranges, server.lengths = b"<html>log in", False, lengths
    (tmp_path / "archives").mkdir()
    part = tmp_path / "archives/a.zip.part"
    part.write_bytes(CONTENT[:5000])
    with pytest.raises(MayPassError, match=f"if it goes on, delete {part}"):
        run(tmp_path, wanted)
    assert part.read_bytes() == CONTENT[:5000]
    server.files["a.zip"], server.ranges, server.lengths = CONTENT, True, True
    run(tmp_path, wanted)
    assert server.requests[-1] == ("a.zip", "bytes=5000-")


def test_a_server_without_ranges_that_breaks_again_takes_nothing_away(
    server: Server, tmp_path: Path
) -> None:
    wanted = archive(server)
    (tmp_path / "archives").mkdir()
    (tmp_path / "archives/a.zip.part").write_bytes(CONTENT[:5000])
    server.ranges, server.cut_after, server.cuts = False, 2000, 1
    run(tmp_path, wanted)
    assert [r for _, r in server.requests] == ["bytes=5000-", "bytes=5000-"]


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip"])
def test_a_tgz_that_a_server_calls_encoded_stays_as_it_is(
    server: Server, tmp_path: Path, encoding: str
) -> None:
    data = tgz(bytes(range(250)) * 16)
    server.headers = {"Content-Encoding": encoding}
    server.cut_after, server.cuts = len(data) // 2, 1
    run(tmp_path, archive(server, "a.tgz", data, "a"))
    assert (tmp_path / "archives/a.tgz").read_bytes() == data
    assert len(server.requests) == 2


def test_a_mirror_that_is_no_url_is_refused_at_once(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_SECONDS", 1000.0)
    with pytest.raises(CannotRunError, match=r"host/voc/a.zip.*https://HOST/FOLDER") as refused:
        run(tmp_path, archive(server), mirror="host/voc")
    assert not isinstance(refused.value, MayPassError)


def test_a_file_that_is_not_there_is_told_before_the_others_are(
    server: Server, tmp_path: Path
) -> None:
    wanted, absent = archive(server), archive(server, "b.zip", zipped(val2014__b=b"b"), "val2014")
    server.files.pop("b.zip")
    told = threading.Event()

    def answer(request: BaseHTTPRequestHandler) -> None:
        if request.path.endswith("a.zip"):
            told.wait(20)
        Server.answer(server, request)
        if request.path.endswith("b.zip"):
            threading.Timer(0.5, told.set).start()

    server.answer = answer  # type: ignore[method-assign]
    with pytest.raises(CannotRunError, match=r"b\.zip: the server answers 404"):
        run(tmp_path, wanted, absent)
    assert not (tmp_path / "archives/a.zip").exists()


def test_a_full_disk_names_the_file(server: Server, tmp_path: Path) -> None:
    (tmp_path / "archives").mkdir()
    part = tmp_path / "archives/a.zip.part"
    part.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left") as full:
        run(tmp_path, archive(server))
    assert full.value.filename == str(part)


def test_a_tree_that_was_deleted_is_extracted_again(server: Server, tmp_path: Path) -> None:
    wanted = archive(server)
    run(tmp_path, wanted)
    shutil.rmtree(tmp_path / "train2014")
    run(tmp_path, wanted)
    assert (tmp_path / "train2014/a").exists()
    assert len(server.requests) == 1


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
    with pytest.raises(MayPassError, match="run the command again"):
        run(tmp_path, wanted)
    assert len(server.requests) == 6
    server.statuses = [503] * 6
    with pytest.raises(MayPassError, match="503"):
        run(tmp_path, wanted)
    server.cuts, server.statuses = 0, [503, 500]
    run(tmp_path, wanted)
    with pytest.raises(CannotRunError, match="404"):
        run(tmp_path, Archive(f"{server.url}/absent.zip", 1, 1, "0", "val2014"))


def test_archives_are_loaded_side_by_side(server: Server, tmp_path: Path) -> None:
    # nobody is answered before both have asked
    server.gate = threading.Barrier(2)
    run(
        tmp_path,
        archive(server),
        archive(server, "b.zip", zipped(val2014__b=b"b"), "val2014"),
        parallel=2,
    )
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
    # what an interrupted extraction left needs no second place
    with monkeypatch.context() as patch:
        patch.setattr(module, "extract", interrupt)
        patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1 << 30))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, wanted)
    extract(tmp_path / "archives/a.zip", tmp_path)
    there = (tmp_path / "train2014/a").stat().st_size
    free = usage._replace(free=wanted.expands_to - there)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    run(tmp_path, wanted)


def interrupt(archive: Path, folder: Path) -> None:
    raise KeyboardInterrupt


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
