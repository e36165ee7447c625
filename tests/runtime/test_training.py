"""The training loop on real workers: lost workers, exact resume, refusals."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from pmm_ray.config import RunConfig
from pmm_ray.nets.checkpoints import load_model
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from pmm_ray.runtime.training.job import TrainingJob
from pmm_ray.runtime.training.launch import run_training
from pmm_ray.runtime.training.task import decayed
from pmm_ray.runtime.training.train import training_job
from pmm_ray.runtime.training.workers import loader_processes
from pmm_ray.stages.train_classifier import ClassifierLoss, ClassifierTask
from pmm_ray.stages.train_segmenter import SegmenterTask

from ..training import task_fields, truth_masks

STEPS = 5
LOST_AT = 3
CONFIG = RunConfig.model_validate(
    {
        "classifier": {"weights": "none", "batch_size": 4, "resize_long": [32, 48]}
        | {"crop_size": 32, "output_stride": 32, "epochs": 1},
        "segmenter": {"weights": "none", "batch_size": 4, "iterations": STEPS, "crop_size": 48}
        | {"channels": 8, "resize_base": [96, 48], "output_stride": 32, "dropout": 0.5}
        | {"checkpoint_seconds": 1e-6, "max_failures": 1},
    }
)


pytestmark = pytest.mark.usefixtures("pickled_by_value")


class FragileTask(SegmenterTask):
    """Its second worker's process is lost once, in the middle of the training."""

    marker: str = ""

    def learning_rate(self, step: int, steps: int) -> float:
        if step == LOST_AT and os.environ.get("RANK") == "1" and not Path(self.marker).exists():
            Path(self.marker).touch()
            os._exit(1)
        return super().learning_rate(step, steps)


def segmenter_job(
    context: RunContext, name: str, masks_uri: str, task_type: type[SegmenterTask]
) -> TrainingJob:
    fields = task_fields(context.manifest, CONFIG.segmenter, stage=name, masks_uri=masks_uri)
    task = task_type(**fields, round=0)
    if isinstance(task, FragileTask):
        task.marker = f"{masks_uri}.lost"
    folder = StageFolder.below(context.run_dir, name, "0")
    return training_job(task, context, folder)


def losses(context: RunContext, stage: str) -> dict[int, float]:
    """Loss by step; of a step that was repeated, the last one."""
    events = read_events(context.run_dir, "train_step")
    return {event["step"]: event["loss"] for event in events if event["stage"] == stage}


@pytest.mark.slow
def test_a_lost_worker_is_replaced_and_the_training_goes_on_exactly(
    shapes: Manifest, make_context: Any, tmp_path: Path
) -> None:
    context = make_context(shapes, CONFIG)
    masks_uri = truth_masks(shapes, tmp_path / "masks")
    models = {}
    for name, kind in (("whole", SegmenterTask), ("lost", FragileTask)):
        job = segmenter_job(context, name, masks_uri, kind)
        run_training(job, context)
        models[name], _ = load_model(job.model_uri, "segmenter")
        assert not checkpoints(job.checkpoints_uri)
    assert Path(f"{masks_uri}.lost").exists()
    want, got = losses(context, "whole"), losses(context, "lost")
    assert sorted(want) == sorted(got) == list(range(1, STEPS + 1))
    assert got == pytest.approx(want, rel=1e-4)
    # it went on at the checkpoint instead of beginning again
    steps = [e["step"] for e in read_events(context.run_dir, "train_step") if e["stage"] == "lost"]
    assert steps.count(1) == 1
    for key, tensor in models["whole"].items():
        torch.testing.assert_close(models["lost"][key], tensor, rtol=1e-3, atol=1e-5)


class NanLoss(ClassifierLoss):
    def forward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return super().forward(inputs, targets) * float("nan")


class NanTask(ClassifierTask):
    def build(self) -> Any:
        return NanLoss(super().build().network)


@pytest.mark.slow
def test_a_loss_that_is_never_finite_ends_with_advice(shapes: Manifest, make_context: Any) -> None:
    context = make_context(shapes, CONFIG)
    config = CONFIG.classifier.model_copy(update={"epochs": 30, "max_failures": 0})
    task = NanTask(**task_fields(shapes, config, stage="nan"))
    folder = StageFolder.below(context.run_dir, "nan", "0")
    job = training_job(task, context, folder)
    with pytest.raises(CannotRunError, match="not finite for 10 steps"):
        run_training(job, context)


def test_a_training_that_raises_leaves_no_reporter(
    shapes: Manifest, make_context: Any, tmp_path: Path
) -> None:
    def reporters() -> list[str]:
        actors = ray._private.state.actors().values()
        ours = [a for a in actors if a["ActorClassName"] == "Reporter"]
        return [a["ActorID"] for a in ours if a["State"] != "DEAD"]

    context = make_context(shapes, CONFIG)
    job = segmenter_job(context, "file", truth_masks(shapes, tmp_path / "masks"), SegmenterTask)
    (tmp_path / "file").touch()
    assert not reporters()
    # what was raised holds the frames, and they their variables: nobody else ends the actor
    with pytest.raises(CannotRunError, match="cannot make the folder") as raised:
        run_training(
            dataclasses.replace(job, checkpoints_uri=str(tmp_path / "file" / "train")), context
        )
    deadline = time.monotonic() + 20
    while reporters() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not reporters(), raised


