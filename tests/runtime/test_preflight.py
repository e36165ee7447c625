"""What is asked of every node before a run, and the table of what is wrong."""

from __future__ import annotations

import dataclasses
import errno
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import ray

from pmm_ray.config import RuntimeConfig
from pmm_ray.labels import VOC12
from pmm_ray.runtime.cluster import preflight
from pmm_ray.runtime.cluster.preflight import (
    Facts,
    Question,
    Report,
    answer,
    inspect_cluster,
    judge,
)
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, MayPassError
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.rows.images import decode_mask, encode_mask, read_mask_size

GIB = 1024**3
VERSIONS = {"python": "3.11", "pmm-ray": "0.1.0 (code 12345678)", "torch": "2.13.0"}
SOUND = Facts(VERSIONS, scratch="/tmp/pmm-ray", scratch_free=50 * GIB, gpus_seen=4)


def test_a_sound_node_is_no_finding() -> None:
    assert judge("a", SOUND, VERSIONS, 4, 10 * GIB) == []
    Report(nodes={"a": SOUND}).require_healthy()


def test_images_for_cpus_and_for_gpus_are_one_version() -> None:
    """As the files in `cluster/` have them: `:cpu` on the head, `:cuda` on nodes with GPUs."""
    cuda = dataclasses.replace(SOUND, versions=VERSIONS | {"torch": "2.13.0+cu130"})
    assert judge("gpu", cuda, VERSIONS | {"torch": "2.13.0+cpu"}, 4, 0) == []
    [finding] = judge("gpu", cuda, VERSIONS | {"torch": "2.12.0+cu130"}, 4, 0)
    assert finding.found == "2.13.0+cu130, the driver has 2.12.0+cu130"


@pytest.mark.parametrize(
    ("change", "what", "found"),
    [
        ({"storage_error": "cannot write to /run: Permission denied"}, "run folder", "Permission"),
        ({"missing": ("/data/VOC",)}, "input", "/data/VOC is not there"),
        ({"versions": VERSIONS | {"torch": "2.12.0"}}, "torch", "2.12.0, the driver has 2.13.0"),
        ({"versions": {"python": "3.11", "torch": "2.13.0"}}, "pmm-ray", "none, the driver has"),
        ({"scratch_error": "[Errno 30] Read-only file system"}, "scratch", "Read-only"),
        ({"scratch_free": 9 * GIB}, "scratch", "9.0 GiB free in /tmp/pmm-ray"),
        ({"gpus_seen": 0}, "GPU", "torch sees 0, Ray counts 4"),
    ],
)
def test_each_fault_is_one_line_of_the_table(
    change: dict[str, object], what: str, found: str
) -> None:
    facts = dataclasses.replace(SOUND, **change)  # type: ignore[arg-type]
    [finding] = judge("node-7", facts, VERSIONS, 4, 10 * GIB)
    assert (finding.node, finding.what) == ("node-7", what)
    assert found in finding.found
    assert finding.advice
    with pytest.raises(CannotRunError, match="node-7") as error:
        Report(findings=[finding]).require_healthy()
    header, line = str(error.value).splitlines()[1:3]
    assert header.split() == ["node", "what", "found", "do"]
    assert header.index("do") == line.index(finding.advice)


