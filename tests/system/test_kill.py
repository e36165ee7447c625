"""A training that is killed in the middle: the same command goes on and ends with the same masks.

The mask stage is broken in every way by `test_faults.py`.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.index import read_all

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

RECIPE = """
name: kill
data: {source: shapes, images: 24, classes: 3, size: 64}
classifier: {epochs: 6, batch_size: 6, resize_long: [48, 72], crop_size: 48, output_stride: 16,
             checkpoint_seconds: 1}
cams: {scales: [1.0], flip: false}
masks: {alpha: 2, tasks: 2, batch_size: 1}
evaluate: {ladder: []}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def start(recipe: Path, run_dir: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "pmm_ray.cli", "run", str(recipe), "--run-dir", str(run_dir)]
    command += ["--until", "make_masks", "--address", "local", *more]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def finish(recipe: Path, run_dir: Path, *more: str) -> str:
    process = start(recipe, run_dir, *more)
    _, errors = process.communicate(timeout=600)
    assert process.returncode == 0, errors
    return errors


def interrupt(
    process: subprocess.Popen[str], when: Callable[[], bool], how: signal.Signals
) -> list[psutil.Process]:
    """Send a signal to the driver alone once `when` holds; returns what it had started."""
    deadline = time.monotonic() + 300
    while not when():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, "the moment to kill never came"
        time.sleep(0.02)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(how)
    process.wait(timeout=120)
    return children


def masks_hash(run_dir: Path) -> str:
    [folder] = run_dir.glob("make_masks-*")
    return tables.content_hash(read_all(str(folder)))


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_killed_in_the_middle_of_training(
    recipe: Path, tmp_path: Path, how: signal.Signals
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    finish(recipe, whole)

    def checkpointed() -> bool:
        rows = list(read_events(str(broken), "train_step"))
        return len(rows) >= 8

    process = start(recipe, broken)
    children = interrupt(process, checkpointed, how)
    if how is not signal.SIGKILL:
        assert process.returncode == 130
        assert "run the same command again" in process.communicate()[1]
    psutil.wait_procs(children, timeout=60)
    assert not list(broken.glob("train_classifier-*/summary.json"))
    finish(recipe, broken)
    assert masks_hash(broken) == masks_hash(whole)


def test_a_second_run_into_one_folder_is_refused(recipe: Path, tmp_path: Path) -> None:
    first = start(recipe, tmp_path / "run")
    deadline = time.monotonic() + 60
    while not (tmp_path / "run" / "lease.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    second = start(recipe, tmp_path / "run")
    _, errors = second.communicate(timeout=120)
    assert second.returncode == 75
    assert f"in use by process {first.pid}" in errors
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=120)
    assert first.returncode == 130
