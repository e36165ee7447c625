"""A disk, a mount or a store that fails is no image's fault: no error row, and exit code 75."""

from __future__ import annotations

import errno
import json
import os
import resource
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import torch

from pmm_ray.config import ClassifierConfig
from pmm_ray.labels import VOC12
from pmm_ray.nets.weight_files import read_weights_file
from pmm_ray.runtime.core import lease, storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, MayPassError, RowError
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.mapping.tasks import Output, run_chunk
from pmm_ray.runtime.mapping.workers import InputRow, row_by_row
from pmm_ray.runtime.rows.images import read_file, read_header
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.training.loader import TrainingRow, TrainingSet, batches, training_rows
from pmm_ray.runtime.training.sampling import BatchPlan
from pmm_ray.sources.cams.plane_files import read_content
from pmm_ray.sources.datasets.folder import import_folder
from pmm_ray.sources.reading.text import read_text
from pmm_ray.stages.train_classifier import ClassifierTask

from ..training import photographs_of, task_fields, train, training_job

SCHEMA = pa.schema([("image_id", pa.string()), ("value", pa.int32())])
PHOTOGRAPHS = Photographs("/data", False, 10**7, VOC12)
# its first bytes cannot be read: a real input/output error, also in a container
UNREADABLE = Path("/proc/self/mem")

Fail = Callable[[str, int], None]


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Fail:
    """Lets the opening of files whose names end so fail with a number."""
    resolve = storage.resolve

    def disk(ending: str, number: int) -> None:
        def opened(path: str) -> None:
            raise OSError(number, f"Failed to open local file '{path}'")

        def of(uri: str) -> tuple[Any, str]:
            broken = SimpleNamespace(open_input_file=opened)
            return (broken, uri) if uri.endswith(ending) else resolve(uri)

        monkeypatch.setattr(storage, "resolve", of)

    return disk


