"""Every recipe's trainings on the nodes that the files in cluster/ declare: Ray places them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

import pytest

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
