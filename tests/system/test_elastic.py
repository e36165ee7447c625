"""Pools follow a cluster of several nodes while a stage runs: one that joins works."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pmm_ray.runtime.core.events import read_events
from pmm_ray.sources.datasets.shapes import make_shapes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Nodes are added in the main thread, which Ray asks for; the stage runs in another.
SCRIPT = """
import io, json, sys, threading, time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from pmm_ray.config import RunConfig
from pmm_ray.runtime.cluster.connect import connect
from pmm_ray.runtime.core.events import EventLog, read_events
from pmm_ray.runtime.core.index import index_file
from pmm_ray.runtime.core.lease import hold
from pmm_ray.runtime.core.manifest import open_manifest
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.mapping.workers import row_by_row
from pmm_ray.runtime.mapping.table_stage import actor_pool, cpu_pool, run_table_stage

kind, manifest_uri, place = sys.argv[1:]
notes = Path(place) / "notes"
notes.mkdir(parents=True)


def worker():
    def note(row):
        image_id = row["manifest"]["image_id"]
        (notes / f"{image_id}={ray.get_runtime_context().get_node_id()}").touch()
        time.sleep(1.5)
        return {"image_id": image_id}

    return row_by_row("note", note)


def seen():
    return [path.name.split("=")[1] for path in notes.iterdir()]


def sizes():
    context.events.flush()
    return [event["workers"] for event in read_events(place, "pools_resized")]


def wait_for(ready):
    deadline = time.monotonic() + 240
    while not ready():
        assert thread.is_alive(), failed
        assert time.monotonic() < deadline, seen()
        time.sleep(0.1)


node = {"num_cpus": 1, "object_store_memory": 80_000_000}
nodes = Cluster(initialize_head=True, head_node_args=node | {"num_cpus": 0})
first = nodes.add_node(**node)
config = RunConfig.model_validate({"runtime": {"stall_seconds": 120}})
failed = []
with hold(place, "a"), connect(nodes.address, config.runtime) as cluster:
    context = SimpleNamespace(
        run_dir=place, config=config, manifest=open_manifest(manifest_uri), cluster=cluster,
        events=EventLog(place, "driver"), progress=Progress(stream=io.StringIO()), attempt="a")

    def stage():
        try:
            run_table_stage(
                context, StageFolder.below(place, "note", "12345678"),
                inputs={"manifest": index_file(manifest_uri)}, factory=worker,
                schema=pa.schema([("image_id", pa.string())]), batch_size=1,
                pool=cpu_pool(context) if kind == "tasks" else actor_pool(context, config.cams))
        except Exception as error:
            failed.append(repr(error))

    thread = threading.Thread(target=stage)
    thread.start()
    wait_for(lambda: len(seen()) >= 3)
    second = nodes.add_node(**node)
    # a task goes to any node: only the size says that both have work
    wait_for(lambda: [2] in sizes() and len(set(seen())) == 2)
    joined = len(seen())
    nodes.remove_node(first)  # SIGKILL
    thread.join()
    context.events.flush()
assert not failed, failed
print(json.dumps({"joined": joined, "second": second.node_id, "seen": seen()}))
nodes.shutdown()
"""


@pytest.fixture
def environment() -> Iterator[dict[str, str]]:
    # it holds sockets, whose paths have a limit of 107 bytes
    folder = tempfile.mkdtemp(prefix="pmm-", dir="/tmp")
    own = {"RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    environment = os.environ | own | {"RAY_worker_niceness": "0"}
    environment.pop("RAY_ADDRESS", None)
    yield environment
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.parametrize("kind", ["tasks", "actors"])
def test_a_node_that_joins_works_and_one_that_is_lost_is_not_waited_for(
    kind: str, tmp_path: Path, environment: dict[str, str]
) -> None:
    images = 24
    made = make_shapes(str(tmp_path / "shapes"), images=images, size=64, classes=2, seed=1)
    place = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind, made.manifest.uri, str(place)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    # of the images that were left, and not only of the lost node's
    assert told["joined"] < images
    assert told["seen"].count(told["second"]) >= images - told["joined"]
    chunks = [e for e in read_events(str(place), "chunk") if e["images"]]
    assert sum(chunk["images"] for chunk in chunks) == images
    sizes = [event["workers"] for event in read_events(str(place), "pools_resized")]
    assert [2] in sizes
    assert sizes[-1] == [1]
