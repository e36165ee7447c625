"""Jobs over HTTP on real nodes: a head without CPUs and two workers, token authentication on."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import read_all

if TYPE_CHECKING:
    from tests.system.conftest import RayNodes

ROOT = Path(__file__).resolve().parents[2]
SUBMIT = [sys.executable, str(ROOT / "jobs" / "submit.py")]
RECIPE = """
name: job
data: {source: shapes, images: 24, classes: 3, size: 64}
classifier: {epochs: 1, batch_size: 6, resize_long: [48, 72], crop_size: 48, output_stride: 16}
cams: {scales: [1.0], flip: false}
masks: {alpha: 2, batch_size: 1}
evaluate: {ladder: []}
"""


@pytest.fixture(scope="module")
def cluster(ray_head: RayNodes) -> RayNodes:
    """The head and two workers of one CPU each."""
    for _ in range(2):
        ray_head.start_worker("--num-cpus=1")
    return ray_head


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user's checkout holds: the packages, the entry points, a recipe."""
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns("__pycache__", "tests")
    for part in ("jobs", "latticecrf", "pmm_ray"):
        shutil.copytree(ROOT / part, folder / part, ignore=ignored)
    (folder / "recipe.yaml").write_text(RECIPE)
    return folder


def submit(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*SUBMIT, *arguments], capture_output=True, text=True, **options)


def start(
    cluster: RayNodes, working_dir: Path, command: list[str], *options: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*SUBMIT, "--working-dir", str(working_dir), *options, "--", *command],
        env=cluster.client_environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pipeline(run_dir: Path, *more: str) -> list[str]:
    command = ["python", "jobs/run_pipeline.py", "--recipe", "recipe.yaml"]
    return [*command, "--run-dir", str(run_dir), "--until", "make_masks", *more]


def masks_hash(run_dir: Path) -> str:
    [folder] = run_dir.glob("make_masks-*")
    return tables.content_hash(read_all(str(folder)))


