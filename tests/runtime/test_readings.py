"""The loss is read every few steps, as on a GPU: what that may change, and what it must not."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pmm_ray.nets.registry import load_classifier
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.training import readings
from pmm_ray.runtime.training import worker as train_worker
from pmm_ray.runtime.training.checkpoint import checkpoints
from pmm_ray.runtime.training.job import TrainingJob
from pmm_ray.stages.train_classifier import ClassifierLoss, ClassifierTask

from ..nets.waits import waits
from ..training import losses, train
from .test_train_worker import CONFIG, task_fields, training_job

STEPS = 9


@dataclasses.dataclass(kw_only=True)
class FusedTask(ClassifierTask):
    """Its optimiser can leave an update out by itself, as one on a GPU."""

    def optimizer(self, network: torch.nn.Module) -> torch.optim.Optimizer:
        groups = self.parameter_groups(network)
        return torch.optim.SGD(groups, lr=0.0, momentum=0.9, fused=True)


def job(manifest: Manifest, run_dir: Path, **changes: Any) -> TrainingJob:
    task = FusedTask(**task_fields(manifest, CONFIG.classifier))
    values = {"images": len(task.dataset()), "steps": STEPS}
    return training_job(task, run_dir, **values | changes)


@pytest.fixture
def every_four(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_worker, "_READ_EVERY", {"cpu": 4})
    monkeypatch.setattr(readings, "log_every", lambda steps: steps)


def not_finite(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    forward, calls = ClassifierLoss.forward, []

    def sometimes(self: ClassifierLoss, inputs: torch.Tensor, targets: torch.Tensor) -> Any:
        calls.append(len(calls))
        return forward(self, inputs, targets) * (math.nan if calls[-1] % STEPS in steps else 1)

    monkeypatch.setattr(ClassifierLoss, "forward", sometimes)


def state(this: TrainingJob) -> dict[str, torch.Tensor]:
    return load_classifier(this.model_uri)[0].state_dict()


@pytest.mark.parametrize("bad", [(), (2, 3, 6), (0, 1)], ids=str)
def test_a_loss_that_is_read_late_teaches_the_same(
    shapes: Manifest,
    group: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bad: tuple[int, ...],
) -> None:
    not_finite(monkeypatch, *bad)
    at_once, late = job(shapes, tmp_path / "at-once"), job(shapes, tmp_path / "late")
    assert train(at_once)["skipped"] == len(bad)
    monkeypatch.setattr(train_worker, "_READ_EVERY", {"cpu": 4})
    assert train(late)["skipped"] == len(bad)
    want, got = state(at_once), state(late)
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())
    assert all(torch.isfinite(tensor).all() for tensor in got.values())
    records = [losses(tmp_path / name) for name in ("at-once", "late")]
    assert str(records[0]) == str(records[1])  # NaN equals nothing


def test_it_reads_at_the_first_step_then_every_four_and_at_the_end(
    shapes: Manifest, group: None, tmp_path: Path, every_four: None, monkeypatch: Any
) -> None:
    read, reads = readings.Readings.read, []

    def noted(self: readings.Readings, names: Any) -> str | None:
        reads.append([each.step for each in self.unread])
        return read(self, names)

    monkeypatch.setattr(readings.Readings, "read", noted)
    this = job(shapes, tmp_path)
    train(this)
    assert reads == [[0], [1, 2, 3], [4, 5, 6, 7], [8]]
    # what is saved has been read
    assert {step for step, _ in checkpoints(this.checkpoints_uri)} <= {1, 4, 8}


@pytest.mark.usefixtures("every_four")
def test_a_loss_that_stays_not_finite_is_named_with_its_step(
    shapes: Manifest, group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readings, "_MAX_NOT_FINITE", 2)
    not_finite(monkeypatch, 5, 6)
    stopped = train(job(shapes, tmp_path))["stopped"]
    assert stopped.startswith("stage: the loss was not finite for 2 steps up to step 6")


@pytest.mark.usefixtures("every_four")
def test_images_that_end_between_two_readings_leave_no_checkpoint_of_other_images(
    shapes: Manifest, group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = train_worker.batches

    def short(*arguments: Any, **options: Any) -> Iterator[Any]:
        for number, batch in enumerate(loader(*arguments, **options)):
            if number == 6:
                raise CannotRunError("stage: the images are gone")
            yield batch

    monkeypatch.setattr(train_worker, "batches", short)
    this = job(shapes, tmp_path)
    assert train(this)["stopped"] == "stage: the images are gone"
    assert max(step for step, _ in checkpoints(this.checkpoints_uri)) <= 4
    assert not storage.exists(this.model_uri)


def test_nothing_waits_for_the_device_between_two_readings(
    shapes: Manifest, group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, noted = train_worker._Worker._step, {}

    def watched(self: Any, module: Any, batch: Any, number: int, rate: float) -> torch.Tensor:
        with waits() as found:
            sums = step(self, module, batch, number, rate)
        # torch sends small tensors to the device where they are
        noted[number] = [what for what in found if what != "to, blocking"]
        return sums

    monkeypatch.setattr(train_worker, "_READ_EVERY", {"cpu": 4})
    monkeypatch.setattr(train_worker._Worker, "_step", watched)
    train(job(shapes, tmp_path, clip_norm=1.0))
    assert noted[0]  # before the optimiser has a state
    assert {number: found for number, found in noted.items() if number} == {
        number: [] for number in range(1, STEPS)
    }
