"""Checkpoints are written beside the training, and outlast a store that fails."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.training import checkpoint
from pmm_ray.runtime.training.checkpoint import (
    CheckpointWriter,
    checkpoints,
    forget_local,
    load_best,
    load_checkpoint,
    local_copies,
    newest,
    on_cpu,
    save_checkpoint,
)

from ..training import losses, train
from .test_train_worker import job

Told = list[tuple[str, dict[str, Any]]]


def content(step: int, best: int = 0) -> dict[str, Any]:
    return {"fingerprint": "f", "step": step, "best": (best, 0.5), "network": {"w": torch.ones(3)}}


@pytest.fixture
def told() -> Told:
    return []


def nothing() -> None: ...


def writer(folder: str, scratch: Path, told: Told) -> CheckpointWriter:
    def tell(event: str, **about: Any) -> None:
        told.append((event, about))

    return CheckpointWriter(folder, scratch, tell, nothing)


def test_a_state_is_copied_before_it_changes(tmp_path: Path, told: Told) -> None:
    weights = torch.ones(2)
    copy = on_cpu({"a": [weights, (weights, 3)], "b": None})
    weights.zero_()
    assert copy["a"][0].tolist() == [1, 1]
    assert copy["a"][1][1] == 3
    own = writer(str(tmp_path / "train"), tmp_path, told)
    state = content(5)
    own.save(5, state)
    state["network"]["w"].zero_()
    assert own.wait(20)
    own.close()
    [(step, uri)] = checkpoints(str(tmp_path / "train"))
    assert step == 5
    assert load_checkpoint(uri)["network"]["w"].tolist() == [1, 1, 1]
    assert told == [("checkpoint", {"step": 5})]


def failing(monkeypatch: pytest.MonkeyPatch, times: int, where: str = "step-") -> Callable[[], int]:
    """A store that fails so often at names with a text."""
    whole, failures = storage.write_bytes, []

    def write(uri: str, data: bytes) -> None:
        if where in uri and len(failures) < times:
            failures.append(uri)
            raise CannotRunError(f"the store fails for {uri}")
        whole(uri, data)

    monkeypatch.setattr(storage, "write_bytes", write)
    monkeypatch.setattr(checkpoint, "_AGAIN_SECONDS", 0.05)
    return lambda: len(failures)


def test_a_store_that_fails_is_tried_again_and_the_newest_is_written(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = failing(monkeypatch, 3)
    own = writer(str(tmp_path / "train"), tmp_path, told)
    own.save(1, content(1))
    while count() < 1:
        time.sleep(0.01)
    own.save(2, content(2))
    assert own.wait(20)
    own.close()
    assert own.failure is None
    assert [step for step, _ in checkpoints(str(tmp_path / "train"))] == [2]
    assert [event for event, _ in told] == ["checkpoint_failed"] * 3 + ["checkpoint"]


def test_the_best_network_is_there_before_the_state_that_names_it(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, 2, "best-")
    folder = str(tmp_path / "train")
    own = writer(folder, tmp_path, told)
    own.save_best(3, {"w": torch.zeros(1)})
    own.save(4, content(4, best=3))
    while not checkpoints(folder):
        time.sleep(0.01)
    assert load_best(folder, 3)["w"].tolist() == [0]
    own.close(5)


def test_an_older_state_that_is_written_late_deletes_no_newer_best_network(
    tmp_path: Path, told: Told
) -> None:
    folder = str(tmp_path / "train")
    own = writer(folder, tmp_path, told)
    for best, state in ((3, 4), (5, 4)):
        own.save_best(best, {"w": torch.full((1,), float(best))})
        assert own.wait(20)
        own.save(state, content(state, best=3))
        assert own.wait(20)
    assert load_best(folder, 5)["w"].tolist() == [5]
    own.save(6, content(6, best=5))
    assert own.wait(20)
    own.close()
    assert not Path(folder, "best-000000003.pt").exists()
    assert load_best(folder, 5)["w"].tolist() == [5]


def test_a_state_whose_best_network_was_replaced_before_it_was_written_is_dropped(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = failing(monkeypatch, 1, "best-000000003")
    monkeypatch.setattr(checkpoint, "_AGAIN_SECONDS", 0.5)
    folder = str(tmp_path / "train")
    own = writer(folder, tmp_path, told)
    own.save_best(3, {"w": torch.zeros(1)})
    while not count():
        time.sleep(0.01)
    own.save(4, content(4, best=3))
    own.save_best(5, {"w": torch.ones(1)})
    assert own.wait(20)
    own.close()
    assert checkpoints(folder) == []
    assert load_best(folder, 5)["w"].tolist() == [1]


def test_the_writer_outlives_any_error_and_a_listener_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, failures = storage.write_bytes, []

    def write(uri: str, data: bytes) -> None:
        if not failures:
            failures.append(uri)
            raise ValueError
        whole(uri, data)

    def told(event: str, **about: Any) -> None:
        raise RuntimeError(event)

    monkeypatch.setattr(storage, "write_bytes", write)
    monkeypatch.setattr(checkpoint, "_AGAIN_SECONDS", 0.2)
    own = CheckpointWriter(str(tmp_path / "train"), tmp_path, told, nothing)
    own.save(1, content(1))
    while not failures:
        time.sleep(0.01)
    time.sleep(0.05)
    assert own.failure == "ValueError"
    assert own.wait(20)
    own.close()
    assert own.failure is None
    assert [step for step, _ in checkpoints(str(tmp_path / "train"))] == [1]


def test_a_writer_that_is_closed_waits_for_nothing(
    tmp_path: Path, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = failing(monkeypatch, 10**9)
    own = writer(str(tmp_path / "train"), tmp_path, told)
    own.save(1, content(1))
    while not count():
        time.sleep(0.01)
    own.close()
    began = time.monotonic()
    own.close(20)
    assert time.monotonic() - began < 10


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder that counts as a bucket."""
    remote = SimpleNamespace(**vars(storage) | {"is_remote": lambda uri: True})
    monkeypatch.setattr(checkpoint, "storage", remote)
    return str(tmp_path / "bucket")


