"""The training loop: in this process on a gloo group of one, and on two workers of a real Ray."""

from __future__ import annotations

import dataclasses
import math
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pmm_ray.config import RunConfig, RuntimeConfig
from pmm_ray.nets.registry import load_classifier
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.training.checkpoint import checkpoints
from pmm_ray.runtime.training.job import TrainingJob
from pmm_ray.runtime.training.launch import run_training
from pmm_ray.stages.train_classifier import ClassifierLoss, ClassifierTask

from ..training import losses, task_fields, train, training_job

STEPS = 5
STOP_AT = 3
CONFIG = RunConfig.model_validate(
    {"classifier": {"resize_long": [32, 48], "crop_size": 32, "output_stride": 32}}
)


class DropoutLoss(ClassifierLoss):
    """Draws from torch's generator at every step, as a segmenter's dropout does."""

    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        noise = torch.nn.functional.dropout(torch.ones_like(inputs), 0.2)
        return super().forward(inputs * noise, targets)


@dataclasses.dataclass(kw_only=True)
class TroubledTask(ClassifierTask):
    """Raises at a step until the marker is there."""

    marker: str = ""
    dropout: bool = False

    def build(self) -> ClassifierLoss:
        loss = super().build()
        return DropoutLoss(loss.network) if self.dropout else loss

    def learning_rate(self, step: int, steps: int) -> float:
        if self.marker and step == STOP_AT and not Path(self.marker).exists():
            raise RuntimeError("told to stop here")
        return super().learning_rate(step, steps)


def job(manifest: Manifest, run_dir: Path, **changes: Any) -> TrainingJob:
    options = {k: changes.pop(k) for k in ("marker", "dropout") if k in changes}
    task = TroubledTask(**task_fields(manifest, CONFIG.classifier, **options))
    values = {"images": len(task.dataset()), "steps": STEPS}
    return training_job(task, run_dir, **values | changes)