def test_more_workers_than_cpus_are_refused_at_once(
    shapes: Manifest, make_context: Any, tmp_path: Path
) -> None:
    context = make_context(shapes, CONFIG)
    job = segmenter_job(context, "big", truth_masks(shapes, tmp_path / "masks"), SegmenterTask)
    with pytest.raises(CannotRunError, match=r"4 workers needs 4 times 1 CPUs, .* room for 2"):
        run_training(dataclasses.replace(job, workers=4), context)
    # nothing was started
    assert not storage.exists(job.checkpoints_uri)


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    folder = str(tmp_path / "train")
    assert checkpoints(folder) == []
    for step in (10, 20, 100):
        save_checkpoint(folder, step, {"step": step, "network": {"a": torch.ones(2)}})
    (tmp_path / "train" / ".step-000000200.pt.1234.tmp").write_bytes(b"half")
    found = checkpoints(folder)
    assert [step for step, _ in found] == [20, 100]
    assert load_checkpoint(found[-1][1])["step"] == 100


@pytest.mark.parametrize(
    ("asked", "cpus", "gpus", "workers", "want"),
    [
        ("auto", 64.0, 0.0, 2, 0),  # the CPUs compute
        ("auto", 8.0, 1.0, 1, 7),
        ("auto", 64.0, 4.0, 4, 8),
        ("auto", 4.0, 4.0, 4, 0),
        (3, 4.0, 4.0, 4, 3),
        (0, 64.0, 4.0, 4, 0),
    ],
)
def test_loader_processes(
    asked: int | str, cpus: float, gpus: float, workers: int, want: int
) -> None:
    config = RunConfig.model_validate({"classifier": {"loader_processes": asked}}).classifier
    cluster = ClusterResources(cpus=cpus, gpus=gpus, nodes=1, local=True)
    assert loader_processes(config, cluster, workers) == want


@pytest.mark.parametrize(("step", "want"), [(0, 1.0), (50, 0.1 + 0.9 * 0.5**0.9), (100, 0.1)])
def test_the_poly_schedule(step: int, want: float) -> None:
    assert decayed(step, 100, 1.0, 0.1, 0.9) == pytest.approx(want)


@pytest.mark.parametrize(("step", "want"), [(0, 1.0), (25, 0.8682), (50, 0.55), (100, 0.1)])
def test_the_cosine_schedule(step: int, want: float) -> None:
    assert decayed(step, 100, 1.0, 0.1, None) == pytest.approx(want, abs=1e-4)


DRIVER = """
import io, sys
from pathlib import Path
from pmm_ray.config import RunConfig
from pmm_ray.runtime.cluster.connect import connect
from pmm_ray.runtime.core.events import EventLog
from pmm_ray.runtime.core.lease import hold
from pmm_ray.runtime.core.progress import Progress
from types import SimpleNamespace
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.core.manifest import open_manifest
from pmm_ray.stages import train_classifier

run_dir, manifest = sys.argv[1:]
config = RunConfig.model_validate({
    "classifier": {"batch_size": 4, "resize_long": [32, 48], "crop_size": 32,
                   "output_stride": 32, "epochs": 40, "checkpoint_seconds": 0.2},
    "runtime": {"cpus": 2, "object_store_bytes": 150_000_000},
})
with (
    hold(run_dir, "a") as lost,
    connect("local", config.runtime, run_dir) as cluster,
):
    context = SimpleNamespace(
        run_dir=run_dir, config=config, manifest=open_manifest(manifest), cluster=cluster,
        events=EventLog(run_dir, "driver"), progress=Progress(stream=io.StringIO()),
        attempt="a", lost=lost)
    folder = StageFolder.below(run_dir, "train_classifier", "0")
    train_classifier.run(config.classifier, context, folder)
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_killed_driver_resumes_exactly(shapes: Manifest, tmp_path: Path) -> None:
    def start(run_dir: Path) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", DRIVER, str(run_dir), shapes.uri]
        return subprocess.Popen(command)

    assert start(tmp_path / "whole").wait(150) == 0
    process = start(tmp_path / "killed")
    folder = str(tmp_path / "killed" / "train_classifier-0" / "train")
    deadline = time.monotonic() + 100
    while not checkpoints(folder) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    step = checkpoints(folder)[-1][0]
    time.sleep(5)  # its workers notice and end
    assert start(tmp_path / "killed").wait(150) == 0
    rows = {
        name: [(e["step"], e["loss"]) for e in read_events(str(tmp_path / name), "train_step")]
        for name in ("whole", "killed")
    }
    assert [s for s, _ in rows["killed"]].count(1) == 1
    assert step > 0
    assert dict(rows["killed"]) == pytest.approx(dict(rows["whole"]), rel=1e-4)
