"""A running job is scraped as Prometheus would scrape it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from ..cluster.test_monitoring import offered
from .conftest import RayNodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def scraped(nodes: RayNodes) -> set[str]:
    """Names of all metrics of all nodes now."""
    found: set[str] = set()
    for path in nodes.folder.rglob("prom_metrics_service_discovery.json"):
        for group in json.loads(path.read_text()):
            for target in group["targets"]:
                try:
                    text = requests.get(f"http://{target}/metrics", timeout=10).text
                except requests.RequestException:  # of a node that is being started
                    continue
                found.update(re.findall(r"^(ray_pmm_\w+)\{", text, re.MULTILINE))
    return found


def test_all_metrics_of_a_running_job_are_scraped(
    ray_head: RayNodes, photographs: Path, tmp_path: Path
) -> None:
    ray_head.start_worker("--num-cpus=2")
    images, cams = str(photographs / "images"), str(photographs / "cams")
    command = [sys.executable, "-m", "pmm_ray.cli", "masks", "--images", images, "--cams", cams]
    command += ["--out", str(tmp_path / "out"), "--address", f"127.0.0.1:{ray_head.port}"]
    # long enough to be asked: a process tells its node's agent every ten seconds
    for setting in ("masks.batch_size=1", "masks.alpha=2", "masks.crf.iterations=600"):
        command += ["--set", setting]
    job = subprocess.Popen(
        command, env=ray_head.client_environment, stderr=subprocess.PIPE, text=True
    )
    seen: set[str] = set()
    deadline = time.monotonic() + 600
    # error rows: there are none in this run
    wanted = {name for name in offered() if "errors" not in name}
    while not wanted <= seen and job.poll() is None:
        assert time.monotonic() < deadline
        seen |= scraped(ray_head)
        time.sleep(1)
    seen |= scraped(ray_head)
    _, printed = job.communicate(timeout=600)
    assert job.returncode == 0, printed
    assert wanted <= seen, (wanted - seen, printed)