def test_each_node_has_its_own_default_scratch(
    shapes: Manifest, group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver's shell may have another TMPDIR than the nodes, which the preflight asked."""
    this = job(shapes, tmp_path / "run", runtime=RuntimeConfig(), steps=1)
    node = tmp_path / "node"
    monkeypatch.setattr(tempfile, "tempdir", str(node))
    train(this)
    assert (node / f"pmm-ray-{os.getuid()}").is_dir()
    own = tmp_path / "file"
    own.touch()
    told = train(dataclasses.replace(this, runtime=RuntimeConfig(scratch=str(own))))
    assert "set runtime.scratch" in told["stopped"]
    assert not told["may_pass"]


def test_a_stopped_training_goes_on_bit_for_bit(
    shapes: Manifest, group: None, tmp_path: Path
) -> None:
    whole = job(shapes, tmp_path / "whole", dropout=True)
    train(whole)
    marker = tmp_path / "stopped"
    stopped = job(shapes, tmp_path / "parts", dropout=True, marker=str(marker))
    with pytest.raises(RuntimeError, match="told to stop"):
        train(stopped)
    assert [step for step, _ in checkpoints(stopped.checkpoints_uri)] == [STOP_AT - 1, STOP_AT]
    assert not storage.exists(stopped.model_uri)
    marker.touch()
    train(stopped)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    assert len({loss for _, loss in losses(tmp_path / "whole")}) == STEPS
    want, got = (load_classifier(j.model_uri)[0].state_dict() for j in (whole, stopped))
    assert all(torch.equal(got[name], tensor) for name, tensor in want.items())


def test_the_share_of_waiting_is_measured(
    shapes: Manifest, group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pmm_ray.runtime.training import worker as train_worker

    clock = [0.0]
    monkeypatch.setattr(train_worker.time, "monotonic", lambda: clock[0])

    def slow(*arguments: Any, **options: Any) -> Iterator[Any]:
        for batch in loader(*arguments, **options):
            clock[0] += 3.0
            yield batch

    def step(self: Any, *arguments: Any) -> torch.Tensor:
        clock[0] += 1.0
        return torch.tensor([0.5])

    loader = train_worker.batches
    monkeypatch.setattr(train_worker, "batches", slow)
    monkeypatch.setattr(train_worker._Worker, "_step", step)
    result = train(job(shapes, tmp_path, checkpoint_seconds=1e9))
    assert result["loader_wait"] == pytest.approx(0.75)
    shares = [e["loader_wait"] for e in read_events(str(tmp_path), "train_step")]
    assert shares[1:] == pytest.approx([0.75] * (STEPS - 1))


def test_checkpoints_of_another_training_are_not_resumed(
    shapes: Manifest, group: None, tmp_path: Path
) -> None:
    train(job(shapes, tmp_path))
    train(job(shapes, tmp_path, fingerprint="other"))
    assert [step for step, _ in losses(tmp_path)] == [*range(1, STEPS + 1)] * 2


def test_a_run_killed_before_it_wrote_the_network_still_knows_its_loss(
    shapes: Manifest, group: None, tmp_path: Path
) -> None:
    this = job(shapes, tmp_path)
    train(this)
    # a step that ends while another is written leaves no checkpoint of its own
    last = checkpoints(this.checkpoints_uri)[-1][0]
    assert 0 < last < STEPS
    storage.delete_file(this.model_uri)
    assert math.isfinite(train(this)["loss"])
    assert [step for step, _ in losses(tmp_path)] == [
        *range(1, STEPS + 1),
        *range(last + 1, STEPS + 1),
    ]


def test_an_update_that_is_not_finite_is_left_out(
    shapes: Manifest, group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    this = job(shapes, tmp_path)
    forward, calls = ClassifierLoss.forward, []

    def sometimes(self: ClassifierLoss, inputs: torch.Tensor, targets: torch.Tensor) -> Any:
        calls.append(len(calls))
        return forward(self, inputs, targets) * (math.nan if calls[-1] in (1, 2) else 1)

    monkeypatch.setattr(ClassifierLoss, "forward", sometimes)
    assert train(this)["skipped"] == 2
    net, meta = load_classifier(this.model_uri)
    assert meta["training"]["skipped"] == 2
    assert all(torch.isfinite(tensor).all() for tensor in net.state_dict().values())
    assert math.isfinite(meta["training"]["loss"])


def test_a_request_to_save_is_answered_once_though_workers_hear_of_it_at_other_times(
    shapes: Manifest, group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pmm_ray.runtime.training import worker as train_worker
    from pmm_ray.runtime.training.reporter import Phase

    phase = Phase(None, 0)
    worker = train_worker._Worker(job(shapes, tmp_path), None, 0, 2, torch.device("cpu"), phase)
    requests = iter([0.0, 1.0, 1.0, 1.0, 2.0])  # as the other worker knows of them

    def with_the_other(known: torch.Tensor) -> torch.Tensor:
        return torch.maximum(known, torch.tensor([0.0, next(requests)]))

    monkeypatch.setattr(train_worker, "largest", with_the_other)
    saves = []
    for phase.asked in (0, 0, 0, 1, 1):
        problem, save = worker._agreed()
        assert problem is None
        saves.append(save)
    assert saves == [False, True, False, False, True]


def test_a_data_set_that_changed_is_refused(shapes: Manifest, group: None, tmp_path: Path) -> None:
    stopped = train(job(shapes, tmp_path, images=99))["stopped"]
    assert "instead of 99" in stopped
    assert not losses(tmp_path)


@pytest.mark.parametrize("processes", [0, 1])
def test_unusable_images_end_it_with_one_line(
    shapes: Manifest, group: None, tmp_path: Path, processes: int
) -> None:
    table = tables.read_table(shapes.uri)
    column = table.schema.get_field_index("uri")
    gone = table.set_column(column, "uri", [["/gone.jpg"] * table.num_rows])
    (tmp_path / "data").mkdir()
    uri = str(tmp_path / "data" / "manifest.parquet")
    storage.write_bytes(uri, tables.to_bytes(gone))
    this = job(shapes, tmp_path, loader_processes=processes)
    broken = dataclasses.replace(this.task, manifest_uri=uri)  # type: ignore[type-var]
    stopped = train(dataclasses.replace(this, task=broken))["stopped"]
    assert stopped.startswith("stage: 20 images in a row cannot be used")
    assert "missing" in stopped
    assert "\n" not in stopped


@pytest.mark.usefixtures("pickled_by_value")
def test_two_workers_learn_what_one_learns_and_resume_after_an_exception(
    shapes: Manifest, group: None, make_context: Any, tmp_path: Path
) -> None:
    context = make_context(shapes, CONFIG)
    run_dir = Path(context.run_dir)
    marker = tmp_path / "stopped"
    two = job(shapes, run_dir, workers=2, marker=str(marker))
    with pytest.raises(CannotRunError, match="told to stop here"):
        run_training(two, context)
    marker.touch()
    run_training(two, context)
    train(job(shapes, tmp_path / "one"))
    # Ray ends a worker beside one that failed: its last checkpoint may not be written by then, and
    # a step that is made again must give the same loss
    found, want = losses(run_dir), dict(losses(tmp_path / "one"))
    assert sorted(dict(found)) == [*range(1, STEPS + 1)]
    assert len(found) <= STEPS + STOP_AT
    assert [loss for _, loss in found] == pytest.approx([want[step] for step, _ in found], rel=1e-4)
    assert "workers" not in load_classifier(two.model_uri)[1]["training"]
    # of a run that was killed between the network and its summary
    storage.make_folder(two.checkpoints_uri)
    run_training(two, context)
    assert not storage.exists(two.checkpoints_uri)
    assert losses(run_dir) == found


@pytest.mark.slow
@pytest.mark.usefixtures("pickled_by_value")
def test_an_elastic_training_goes_on_with_more_workers(
    shapes: Manifest, group: None, make_context: Any, tmp_path: Path
) -> None:
    context = make_context(shapes, CONFIG)
    run_dir = Path(context.run_dir)
    marker = tmp_path / "stopped"
    one = job(shapes, run_dir, elastic=True, marker=str(marker))
    with pytest.raises(RuntimeError, match="told to stop"):
        train(one)
    marker.touch()
    run_training(one, context)
    train(job(shapes, tmp_path / "one"))
    assert [step for step, _ in losses(run_dir)] == [*range(1, STEPS + 1)]
    assert dict(losses(run_dir)) == pytest.approx(dict(losses(tmp_path / "one")), rel=1e-4)
    by_step = load_classifier(one.model_uri)[1]["training"]["workers"]
    assert by_step == [[0, 1], [STOP_AT, 2]]