@contextmanager
def no_more_files() -> Iterator[None]:
    """This process may open none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


READERS: list[Callable[[str], object]] = [
    read_file,
    lambda uri: PHOTOGRAPHS.image({"uri": uri}),
    lambda uri: PHOTOGRAPHS.truth({"ground_truth_uri": uri}),
    lambda uri: read_content(uri, None, trust_pickle=False, most_values=100),
]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE])
@pytest.mark.parametrize("read", READERS)
def test_a_file_that_a_disk_does_not_give_is_no_image_s_error(
    read: Callable[[str], object], number: int, fail: Fail
) -> None:
    fail("a.npy", number)
    with pytest.raises(MayPassError, match=r"fails at /data/a\.npy.*Run the same command again"):
        read("/data/a.npy")


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("number", [errno.EACCES, errno.EPERM, errno.EINVAL])
def test_a_file_that_is_refused_is_one_image_s_error(
    read: Callable[[str], object], number: int, fail: Fail
) -> None:
    fail("a.npy", number)
    with pytest.raises(RowError, match="cannot be read") as error:
        read("/data/a.npy")
    assert error.value.kind == "missing"


def test_names_that_lead_nowhere_are_one_image_s_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "file").touch()
    for name in ("absent", "loop", "file/below", "", "x" * 300):
        with pytest.raises(RowError) as error:
            read_file(str(tmp_path / name))
        assert error.value.kind == "missing"


def test_a_real_input_output_error_ends_an_import(tmp_path: Path, shapes: Manifest) -> None:
    (tmp_path / "images").mkdir()
    rows = tables.read_table(shapes.uri).to_pylist()
    (tmp_path / "images" / "a.jpg").symlink_to(shapes.locate(rows[0]["uri"]))
    (tmp_path / "images" / "b.jpg").symlink_to(UNREADABLE)
    (tmp_path / "labels.csv").write_text("image_id,labels\na,cat\nb,cat\n")
    uri = str(tmp_path / "images" / "b.jpg")
    with pytest.raises(MayPassError, match=r"b\.jpg.*Input/output error"):
        read_header(uri, apply_exif=False)
    with pytest.raises(MayPassError, match=r"b\.jpg.*Input/output error"):
        import_folder(str(tmp_path), str(tmp_path / "out"))
    assert not (tmp_path / "out" / "errors").exists()


def test_a_process_that_may_open_no_more_files_blames_no_image(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for read in (read_file, read_text):
        with pytest.raises(MayPassError, match=r"a\.txt.*Too many open files"), no_more_files():
            read(str(tmp_path / "a.txt"))


def test_a_folder_that_a_mount_does_not_list_is_no_photograph_s_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stale(place: str) -> Any:
        raise OSError(errno.ESTALE, "Stale file handle", place)

    monkeypatch.setattr(os, "scandir", stale)
    with pytest.raises(MayPassError, match=f"{tmp_path}.*Stale"):
        storage.list_entries(str(tmp_path))


def of_photographs(uri: str, run_dir: Path) -> dict[str, Any]:
    """What a task reports that maps one photograph."""
    manifest = str(run_dir / "manifest.parquet")
    row = {"image_id": "a", "uri": uri, "labels": [1], "height": 4, "width": 4, "split": "train"}
    tables.write_rows(manifest, [row | {"ground_truth_uri": None}], tables.MANIFEST)
    worker = PHOTOGRAPHS.row_by_row("make_masks", lambda row, image: {"image_id": "a", "value": 1})
    output = Output(str(run_dir / "out"), SCHEMA, "make_masks", str(run_dir), "one")
    payload = json.dumps({"ids": ["a"], "rows": {"manifest": [[manifest, [0]]]}})
    with lease.hold(str(run_dir), "one"):
        return run_chunk(payload, worker, output)


def test_a_task_whose_disk_fails_commits_nothing_and_says_that_it_may_pass(
    tmp_path: Path, fail: Fail
) -> None:
    fail("a.jpg", errno.EIO)
    counts = of_photographs("/data/a.jpg", tmp_path)
    assert "the system fails at /data/a.jpg" in counts["failure"]
    assert counts["may_pass"]
    assert not (tmp_path / "out").exists()
    counts = of_photographs("/data/b.jpg", tmp_path)
    assert (counts["failure"], counts["may_pass"], counts["errors"]) == ("", False, 1)


def test_what_else_a_worker_s_disk_does_is_no_error_row() -> None:
    def write(row: InputRow) -> dict[str, Any]:
        raise OSError(errno.EIO, "Input/output error", "/scratch/x")

    with pytest.raises(OSError, match="/scratch/x"):
        list(row_by_row("make_masks", write)([{"manifest": {"image_id": "a"}}]))


class Written:
    """A sample of a training whose scratch disk fails."""

    def __call__(self, row: TrainingRow, image: Any, seed: int) -> tuple[torch.Tensor, ...]:
        raise OSError(errno.EIO, "Input/output error", "/scratch/x")


@pytest.mark.parametrize("processes", [0, 1])
def test_no_other_photograph_stands_in_for_one_that_a_disk_does_not_give(
    shapes: Manifest, processes: int
) -> None:
    rows = training_rows(shapes.uri, "train", labelled=True)
    data = TrainingSet(rows, photographs_of(shapes), Written(), 5, "stage")  # type: ignore[arg-type]
    plan = BatchPlan(5, len(data), 4, 1)
    with pytest.raises(MayPassError, match=r"^the system fails at /scratch/x.*stays\.$"):
        next(batches(data, plan, 0, first=0, last=1, processes=processes))


def test_a_training_whose_photographs_a_disk_does_not_give_may_pass(
    shapes: Manifest, group: None, tmp_path: Path, fail: Fail
) -> None:
    section = ClassifierConfig(resize_long=(32, 48), crop_size=32, output_stride=32)
    task = ClassifierTask(**task_fields(shapes, section))
    job = training_job(task, tmp_path, images=len(task.dataset()), steps=2)
    fail(".png", errno.EIO)
    fail(".jpg", errno.EIO)
    found = train(job)
    assert found["stopped"].startswith("the system fails at ")
    assert found["may_pass"]
    assert not tables.read_errors(job.errors_uri)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store that refuses everything, as credentials that have expired are answered."""

    class Refuses(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def refuse(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
            self.send_response(403)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        do_GET = do_PUT = do_POST = do_HEAD = refuse  # noqa: N815 - names of http.server

        def log_message(self, format: str, *args: Any) -> None:
            """Nothing: the tests' output is not a log."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    storage._filesystem.cache_clear()
    yield
    storage._filesystem.cache_clear()
    server.shutdown()
    server.server_close()


@pytest.mark.usefixtures("refusing")
@pytest.mark.parametrize("rows", [{}, {"manifest": [["s3://bucket/run/in/part-1.parquet", [0]]]}])
def test_a_task_whose_store_refuses_what_is_ours_says_that_it_may_pass(rows: Any) -> None:
    output = Output("s3://bucket/run/out", SCHEMA, "make_masks", "s3://bucket/run", "one")
    payload = json.dumps({"ids": ["a"], "rows": rows})
    counts = run_chunk(payload, lambda rows: iter([{"image_id": "a", "value": 1}]), output)
    assert "ACCESS_DENIED" in counts["failure"]
    assert "Run the same command again" in counts["failure"]
    assert counts["may_pass"]


@pytest.mark.usefixtures("refusing")
@pytest.mark.parametrize("read", [read_weights_file, read_text, open_manifest])
def test_a_store_that_refuses_what_a_run_needs_may_be_mended(
    read: Callable[[str], object],
) -> None:
    with pytest.raises(MayPassError, match=r"s3://bucket/data/it cannot|cannot read.*ACCESS"):
        read("s3://bucket/data/it")
    with pytest.raises(CannotRunError) as error:
        read("/nowhere/at/all")
    assert not isinstance(error.value, MayPassError)
