"""A training worker that is killed in round 1: the run goes on by itself to the last iteration."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pmm_ray.nets.segmenter import load_segmenter
from pmm_ray.runtime.core.events import read_events

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

ITERATIONS = 60
RECIPE = f"""
name: cyclic-kill
data: {{source: shapes, images: 16, classes: 3, size: 64}}
classifier: {{epochs: 1, batch_size: 4, resize_long: [48, 72], crop_size: 48, output_stride: 32,
             weights: none, validation_images: 0}}
cams: {{scales: [1.0], flip: false}}
masks: {{alpha: 2}}
evaluate: {{ladder: [], train_masks: false}}
segmenter: {{weights: none, channels: 8, output_stride: 32, crop_size: 48, resize_base: [96, 48],
            iterations: {ITERATIONS}, batch_size: 4, workers: 2, checkpoint_seconds: 0.5}}
predict: {{ratios: [1.0], flip: false, use_crf: false, resize_base: [96, 48]}}
cycles: {{rounds: 1}}
runtime: {{cpus: 2, object_store_bytes: 150000000}}
"""
STAGE = "train_segmenter-r1"


def steps(run_dir: Path) -> list[int]:
    return [e["step"] for e in read_events(str(run_dir), "train_step") if e["stage"] == STAGE]


def training_workers(driver: int) -> list[psutil.Process]:
    """The processes of the training that a driver's own Ray has started."""
    return [
        process
        for process in psutil.Process(driver).children(recursive=True)
        if any("RayTrainWorker" in part for part in process.cmdline())
    ]


def test_a_killed_training_worker_of_round_1_is_replaced(tmp_path: Path) -> None:
    recipe, run_dir = tmp_path / "recipe.yaml", tmp_path / "run"
    recipe.write_text(RECIPE)
    command = [sys.executable, "-m", "pmm_ray.cli", "run", str(recipe), "--run-dir", str(run_dir)]
    process = subprocess.Popen(
        [*command, "--address", "local"],
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / "log").open("w"),
    )
    deadline = time.monotonic() + 900

    def wait_for(ready: Any, what: str) -> Any:
        while not (found := ready()):
            assert process.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, f"{what} never came"
            time.sleep(0.05)
        return found

    # a checkpoint is there, so that the training need not begin again
    wait_for(lambda: list(run_dir.glob(f"{STAGE}-*/train/step-*.pt")), "a checkpoint")
    before = max(steps(run_dir), default=0)
    workers = training_workers(process.pid)
    assert len(workers) == 2
    workers[1].send_signal(signal.SIGKILL)
    assert before < ITERATIONS
    assert process.wait(timeout=900) == 0, (tmp_path / "log").read_text()

    done = steps(run_dir)
    assert set(done) == set(range(1, ITERATIONS + 1))
    # it went on at a checkpoint: at most the iterations since then were repeated
    assert done.count(1) == 1
    assert not workers[1].is_running()
    [folder] = run_dir.glob(f"{STAGE}-*")
    _, meta = load_segmenter(str(folder / "model.pt"))
    assert meta["training"]["steps"] == ITERATIONS
    assert meta["round"] == 1
    assert not (folder / "train").exists()
    # both rounds and their predictions are there
    summaries = {path.parent.name.rsplit("-", 1)[0] for path in run_dir.glob("*/summary.json")}
    assert {"train_segmenter-r0", "predict_masks-r1", STAGE, "evaluate-segmenter-r1"} <= summaries
