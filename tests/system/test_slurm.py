"""The Slurm script for real, with stand-ins for Slurm's commands: all nodes are this machine."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# options are dropped, the command is run once, whatever the number of tasks
SRUN = """#!/bin/bash
while [[ $1 == -* ]]; do [[ $1 == -w ]] && shift; shift; done
exec "$@"
"""
RECIPE = """
name: slurm
data: {source: shapes, images: 24, classes: 3, size: 64}
classifier: {epochs: 1, batch_size: 6, resize_long: [48, 72], crop_size: 48, output_stride: 16}
cams: {scales: [1.0], flip: false}
masks: {alpha: 2, batch_size: 1, crf: {iterations: 600}}
evaluate: {ladder: []}
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a job of two nodes."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", "#!/bin/bash\necho localhost\n")):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    checkout = tmp_path / "checkout"
    for folder in ("jobs", "latticecrf", "pmm_ray", "cluster"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / folder, checkout / folder, ignore=ignored)
    (checkout / "recipe.yaml").write_text(RECIPE)
    venv = tmp_path / "venv/bin"
    venv.mkdir(parents=True)
    here = Path(sys.executable).parent
    (venv / "activate").write_text(f'export PATH="{here}:$PATH"\n')
    environment = os.environ | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PMM_VENV": str(tmp_path / "venv"),
        "SLURM_SUBMIT_DIR": str(checkout),
        "SLURM_JOB_ID": str(uuid.uuid4().int % 1_000_000),
        "SLURM_JOB_NODELIST": "node[1-2]",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_CPUS_ON_NODE": "2",
    }
    environment.pop("RAY_ADDRESS", None)
    return environment


def _belongs(process: psutil.Process, job: str) -> bool:
    try:
        return process.environ().get("SLURM_JOB_ID") == job
    except (psutil.Error, OSError):
        return False


class Job:
    """The script, started; its output is a file, since nobody reads a pipe."""

    def __init__(self, environment: dict[str, str], run_dir: Path) -> None:
        self.number = environment["SLURM_JOB_ID"]
        self.temporary = Path(f"/tmp/ray-{self.number}")
        self.log = run_dir.parent / f"{self.number}.log"
        script = str(ROOT / "cluster" / "slurm.sbatch")
        options = ["--recipe", "recipe.yaml", "--run-dir", str(run_dir), "--until", "make_masks"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                ["bash", script, *options], env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def end(self) -> None:
        """What Slurm does when a script has ended: nothing of its job is left."""
        left = [process for process in psutil.process_iter() if _belongs(process, self.number)]
        for process in left:
            process.kill()
        psutil.wait_procs(left, timeout=20)
        shutil.rmtree(self.temporary, ignore_errors=True)


def test_a_time_limit_leaves_a_run_that_goes_on(slurm: dict[str, str], tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    first = Job(slurm, run_dir)
    try:
        deadline = time.monotonic() + 400
        while len(list(run_dir.glob("make_masks-*/part-*"))) < 2:
            assert first.process.poll() is None, first.log.read_text()
            assert time.monotonic() < deadline, first.log.read_text()
            time.sleep(0.1)
        first.process.send_signal(signal.SIGTERM)  # what `--signal=B:TERM@300` sends
        assert first.process.wait(timeout=120) == 130, first.log.read_text()
        assert not first.temporary.exists(), first.log.read_text()
    finally:
        first.end()
    kept = {part: part.stat().st_mtime_ns for part in run_dir.glob("make_masks-*/part-*")}
    assert not list(run_dir.glob("make_masks-*/summary.json"))

    second = Job(slurm | {"SLURM_JOB_ID": f"{first.number}1"}, run_dir)
    try:
        assert second.process.wait(timeout=400) == 0, second.log.read_text()
        assert not second.temporary.exists(), second.log.read_text()
    finally:
        second.end()
    assert "2 of 2 nodes are there" in second.log.read_text()
    assert list(run_dir.glob("make_masks-*/summary.json"))
    assert {part: part.stat().st_mtime_ns for part in kept} == kept