def wait_until(ready: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not ready():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the moment never came"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
class TestOnACluster:
    @pytest.mark.parametrize("code", [0, 1, 3, 75, 130])
    def test_the_drivers_own_exit_code_comes_back(
        self, cluster: RayNodes, working_dir: Path, code: int
    ) -> None:
        lines = f"import pmm_ray; print('loaded', pmm_ray.__file__); raise SystemExit({code})"
        process = start(cluster, working_dir, ["python", "-c", lines])
        out, errors = process.communicate(timeout=300)
        assert process.returncode == code, errors
        # the package is the one that travelled, not the one installed beside Ray
        assert "loaded" in out
        assert "working_dir_files" in out

    def test_without_the_token_nothing_is_submitted(
        self, cluster: RayNodes, working_dir: Path
    ) -> None:
        for token in ({"RAY_AUTH_TOKEN": "0" * 32}, {"RAY_AUTH_MODE": "disabled"}):
            environment = cluster.client_environment | token
            answer = submit("--", "python", "-c", "1", env=environment, cwd=working_dir)
            assert answer.returncode == 1
            assert "RAY_AUTH_TOKEN" in answer.stderr
            assert "Traceback" not in answer.stderr

    def test_a_stopped_job_is_gone_on_with(
        self, cluster: RayNodes, working_dir: Path, tmp_path: Path
    ) -> None:
        whole, stopped = tmp_path / "whole", tmp_path / "stopped"
        slow = ("--set", "masks.crf.iterations=1500")
        process = start(cluster, working_dir, pipeline(whole, *slow))
        out, errors = process.communicate(timeout=600)
        assert process.returncode == 0, out + errors
        assert "make_masks" in out
        assert json.loads((whole / "run.json").read_text())["cluster"]["nodes"] == 3

        shutil.copytree(whole, stopped, ignore=shutil.ignore_patterns("make_masks-*", "evaluate-*"))
        process = start(cluster, working_dir, pipeline(stopped, *slow), "--submission-id", "first")
        wait_until(lambda: len(list(stopped.glob("make_masks-*/part-*"))) >= 3, process)
        assert cluster.ask("job", "stop", "first").returncode == 0
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 130, out + errors
        assert "submit the same command again" in errors
        before = {part: part.stat().st_mtime_ns for part in stopped.glob("make_masks-*/part-*")}
        assert 3 <= len(before) < 24
        assert not list(stopped.glob("make_masks-*/summary.json"))

        process = start(cluster, working_dir, pipeline(stopped, *slow))
        out, errors = process.communicate(timeout=600)
        assert process.returncode == 0, out + errors
        assert {part: part.stat().st_mtime_ns for part in before} == before
        assert masks_hash(stopped) == masks_hash(whole)

    def test_rays_own_command_takes_the_same_line(
        self, cluster: RayNodes, working_dir: Path, tmp_path: Path
    ) -> None:
        sent = ("--working-dir", str(working_dir), "--runtime-env-json", '{"env_vars": {"A": "1"}}')
        done = cluster.ask("job", "submit", *sent, "--", *pipeline(tmp_path / "run"))
        assert done.returncode == 0, done.stdout + done.stderr
        assert "make_masks: 24/24 images" in done.stdout
        assert list((tmp_path / "run").glob("make_masks-*/summary.json"))

    def test_health_is_told_without_a_token(self, cluster: RayNodes) -> None:
        # the probes of cluster/kuberay have none
        head = f"http://127.0.0.1:{cluster.dashboard_port}/api"
        assert "success" in requests.get(f"{head}/gcs_healthz", timeout=30).text
        assert requests.get(f"{head}/v0/nodes", timeout=30).status_code == 401

    def test_the_error_budget_comes_back_as_3(
        self, cluster: RayNodes, working_dir: Path, tmp_path: Path
    ) -> None:
        run_dir = tmp_path / "run"
        first = start(cluster, working_dir, pipeline(run_dir, "--only", "import_data"))
        assert first.wait(timeout=300) == 2  # --until and --only exclude each other
        command = ["python", "jobs/run_pipeline.py", "--recipe", "recipe.yaml"]
        one = ["--run-dir", str(run_dir), "--only", "import_data"]
        process = start(cluster, working_dir, [*command, *one])
        assert process.wait(timeout=300) == 0
        photographs = [p for p in run_dir.rglob("*") if p.suffix in (".jpg", ".png")]
        images = [p for p in photographs if "images" in p.parts[-2].lower()] or photographs
        for image in sorted(images)[::2]:
            image.write_bytes(b"not an image")
        budget = ("--set", "errors.budget=2")
        process = start(cluster, working_dir, pipeline(run_dir, *budget))
        out, errors = process.communicate(timeout=600)
        assert process.returncode == 3, out + errors
        assert "the budget is 2" in out

    def test_what_would_fail_again_stops_the_job(
        self, cluster: RayNodes, working_dir: Path, tmp_path: Path
    ) -> None:
        """KubeRay tries a job again that failed, and leaves a stopped one."""
        wrong = ["--set", "masks.alpha=green", "--run-dir", str(tmp_path / "run")]
        for option, status in (([], "FAILED"), (["--stop-job"], "STOPPED")):
            command = ["python", "jobs/run_pipeline.py", "--recipe", "recipe.yaml", *wrong, *option]
            named = f"fails-{status.lower()}"
            process = start(cluster, working_dir, command, "--submission-id", named)
            out, errors = process.communicate(timeout=300)
            assert "masks.alpha" in out, out + errors
            assert status in cluster.ask("job", "status", named).stdout.upper()

    def test_a_known_submission_id_is_followed(self, cluster: RayNodes, working_dir: Path) -> None:
        count = ["python", "-c", "import time; print('once'); time.sleep(5); raise SystemExit(3)"]
        named = ("--submission-id", "followed")
        process = start(cluster, working_dir, count, *named, "--no-wait")
        assert process.wait(timeout=120) == 0
        process = start(cluster, working_dir, count, *named)
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 3
        assert "following followed" in errors
        assert out.splitlines().count("once") == 1


def test_without_a_cluster_the_command_runs_here(tmp_path: Path) -> None:
    unset = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
    environment = {k: v for k, v in os.environ.items() if k not in unset}
    lines = "import os; print(os.environ['NAME']); raise SystemExit(3)"
    answer = submit("--env", "NAME=here", "--", "python", "-c", lines, env=environment)
    assert answer.returncode == 3
    assert answer.stdout.strip() == "here"
    assert "running on this machine" in answer.stderr


def test_an_address_where_nothing_listens_is_one_line(tmp_path: Path) -> None:
    environment = os.environ | {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:9"}
    answer = submit("--", "true", env=environment)
    assert answer.returncode == 1
    assert "cannot submit to http://127.0.0.1:9" in answer.stderr
    assert "Traceback" not in answer.stderr