def test_a_scratch_that_fails_costs_the_bucket_no_checkpoint(
    tmp_path: Path, told: Told, bucket: str
) -> None:
    (tmp_path / "scratch").touch()
    own = writer(bucket, tmp_path / "scratch", told)
    for step in (1, 2):
        own.save(step, content(step))
        assert own.wait(20)
        assert own.failure is None
    own.close()
    assert [step for step, _ in checkpoints(bucket)] == [1, 2]
    assert [event for event, _ in told] == ["checkpoint_copy_failed", "checkpoint", "checkpoint"]
    assert str(tmp_path / "scratch") in told[0][1]["reason"]


def test_copies_of_a_training_that_is_done_and_old_ones_are_deleted(
    tmp_path: Path, bucket: str
) -> None:
    scratch = tmp_path / "scratch"
    kept = {}
    for name in ("own", "new", "old"):
        folder = f"{bucket}/{name}"
        save_checkpoint(local_copies(scratch, folder), 4, content(4))
        kept[name] = checkpoint._copies(scratch, folder)
    week = time.time() - 8 * 24 * 3600
    for path in [*kept["old"].rglob("*"), kept["old"]]:
        os.utime(path, (week, week))
    forget_local(f"{bucket}/own", scratch)
    assert [name for name, path in kept.items() if path.exists()] == ["new"]


def test_a_checkpoint_that_only_reached_the_nodes_disk_is_gone_on_from(
    tmp_path: Path, bucket: str
) -> None:
    folder, scratch = bucket, tmp_path / "scratch"
    save_checkpoint(folder, 4, content(4))
    save_checkpoint(local_copies(scratch, folder), 6, content(6))
    # of another training: not ours to go on from
    assert newest(folder, scratch, "other") == checkpoints(folder)[-1][1]
    uri = newest(folder, scratch, "f")
    assert uri is not None
    assert uri.endswith("step-000000006.pt")
    assert load_checkpoint(uri)["step"] == 6
    save_checkpoint(local_copies(scratch, folder), 8, content(8))
    storage.delete_folder(folder)  # --fresh
    assert newest(folder, scratch, "f") is None


def test_steps_go_on_while_a_checkpoint_is_written(
    shapes: Manifest, group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, last_step = storage.write_bytes, threading.Event()

    def slow(uri: str, data: bytes) -> None:
        if "/step-" in uri:
            assert last_step.wait(120)
        whole(uri, data)

    monkeypatch.setattr(storage, "write_bytes", slow)
    this = job(shapes, tmp_path)
    rate = type(this.task).learning_rate

    def watched(task: Any, step: int, steps: int) -> float:
        if step == steps - 1:
            last_step.set()
        return rate(task, step, steps)

    monkeypatch.setattr(type(this.task), "learning_rate", watched)
    result = train(this)
    # a training that waited for its first checkpoint would never have come to its last step
    assert result["steps"] == this.steps


def test_an_outage_of_the_bucket_costs_a_training_nothing(
    shapes: Manifest, group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(job(shapes, tmp_path / "whole"))
    failing(monkeypatch, 10**9)
    train(job(shapes, tmp_path / "outage"))
    assert losses(tmp_path / "outage") == losses(tmp_path / "whole")
    assert list(read_events(str(tmp_path / "outage"), "checkpoint_failed"))
