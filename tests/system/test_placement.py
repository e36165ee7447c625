"""What Ray places: trainings on the nodes of the files in cluster/, actors on shared GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from pmm_ray.sources.datasets.shapes import make_shapes

from ..cluster.shapes import RECIPES, SHAPES, Shape

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DRIVER = """
import json, sys
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, remove_placement_group
from pmm_ray.config import load_recipe
from pmm_ray.pipeline.data import TRAININGS
from pmm_ray.runtime.cluster.connect import connect
from pmm_ray.runtime.training.workers import plan_workers

nodes, recipes = json.loads(sys.argv[1]), sys.argv[2:]
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
for node in nodes:
    cluster.add_node(object_store_memory=80 * 2**20, **node)
cluster.wait_for_nodes()
for recipe in recipes:
    config = load_recipe(recipe)
    with connect(cluster.address, config.runtime) as resources:
        for name in TRAININGS:
            workers = plan_workers(name, getattr(config, name), resources)
            bundle = {"CPU": workers.cpus, "GPU": workers.gpus}
            group = placement_group([bundle] * workers.count, strategy="PACK")
            assert group.wait(60), (recipe, name, workers)
            remove_placement_group(group)
            print(recipe, name, workers.count, workers.cpus)
        task = ray.remote(lambda: 1).options(num_cpus=1, label_selector=resources.cpu_stage_labels)
        assert ray.get(task.remote(), timeout=60) == 1
"""


@pytest.mark.parametrize("shape", SHAPES[1:3], ids=lambda shape: shape.file)
def test_ray_places_every_training(shape: Shape) -> None:
    gpu = {"num_cpus": shape.gpu.cpus, "num_gpus": shape.gpu.gpus, "labels": shape.gpu.labels}
    cpu = {"num_cpus": shape.cpu.cpus, "num_gpus": 0, "labels": shape.cpu.labels}
    nodes = json.dumps([gpu] * shape.most_gpu + [cpu])
    with tempfile.TemporaryDirectory(prefix="pmm-", dir="/tmp") as folder:
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, nodes, *map(str, RECIPES)],
            env=os.environ | {"RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=800,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) >= 4 * len(RECIPES)


SHARES = """
import io, json, os, sys, time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import ray
from ray.cluster_utils import Cluster

from pmm_ray.config import RunConfig
from pmm_ray.runtime.cluster.connect import connect
from pmm_ray.runtime.core.events import EventLog
from pmm_ray.runtime.core.index import index_file
from pmm_ray.runtime.core.lease import hold
from pmm_ray.runtime.core.manifest import open_manifest
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.mapping.workers import row_by_row
from pmm_ray.runtime.mapping.table_stage import actor_pool, run_table_stage

manifest_uri, place = sys.argv[1:]
notes = Path(place) / "notes"
notes.mkdir(parents=True)


def worker():
    def note(row):
        (notes / f"{os.getpid()}={ray.get_gpu_ids()[0]}").touch()
        deadline = time.monotonic() + 400
        while len(list(notes.iterdir())) < 2:  # each waits for the other
            if time.monotonic() > deadline:
                raise RuntimeError("not two at once")
            time.sleep(0.1)
        return {"image_id": row["manifest"]["image_id"]}

    return row_by_row("note", note)


nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
nodes.add_node(num_cpus=2, num_gpus=1, object_store_memory=80_000_000)
values = {"cams": {"gpus_per_actor": 0.5}, "runtime": {"stall_seconds": 500}}
config = RunConfig.model_validate(values)
with hold(place, "a"), connect(nodes.address, config.runtime) as cluster:
    context = SimpleNamespace(
        run_dir=place, config=config, manifest=open_manifest(manifest_uri), cluster=cluster,
        events=EventLog(place, "driver"), progress=Progress(stream=io.StringIO()), attempt="a")
    pool = actor_pool(context, config.cams)
    summary = run_table_stage(
        context, StageFolder.below(place, "note", "12345678"),
        inputs={"manifest": index_file(manifest_uri)}, factory=worker,
        schema=pa.schema([("image_id", pa.string())]), batch_size=1, pool=pool)
gpus = sorted(path.name.split("=")[1] for path in notes.iterdir())
print(json.dumps({"images": summary.images, "size": pool.size, "gpus": gpus}))
nodes.shutdown()
"""


def test_actors_share_a_gpu(tmp_path: Path) -> None:
    made = make_shapes(str(tmp_path / "shapes"), images=8, size=64, classes=2, seed=1)
    with tempfile.TemporaryDirectory(prefix="pmm-", dir="/tmp") as folder:
        done = subprocess.run(
            [sys.executable, "-c", SHARES, made.manifest.uri, str(tmp_path / "run")],
            env=os.environ | {"RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=600,
        )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told == {"images": 8, "size": 2, "gpus": ["0", "0"]}
