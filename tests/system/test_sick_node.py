"""A node whose GPU is sick: it is avoided and named, and no image pays for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.index import read_all

from .conftest import RayNodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DRIVER = """
import io, sys, time, uuid
from functools import partial
from types import SimpleNamespace
import pyarrow as pa
from pmm_ray.config import RunConfig
from pmm_ray.runtime.cluster.connect import connect
from pmm_ray.runtime.core import lease
from pmm_ray.runtime.core.events import EventLog
from pmm_ray.runtime.core.index import index_file
from pmm_ray.runtime.core.machine import Place
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.core.resources import Pool
from pmm_ray.runtime.mapping.workers import row_by_row
from pmm_ray.runtime.mapping.table_stage import run_table_stage
from pmm_ray.sources.datasets.shapes import make_shapes

run_dir, address, how = sys.argv[1:]
SCHEMA = pa.schema([("image_id", pa.string()), ("node", pa.string())])
WORDS = {"cuda": "CUDA error: an illegal memory access was encountered", "rows": "broken driver"}

def worker(sick, words, good):
    here, seen = Place.here().node, []
    def make(row):
        seen.append(row)
        if here == sick and len(seen) > good:
            raise RuntimeError(words)
        time.sleep(0.3)
        return {"image_id": row["manifest"]["image_id"], "node": here}
    return row_by_row("area", make)

manifest = make_shapes(run_dir + "/data", images=200, size=48, classes=3, seed=1).manifest
config = RunConfig.model_validate({"runtime": {"preflight": False}})
attempt = uuid.uuid4().hex
with lease.hold(run_dir, attempt), connect(address, config.runtime, run_dir) as cluster:
    import ray
    [sick] = [n["NodeID"] for n in ray.nodes() if n["Labels"].get("state") == "sick"]
    print("sick", sick)
    context = SimpleNamespace(
        run_dir=run_dir, config=config, manifest=manifest, cluster=cluster,
        events=EventLog(run_dir, "driver"), progress=Progress(stream=sys.stdout), attempt=attempt)
    folder = StageFolder.below(run_dir, "area", "0")
    summary = run_table_stage(
        context, folder, inputs={"manifest": index_file(manifest.uri)},
        factory=partial(worker, sick, WORDS[how], 2), schema=SCHEMA,
        pool=Pool(2, actors=True, cpus=0.0, gpus=1.0), batch_size=2)
    print("errors", summary.errors, "avoided", list(cluster.avoided) == [sick])
"""


@pytest.fixture(scope="module")
def cluster(ray_head: RayNodes) -> RayNodes:
    """A head without CPUs, and two nodes that say they have a GPU."""
    for state in ("sick", "well"):
        label = f'--labels={{"state": "{state}"}}'
        ray_head.start_worker("--num-cpus=1", "--num-gpus=1", label)
    return ray_head


@pytest.mark.parametrize("how", ["cuda", "rows"])
def test_the_sick_node_is_avoided_and_its_error_rows_are_withdrawn(
    cluster: RayNodes, tmp_path: Path, how: str
) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "logs").mkdir()
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, str(run_dir), f"127.0.0.1:{cluster.port}", how],
        env=cluster.client_environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "errors 0 avoided True" in done.stdout
    [said] = [line for line in done.stdout.splitlines() if "is avoided" in line]
    [event] = read_events(str(run_dir), "node_avoided")
    sick = done.stdout.split("sick ")[1].split()[0]
    assert event["node"] == sick
    assert sick[:6] in said
    table = read_all(str(run_dir / "area-0")).to_pylist()
    assert len({row["image_id"] for row in table}) == len(table) == 200
    # what it made while it was well stays
    assert len({row["node"] for row in table}) == 2
    assert tables.read_errors(str(run_dir / "area-0" / "errors")) == []
    assert (event["withdrawn"] > 0) == (how == "rows")
