"""A training loses a worker process, a node, or its driver: it goes on exactly where it was.

Losses of every step, and the weights at the end, are those of a training that nobody disturbed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from pmm_ray.nets.checkpoints import load_model
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.training.checkpoint import checkpoints

from .conftest import RayNodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

EPOCHS = 16
STEPS = 3 * EPOCHS
RECIPE = """
name: faults
data: {{source: shapes, images: 24, classes: 3, size: 64}}
classifier: {{epochs: {epochs}, batch_size: 6, resize_long: [48, 72], crop_size: 48,
             output_stride: 16, checkpoint_seconds: {every}, workers: {workers},
             loader_processes: {processes}, validation_images: 0, elastic: {elastic}}}
runtime: {{cpus: 2, object_store_bytes: 150000000, preflight: false}}
"""


class Training:
    """One run folder, and the command that trains in it."""

    def __init__(
        self,
        place: Path,
        workers: int,
        processes: int,
        address: str = "local",
        epochs: int = EPOCHS,
        every: float = 0.1,
        elastic: bool = False,
    ) -> None:
        place.mkdir()
        self.run_dir = place / "run"
        self.recipe = place / "recipe.yaml"
        values = {"epochs": epochs, "workers": workers, "processes": processes, "every": every}
        self.recipe.write_text(RECIPE.format(**values, elastic=str(elastic).lower()))
        self.address = address
        self.environment = dict(os.environ)

    def start(self) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "pmm_ray.cli", "run", str(self.recipe)]
        command += ["--run-dir", str(self.run_dir), "--until", "train_classifier"]
        command += ["--address", self.address]
        return subprocess.Popen(
            command,
            env=self.environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    def finish(self, process: subprocess.Popen[str] | None = None) -> None:
        process = process or self.start()
        _, errors = process.communicate(timeout=400)
        assert process.returncode == 0, errors

    def wait_for_checkpoint(self, process: subprocess.Popen[str]) -> int:
        """Step of the newest checkpoint, as soon as there is one well inside the training."""
        deadline = time.monotonic() + 300
        while True:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline, "no checkpoint was written"
            for folder in self.run_dir.glob("train_classifier-*/train"):
                found = checkpoints(str(folder))
                if found and found[-1][0] >= 6:
                    return found[-1][0]
            time.sleep(0.02)

    @property
    def steps(self) -> list[tuple[int, float]]:
        events = read_events(str(self.run_dir), "train_step")
        return [(event["step"], event["loss"]) for event in events]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        [model] = self.run_dir.glob("train_classifier-*/model.pt")
        return load_model(str(model), "classifier")[0]


def check(disturbed: Training, whole: Training, at_least: int) -> None:
    """It went on at a checkpoint, with the steps, losses and weights of the whole training."""
    steps = [step for step, _ in disturbed.steps]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    repeated = {step for step in steps if steps.count(step) > 1}
    # what a checkpoint covered was not trained again
    assert not repeated & set(range(1, at_least + 1))
    assert dict(disturbed.steps) == pytest.approx(dict(whole.steps), rel=1e-4)
    want, got = whole.weights, disturbed.weights
    assert set(got) == set(want)
    for name, tensor in want.items():
        torch.testing.assert_close(got[name], tensor, rtol=1e-3, atol=1e-5)
    # the network is written: its checkpoints are gone
    assert not list(disturbed.run_dir.glob("train_classifier-*/train/*.pt"))


def train_workers(above: psutil.Process) -> list[psutil.Process]:
    found = []
    for process in above.children(recursive=True):
        try:
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


@pytest.mark.parametrize(("workers", "processes"), [(2, 0), (1, 1)])
def test_a_killed_worker_process_is_replaced(tmp_path: Path, workers: int, processes: int) -> None:
    whole = Training(tmp_path / "whole", workers, processes)
    whole.finish()
    lost = Training(tmp_path / "lost", workers, processes)
    process = lost.start()
    at_least = lost.wait_for_checkpoint(process)
    victim = train_workers(psutil.Process(process.pid))[-1]
    loaders = victim.children(recursive=True)
    assert bool(loaders) == bool(processes)
    victim.send_signal(signal.SIGKILL)
    lost.finish(process)
    check(lost, whole, at_least)
    # decoding processes do not outlive the worker that they decode for
    assert not psutil.wait_procs(loaders, timeout=30)[1]


def test_a_killed_driver_goes_on(tmp_path: Path) -> None:
    whole = Training(tmp_path / "whole", 1, 1)
    whole.finish()
    killed = Training(tmp_path / "killed", 1, 1)
    process = killed.start()
    at_least = killed.wait_for_checkpoint(process)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not psutil.wait_procs(started, timeout=120)[1]
    killed.finish()
    check(killed, whole, at_least)


def test_a_stopped_job_saves_where_it_is_and_goes_on_from_there(tmp_path: Path) -> None:
    """SIGTERM, of `ray job stop`, Slurm or Kubernetes, where no checkpoint is due for hours."""
    stopped = Training(tmp_path / "stopped", 2, 0, epochs=200, every=10_000)
    process = stopped.start()
    deadline = time.monotonic() + 300
    while len(stopped.steps) < 5:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "no step was trained"
        time.sleep(0.1)
    seen = len(stopped.steps)
    process.send_signal(signal.SIGTERM)
    _, printed = process.communicate(timeout=120)
    assert process.returncode == 130, printed
    [folder] = stopped.run_dir.glob("train_classifier-*/train")
    [(saved, _)] = checkpoints(str(folder))
    assert seen <= saved < 600
    assert f"the training is saved at step {saved}" in printed
    before = len(stopped.steps)

    process = stopped.start()
    while len(stopped.steps) < before + 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline + 300, "it did not go on"
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert [step for step, _ in stopped.steps[before : before + 3]] == [
        saved + 1,
        saved + 2,
        saved + 3,
    ]


def test_a_lost_node_is_replaced(tmp_path: Path, ray_head: RayNodes) -> None:
    two_nodes(ray_head)
    address = f"127.0.0.1:{ray_head.port}"
    trainings: list[Training] = []
    for name in ("whole", "lost"):
        training = Training(tmp_path / name, 2, 0, address)
        training.environment = ray_head.client_environment
        trainings.append(training)
    whole, lost = trainings
    whole.finish()
    process = lost.start()
    at_least = lost.wait_for_checkpoint(process)
    node = ray_head.processes.pop()
    kill_node(node, lambda: bool(train_workers(psutil.Process(node.pid))))
    ray_head.start_worker("--num-cpus=1")
    lost.finish(process)
    check(lost, whole, at_least)


def test_an_elastic_training_goes_on_without_a_lost_node(
    tmp_path: Path, ray_head: RayNodes
) -> None:
    two_nodes(ray_head)
    address = f"127.0.0.1:{ray_head.port}"
    whole, lost = (
        Training(tmp_path / name, 2, 0, address, elastic=name == "lost")
        for name in ("whole", "lost")
    )
    whole.environment = lost.environment = ray_head.client_environment
    whole.finish()
    process = lost.start()
    at_least = lost.wait_for_checkpoint(process)
    node = ray_head.processes.pop()
    kill_node(node, lambda: bool(train_workers(psutil.Process(node.pid))))
    lost.finish(process)
    # its norms are frozen, so that it learns the same
    check(lost, whole, at_least)
    [summary] = lost.run_dir.glob("train_classifier-*/summary.json")
    details = json.loads(summary.read_text())["details"]
    first, second = details["workers_by_step"]
    assert (first, second[1], details["workers"]) == ([0, 2], 1, 1)
    assert second[0] >= at_least
    resized = [event["workers"] for event in read_events(str(lost.run_dir), "training_resized")]
    assert resized == [1]


def two_nodes(head: RayNodes) -> None:
    """Nodes of one CPU below the head, those of the test before among them."""
    while len(head.processes) < 3:
        head.start_worker("--num-cpus=1")


def kill_node(node: subprocess.Popen[bytes], trains: Callable[[], bool]) -> None:
    """A node loses its power: every process of it at once."""
    assert trains(), "no worker of the training runs on this node"
    family = psutil.Process(node.pid).children(recursive=True)
    node.send_signal(signal.SIGKILL)
    for process in family:
        if process.is_running():
            process.send_signal(signal.SIGKILL)
    node.wait(timeout=30)