def test_a_node_tells_its_faults_as_facts(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()
    runtime = RuntimeConfig(scratch=str(blocked / "below"))
    question = Question(str(tmp_path / "run"), "marker", (str(tmp_path / "gone"),), runtime)
    facts = answer(question, "n1")
    assert "cannot read what the driver wrote" in facts.storage_error
    assert facts.missing == (str(tmp_path / "gone"),)
    assert facts.scratch_free == 0
    assert facts.scratch_error == f"[Errno 20] Not a directory: '{blocked / 'below'}'"
    assert facts.gpus_seen is None


def test_every_node_of_a_cluster_is_asked(
    ray_session: ClusterResources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    report = inspect_cluster(str(run_dir), RuntimeConfig(), inputs=[str(tmp_path)])
    assert len(report.nodes) == 1
    assert report.findings == []
    [facts] = report.nodes.values()
    assert facts.versions == preflight.own_versions()
    assert not list(run_dir.iterdir())  # what was written to look is gone again

    monkeypatch.setattr(preflight, "own_versions", lambda: VERSIONS | {"torch": "1.0"})
    report = inspect_cluster(
        str(run_dir), RuntimeConfig(), inputs=["/nowhere"], scratch_bytes=10**18
    )
    assert {f.what for f in report.findings} >= {"input", "scratch", "torch", "pmm-ray"}


def nobody_answers(refs: list[Any], **options: Any) -> tuple[list[Any], list[Any]]:
    return [], refs


def lost(error: Exception) -> Callable[[Any], Any]:
    def get(ref: Any) -> Any:
        raise error

    return get


SILENT = [
    ("wait", nobody_answers, "no answer in 60 s"),
    ("get", lost(ray.exceptions.NodeDiedError("the node died")), "the node died"),
    ("get", lost(ray.exceptions.TaskUnschedulableError("no node")), "not schedulable: no node"),
    ("get", lost(ray.exceptions.WorkerCrashedError()), "The worker died unexpectedly"),
]


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize(("name", "does", "found"), SILENT)
def test_a_node_that_is_silent_may_be_back_and_one_that_is_gone_is_no_finding(
    name: str, does: Any, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, name, does)
    report = inspect_cluster(None, RuntimeConfig())
    [finding] = report.findings
    assert found in finding.found
    assert "pmm-ray" not in finding.advice
    with pytest.raises(MayPassError, match="not every node"):
        report.require_healthy()
    # with a fault that stays, another attempt would end in the same way
    report.findings += judge("b", dataclasses.replace(SOUND, gpus_seen=0), VERSIONS, 4, 0)
    with pytest.raises(CannotRunError) as error:
        report.require_healthy()
    assert not isinstance(error.value, MayPassError)

    before = ray.nodes()
    after = [node | {"Alive": False} for node in before]
    answers = iter([before, after])
    monkeypatch.setattr(ray, "nodes", lambda: next(answers))
    inspect_cluster(None, RuntimeConfig()).require_healthy()


@pytest.mark.usefixtures("ray_session")
def test_code_that_is_not_there_is_still_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "get", lost(ray.exceptions.RaySystemError("No module pmm_ray")))
    [finding] = inspect_cluster(None, RuntimeConfig()).findings
    assert "install the same pmm-ray" in finding.advice
    assert not finding.may_pass


@pytest.mark.parametrize("asked", ["run folder", "input"])
def test_a_node_that_does_not_reach_the_store_says_so(
    asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
            monkeypatch.setenv(name, "us-east-1")
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        monkeypatch.setattr(storage, "_S3_ATTEMPTS", 1)
        storage._filesystem.cache_clear()
        run_dir, inputs = ("s3://bucket/run", ()) if asked == "run folder" else (None, ("s3://b",))
        facts = answer(Question(run_dir, "marker", inputs, RuntimeConfig()), "n1")
        storage._filesystem.cache_clear()
    assert "the store fails for s3://b" in facts.store_failure
    assert (facts.storage_error, facts.missing) == ("", ())
    [finding] = judge("a", dataclasses.replace(facts, scratch_free=GIB), facts.versions, 0, 0)
    assert finding.what == "storage"
    with pytest.raises(MayPassError, match="the store fails"):
        Report(findings=[finding]).require_healthy()


def test_a_disk_that_fails_while_a_node_writes_may_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(uri: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", uri)

    storage.write_bytes(str(tmp_path / "marker" / "driver"), b"marker")
    monkeypatch.setattr(storage, "write_bytes", full)
    facts = answer(Question(str(tmp_path), "marker", (), RuntimeConfig()), "n1")
    assert "the disk is full" in facts.store_failure


def test_what_training_needs_in_scratch_bounds_the_masks_themselves(shapes: Manifest) -> None:
    rows = tables.read_table(shapes.uri).to_pylist()
    masks = [
        Path(shapes.locate(row["ground_truth_uri"])).stat().st_size
        for row in rows
        if row["split"] == "train"
    ]
    train = preflight.training_scratch(shapes.uri, "train")
    assert sum(masks) < train < 3 * sum(masks)
    assert preflight.training_scratch(shapes.uri, "absent") == 0
    assert preflight.training_scratch(None, "train") == 0


def test_cocos_masks_need_two_gigabytes_not_twenty_five(tmp_path: Path) -> None:
    columns = {"split": ["train"] * 82_081, "height": [480] * 82_081, "width": [640] * 82_081}
    uri = str(tmp_path / "manifest.parquet")
    storage.write_bytes(uri, tables.to_bytes(pa.table(columns)))
    assert GIB < preflight.training_scratch(uri, "train") < 2 * GIB


def test_no_mask_of_the_oracle_is_larger_than_is_asked_for(shared: Path) -> None:
    masks = sorted((shared / "data" / "oracle").glob("ppmg*/*.png"))
    assert masks
    for mask in masks:
        data = encode_mask(decode_mask(mask.read_bytes()), VOC12)
        height, width = read_mask_size(str(mask))
        most = height * width / preflight._PIXELS_PER_BYTE + preflight._BYTES_OF_A_MASK
        assert len(data) < most


def test_what_earlier_trainings_left_in_scratch_is_room_for_the_next(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    question = Question(None, "", (), RuntimeConfig(scratch=str(tmp_path)))
    with open(tmp_path / "masks" / "a.arrow", "wb") as file:
        file.truncate(10**13)  # sparse: it takes no room
    assert answer(question, "n1").scratch_free > 10**13
