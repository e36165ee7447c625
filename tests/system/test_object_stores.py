"""Buckets: real servers on loopback, and a proxy that throttles, cuts and hangs."""

from __future__ import annotations

import os
import re
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest

from pmm_ray.commands.plan import plan_recipe
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, RowError
from pmm_ray.runtime.core.fingerprints import fingerprint
from pmm_ray.runtime.core.index import scan_parts
from pmm_ray.runtime.core.marker import read_marker
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.mapping.ledger import Ledger
from pmm_ray.runtime.mapping.workers import row_by_row
from pmm_ray.runtime.rows.images import read_image
from pmm_ray.sources.datasets.voc_masks import find_voc_masks
from pmm_ray.sources.importing.photographs import places_in

from .faulty_proxy import Fault, Proxy

SCHEMA = pa.schema([("image_id", pa.string()), ("value", pa.int32())])
ROWS = [{"image_id": f"i{n:03d}", "value": n} for n in range(20)]


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
    with pytest.raises(CannotRunError, match=r"such as deep,.*choose another folder"):
        read_marker(root, ".made")
    if server is not None:
        assert len(server.seen) <= 3
    storage.write_bytes(f"{root}/.made", b"once")
    assert read_marker(root, ".made") == b"once"
    with pytest.raises(CannotRunError, match="such as deep,"):
        read_marker(root, ".other", ("masks", "deep"))


@pytest.mark.parametrize("scheme", ["s3", "gs"])
def test_folders_in_a_bucket_are_met(scheme: str, request: pytest.FixtureRequest) -> None:
    request.getfixturevalue(scheme)
    voc = f"{scheme}://bucket/VOC2012"
    filesystem, path = storage.resolve(voc)
    filesystem.create_dir(path)  # as a console makes it
    for name in ("readme.txt", "Annotations/a.xml", "SegmentationClass/a.png", "More/deep/b.txt"):
        storage.write_bytes(f"{voc}/{name}", b"")
    folders = ["Annotations", "More", "SegmentationClass"]
    assert storage.list_folders(f"{voc}/") == storage.list_folders(voc) == folders
    assert storage.list_names(voc) == [*folders, "readme.txt"]
    assert storage.list_names(f"{voc}/nowhere") == storage.list_folders(f"{voc}/nowhere") == []
    assert storage.list_names(f"{scheme}://bucket")
    assert find_voc_masks(voc, ["a"], f"{scheme}://bucket/out") == (
        {"a": f"{voc}/SegmentationClass/a.png"},
        [],
    )
    assert places_in(voc, ["annotations"]) == [f"{voc}/Annotations"]

    folder = StageFolder(f"{scheme}://bucket/imported", "import_data", "0")
    for name in ("manifest.parquet", "errors/part-x.parquet", "masks/a.png"):
        storage.write_bytes(folder.path(name), b"")
    folder.clear("masks")
    left = [entry.uri for entry in storage.list_entries(folder.uri, recursive=True)]
    assert left == [folder.path("masks/a.png")]


def test_a_folder_is_not_listed_for_a_name_that_is_there(s3: Proxy) -> None:
    for name in ("labels.csv", "images/a.jpg"):
        storage.write_bytes(f"s3://bucket/set/{name}", b"")
    s3.seen.clear()
    found = places_in("s3://bucket/set", ["labels.csv", "_classes.csv"])
    assert found == ["s3://bucket/set/labels.csv"]
    assert not [path for _, _, path, _ in s3.seen if re.search("prefix=set(%2F|/)(&|$)", path)]


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
    first = fingerprint(names)
    assert [verb for _, verb, *_ in s3.seen] == ["GET"]
    assert fingerprint(names) == first
    storage.write_bytes("s3://bucket/films/b.png", b"another")
    assert fingerprint(names) != first


def test_a_bucket_that_is_not_there_is_named(s3: Proxy) -> None:
    with pytest.raises(CannotRunError, match="nowhere"):
        storage.write_bytes("s3://nowhere/a.bin", b"x")
