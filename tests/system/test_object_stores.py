"""Buckets: real servers on loopback, a proxy that throttles, cuts and hangs, and a whole run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
import requests
from PIL import Image

from pmm_ray.commands.plan import plan_recipe
from pmm_ray.config import RunConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.index import read_all, scan_parts
from pmm_ray.runtime.core.marker import read_marker
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.mapping.ledger import Ledger
from pmm_ray.runtime.mapping.workers import row_by_row
from pmm_ray.runtime.rows.images import read_image

from ..export.runs import SEGMENTER, make_run
from .faulty_proxy import S3_SERVER, Fault, Proxy, environment_of, serving, standing_before

SCHEMA = pa.schema([("image_id", pa.string()), ("value", pa.int32())])
ROWS = [{"image_id": f"i{n:03d}", "value": n} for n in range(20)]


@pytest.fixture(scope="module")
def gcs_server() -> Iterator[int]:
    """The port of an emulator of Google's store."""
    with serving("-m", "gcp_storage_emulator", "start", "--in-memory", "--port") as port:
        yield port


@pytest.fixture(scope="module")
def proxy_server() -> Iterator[Proxy]:
    with serving(*S3_SERVER) as port, standing_before(port) as proxy:
        yield proxy


@pytest.fixture
def s3(proxy_server: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """`s3://bucket` behind a proxy."""
    for name, value in environment_of(proxy_server).items():
        monkeypatch.setenv(name, value)
    storage._filesystem.cache_clear()
    proxy_server.seen.clear()
    yield proxy_server
    proxy_server.faults.clear()
    storage._filesystem.cache_clear()


@pytest.fixture
def gs(gcs_server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`gs://bucket`."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{gcs_server}")
    url = f"http://127.0.0.1:{gcs_server}/storage/v1/b?project=test"
    assert requests.post(url, json={"name": "bucket"}, timeout=30).status_code in (200, 409)
    storage._filesystem.cache_clear()
    yield
    storage._filesystem.cache_clear()


@pytest.fixture
def few_attempts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up after seconds instead of a minute."""
    monkeypatch.setattr(storage, "_S3_ATTEMPTS", 2)


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_files_and_tables_in_a_bucket(scheme: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(scheme)
    root = f"{scheme}://bucket/round"
    storage.write_bytes(f"{root}/a.bin", b"old")
    storage.write_bytes(f"{root}/a.bin", b"new bytes")
    with pytest.raises(TypeError):
        storage.write_bytes(f"{root}/a.bin", "not bytes")  # type: ignore[arg-type]
    assert storage.read_bytes(f"{root}/a.bin") == b"new bytes"
    assert storage.read_bytes(f"{root}/a.bin", 3) == b"new"
    assert storage.exists(f"{root}/a.bin")
    assert not storage.exists(f"{root}/b.bin")
    with pytest.raises(FileNotFoundError):
        storage.read_bytes(f"{root}/b.bin")
    tables.write_rows(f"{root}/t/part-1.parquet", ROWS, SCHEMA)
    storage.write_bytes(f"{root}/t/part-2.parquet", b"PAR1 torn")
    assert [row["value"] for row in tables.read_rows(f"{root}/t/part-1.parquet", [7, 3])] == [7, 3]
    index, broken = scan_parts(f"{root}/t")
    assert index.image_ids == [row["image_id"] for row in ROWS]
    assert broken == [f"{root}/t/part-2.parquet"]
    storage.delete_file(broken[0])
    storage.delete_file(broken[0])
    assert storage.list_files(f"{root}/t") == [f"{root}/t/part-1.parquet"]
    storage.delete_folder(root)
    storage.delete_folder(root)
    assert storage.list_files(root, recursive=True) == []


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_folder_in_a_bucket_is_ours_by_its_marker(
    scheme: str, request: pytest.FixtureRequest
) -> None:
    server = request.getfixturevalue(scheme)
    root = f"{scheme}://bucket/marked"
    if scheme == "s3":  # an empty folder that a console made
        filesystem, path = storage.resolve(root)
        filesystem.create_dir(path)
    assert read_marker(root, ".made") is None
    for number in range(20):
        storage.write_bytes(f"{root}/deep/below/{number}.png", b"of the user")
    assert read_marker(root, ".made", ("masks",)) is None
    if server is not None:
        server.seen.clear()
    with pytest.raises(CannotRunError, match=r"such as .*choose another folder"):
        read_marker(root, ".made")
    if server is not None:
        assert len(server.seen) <= 3
    storage.write_bytes(f"{root}/.made", b"once")
    assert read_marker(root, ".made") == b"once"
    with pytest.raises(CannotRunError, match="such as deep,"):
        read_marker(root, ".other", ("masks", "deep"))


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_a_plan_in_a_bucket_deletes_what_a_killed_one_left(
    scheme: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measure(config: object, run_dir: str, *_: object) -> None:
        storage.write_bytes(f"{run_dir}/part-0.parquet", b"")
        raise CannotRunError("no such data")

    request.getfixturevalue(scheme)
    monkeypatch.setattr("pmm_ray.commands.plan.measure.measure", measure)
    (tmp_path / "a.yaml").write_text("data: {source: shapes}\n")
    place = f"{scheme}://bucket/planned"
    storage.write_bytes(f"{place}/plan/mine.txt", b"")
    storage.write_bytes(f"{place}/.pmm-plan-00000001/run/part-0.parquet", b"")
    assert plan_recipe(tmp_path / "a.yaml", run_dir=place) == 1
    assert [entry.uri for entry in storage.list_entries(place, recursive=True)] == [
        f"{place}/plan/mine.txt"
    ]


def test_a_bucket_that_throttles_is_asked_again_after_growing_random_pauses(s3: Proxy) -> None:
    uri = "s3://bucket/slow.bin"
    s3.faults = [Fault("PUT", "slow.bin", "slow down", 3), Fault("GET", "slow.bin", "slow down", 3)]
    storage.write_bytes(uri, b"x" * 1000)
    assert storage.read_bytes(uri) == b"x" * 1000
    puts, gets = s3.attempts("PUT", "slow.bin"), s3.attempts("GET", "slow.bin")
    assert (len(puts), len(gets)) == (4, 4)
    pauses = [late - early for times in (puts, gets) for early, late in pairwise(times)]
    assert len({round(pause, 2) for pause in pauses}) > 1  # jitter


@pytest.mark.parametrize("size", [3000, 6_000_000])  # one request; several
def test_an_upload_that_is_cut_is_sent_again_and_the_object_is_whole(s3: Proxy, size: int) -> None:
    uri, data = "s3://bucket/cut.bin", os.urandom(size)
    s3.faults = [Fault("PUT", "cut.bin", "cut upload", 2)]
    storage.write_bytes(uri, data)
    assert [fault for *_, fault in s3.seen].count("cut upload") == 2
    assert storage.read_bytes(uri) == data


@pytest.mark.usefixtures("few_attempts")
@pytest.mark.parametrize("size", [3000, 6_000_000])
def test_an_upload_that_never_succeeds_leaves_the_old_object(s3: Proxy, size: int) -> None:
    uri = "s3://bucket/lost.bin"
    storage.write_bytes(uri, b"old")
    s3.faults = [Fault("PUT", "lost.bin", "cut upload")]
    with pytest.raises(CannotRunError, match=r"the store fails for s3://bucket/lost\.bin"):
        storage.write_bytes(uri, os.urandom(size))
    assert storage.read_bytes(uri) == b"old"


@pytest.mark.parametrize("action", ["cut download", "hang"])
def test_a_download_that_breaks_off_or_hangs_is_asked_for_again(s3: Proxy, action: str) -> None:
    uri, data = "s3://bucket/download.bin", os.urandom(300_000)
    storage.write_bytes(uri, data)
    s3.faults = [Fault("GET", "download.bin", action, 1)]
    assert storage.read_bytes(uri) == data
    assert len(s3.attempts("GET", "download.bin")) == 2


@pytest.mark.usefixtures("few_attempts")
def test_a_store_that_fails_is_no_image_s_fault_and_no_part_s(s3: Proxy) -> None:
    photo = "s3://bucket/photos/a.jpg"
    storage.write_bytes(photo, b"anything")
    folder = StageFolder("s3://bucket/stage", "stage", "0")
    tables.write_rows(f"{folder.uri}/part-1.parquet", ROWS, SCHEMA)
    s3.faults = [Fault("GET", "a.jpg", "slow down"), Fault("GET", "part-1", "slow down")]
    worker = row_by_row("make_cams", lambda row: {"image": read_image(photo, apply_exif=False)})
    with pytest.raises(CannotRunError, match=r"fails for s3://bucket/photos/a\.jpg"):
        list(worker([{"manifest": {"image_id": "a", "uri": photo}}]))
    with pytest.raises(CannotRunError, match="fails for s3://bucket/stage"):
        Ledger(folder, SCHEMA).scan()
    s3.faults.clear()
    ledger = Ledger(folder, SCHEMA)
    assert ledger.scan() == []
    assert len(ledger.uncommitted([row["image_id"] for row in ROWS])) == 0


def test_an_object_that_may_not_be_read_is_one_image_s_error(s3: Proxy) -> None:
    photo = "s3://bucket/photos/secret.jpg"
    storage.write_bytes(photo, b"anything")
    s3.faults = [Fault(method, "secret.jpg", "deny") for method in ("GET", "HEAD")]
    with pytest.raises(RowError, match="ACCESS_DENIED") as error:
        read_image(photo, apply_exif=False)
    assert (error.value.kind, error.value.uri) == ("missing", photo)


def test_a_fingerprint_lists_a_folder_once_and_changes_with_a_file(s3: Proxy) -> None:
    names = {f"s3://bucket/films/{name}.png": name for name in "abc"}
    for uri in names:
        storage.write_bytes(uri, b"frame")
    s3.seen.clear()
    first = storage.fingerprint(names)
    assert [verb for _, verb, *_ in s3.seen] == ["GET"]
    assert storage.fingerprint(names) == first
    storage.write_bytes("s3://bucket/films/b.png", b"another")
    assert storage.fingerprint(names) != first


def test_a_bucket_that_is_not_there_is_named(s3: Proxy) -> None:
    with pytest.raises(CannotRunError, match="nowhere"):
        storage.write_bytes("s3://nowhere/a.bin", b"x")


RECIPE = """
name: bucket
data: {source: folder, root: ROOT}
classifier: {epochs: 2, batch_size: 6, resize_long: [48, 72], crop_size: 48, output_stride: 16,
             weights: none}
cams: {scales: [1.0], flip: false}
masks: {alpha: 2, tasks: 2, batch_size: 1, crf: {iterations: 500}}
evaluate: {ladder: []}
runtime: {object_store_bytes: 150000000}
"""


def write_photographs(root: Path, images: int = 24) -> None:
    """A folder of photographs with labels."""
    (root / "images").mkdir(parents=True)
    lines = ["image_id,labels"]
    for number in range(images):
        rng = np.random.default_rng(number)
        noise = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        noise.resize((64, 48)).save(root / "images" / f"photo-{number:02d}.png")
        lines.append(f"photo-{number:02d},{'a;b' if number % 3 else 'b'}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    (root / "classes.txt").write_text("a\nb\n")


def start_run(folder: Path, root: str, run_dir: str) -> subprocess.Popen[str]:
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.replace("ROOT", root))
    command = [sys.executable, "-m", "pmm_ray.cli", "run", str(recipe), "--run-dir", run_dir]
    return subprocess.Popen(
        [*command, "--until", "make_masks", "--address", "local"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def masks_of(run_dir: str) -> str:
    record = json.loads(storage.read_bytes(f"{run_dir}/run.json"))
    [stage] = [stage for stage in record["stages"] if stage["stage"] == "make_masks"]
    return tables.content_hash(read_all(f"{run_dir}/{stage['folder']}"))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("answer", ["expire", "deny"])
def test_credentials_that_expire_in_mid_run_cost_no_image(
    s3: Proxy, tmp_path: Path, answer: str
) -> None:
    write_photographs(tmp_path / "photographs")
    for path in (tmp_path / "photographs").rglob("*.*"):
        name = path.relative_to(tmp_path).as_posix()
        storage.write_bytes(f"s3://bucket/{answer}/{name}", path.read_bytes())
    root, run_dir = f"s3://bucket/{answer}/photographs", f"s3://bucket/{answer}/run"
    first = start_run(tmp_path, root, run_dir)
    deadline = time.monotonic() + 300
    while len(s3.attempts("PUT", f"{answer}/run/make_masks")) < 4:
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    s3.faults = [Fault(method, "/", answer) for method in ("GET", "HEAD", "PUT", "POST", "DELETE")]
    _, printed = first.communicate(timeout=600)
    assert first.returncode == 75, printed
    assert "Traceback" not in printed
    # what Ray's C++ writes
    assert "core_worker" not in printed
    assert f"{answer}/run" in printed
    assert "Run the same command again" in printed
    s3.faults.clear()
    second = start_run(tmp_path, root, run_dir)
    _, printed = second.communicate(timeout=600)
    assert second.returncode == 0, printed
    record = json.loads(storage.read_bytes(f"{run_dir}/run.json"))
    for stage in record["stages"]:
        assert not tables.read_errors(f"{run_dir}/{stage['folder']}/errors")
    whole = start_run(tmp_path, str(tmp_path / "photographs"), str(tmp_path / "run"))
    _, printed = whole.communicate(timeout=600)
    assert whole.returncode == 0, printed
    assert masks_of(run_dir) == masks_of(str(tmp_path / "run"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_on_buckets_alone_throttled_cut_and_killed_ends_with_the_table_of_a_local_run(
    s3: Proxy, tmp_path: Path
) -> None:
    write_photographs(tmp_path / "photographs")
    for path in (tmp_path / "photographs").rglob("*.*"):
        name = path.relative_to(tmp_path).as_posix()
        storage.write_bytes(f"s3://bucket/{name}", path.read_bytes())
    local = start_run(tmp_path, str(tmp_path / "photographs"), str(tmp_path / "run"))
    _, printed = local.communicate(timeout=600)
    assert local.returncode == 0, printed

    s3.faults = [
        Fault("PUT", "/make_masks", "cut upload", 3),
        Fault("GET", "/photographs/", "slow down", 5),
        Fault("PUT", "/make_cams", "slow down", 3),
        Fault("GET", "/make_cams", "cut download", 3),
    ]
    first = start_run(tmp_path, "s3://bucket/photographs", "s3://bucket/run")
    deadline = time.monotonic() + 300
    while len(s3.attempts("PUT", "/make_masks")) < 10:
        assert first.poll() is None, first.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    others = psutil.Process(first.pid).children(recursive=True)
    workers = [process for process in others if "Agent" not in process.name()]
    first.kill()
    first.communicate(timeout=60)
    _, alive = psutil.wait_procs(workers, timeout=60)  # its tasks may commit for a moment
    assert not alive
    since = time.monotonic()
    second = start_run(tmp_path, "s3://bucket/photographs", "s3://bucket/run")
    _, printed = second.communicate(timeout=600)
    assert second.returncode == 0, printed
    assert all(fault.times == 0 for fault in s3.faults)
    assert masks_of("s3://bucket/run") == masks_of(str(tmp_path / "run"))

    puts = [(when, path) for when, verb, path, _ in s3.seen if verb == "PUT" and when > since]
    commits = [when for when, path in puts if re.search(r"/make_masks-\w+/part-", path)]
    first_commit, last_commit = commits[0], commits[-1]
    listings = [(when, path) for when, verb, path, _ in s3.seen if "list-type=2" in path]
    assert listings
    assert not [path for when, path in listings if first_commit < when < last_commit]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_photographs_cams_labels_runs_and_masks_of_commands_may_be_in_buckets(
    s3: Proxy, tmp_path: Path
) -> None:
    write_photographs(tmp_path / "photographs", 4)
    (tmp_path / "cams").mkdir()
    cam = np.zeros((2, 12, 16), np.float16)
    cam[0, 2:6, 2:6] = cam[1, 6:10, 8:14] = 1
    for number in range(4):
        np.savez(tmp_path / "cams" / f"photo-{number:02d}.npz", keys=[0, 1], cam=cam)
    (tmp_path / "run").mkdir()
    make_run(tmp_path / "run", "train_segmenter-r0")
    save_segmenter(str(tmp_path / "run/train_segmenter-r0-00000000/model.pt"))
    for path in tmp_path.rglob("*.*"):
        if path.is_file():
            name = path.relative_to(tmp_path).as_posix()
            storage.write_bytes(f"s3://bucket/commands/{name}", path.read_bytes())
    place = tmp_path / "elsewhere"
    place.mkdir()
    at = "s3://bucket/commands"
    images = ["--images", f"{at}/photographs/images"]
    commands = {
        "masks": ["--cams", f"{at}/cams", "--labels", f"{at}/photographs/labels.csv"],
        "predict": [f"{at}/run", "--set", "predict.actors=1"],
    }
    for name, options in commands.items():
        options += [*images, "--out", f"{at}/{name}", "--address", "local"]
        options += ["--set", "runtime.object_store_bytes=150000000"]
        done = subprocess.run(
            [sys.executable, "-m", "pmm_ray.cli", name, *options],
            cwd=place,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        made = [uri.rsplit("/", 1)[-1] for uri in storage.list_files(f"{at}/{name}/masks")]
        assert made == [f"photo-{number:02d}.png" for number in range(4)]
        assert not [*place.iterdir()]


def save_segmenter(uri: str) -> None:
    """A segmenter of four classes at random."""
    from pmm_ray.nets.checkpoints import save_model
    from pmm_ray.nets.segmenter import build_segmenter

    config = RunConfig.model_validate({"segmenter": SEGMENTER | {"weights": "none"}}).segmenter
    space = LabelSpace.from_names(["disc", "square", "cross"], "shapes")
    meta = {"config": config.model_dump(mode="json"), "num_classes": 4, "ignore_index": 255}
    meta |= {"label_space": space.to_json(), "round": 0, "training": {}}
    save_model(uri, "segmenter", build_segmenter(config, 4, 255), meta)
