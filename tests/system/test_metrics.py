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

RECIPE = """
name: scraped
data: {source: shapes, images: 60, classes: 3, size: 64}
classifier: {epochs: 1, batch_size: 6, resize_long: [48, 72], crop_size: 48, output_stride: 16,
             workers: 1, validation_images: 0}
runtime: {preflight: false}
"""


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


def test_all_metrics_of_a_running_job_are_scraped(ray_head: RayNodes, tmp_path: Path) -> None:
    ray_head.start_worker("--num-cpus=2")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    command = [sys.executable, "-m", "pmm_ray.cli", "run", str(recipe), "--until", "make_cams"]
    command += ["--run-dir", str(tmp_path / "run"), "--address", f"127.0.0.1:{ray_head.port}"]
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
