"""Several real nodes on this machine: who works, the same masks, who cannot do its part."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import read_all

from .conftest import RayNodes

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

CPU_POOL, GPU_POOL = '--labels={"pool": "cpu"}', '--labels={"pool": "gpu"}'


@pytest.fixture(scope="module")
def cluster(ray_head: RayNodes) -> RayNodes:
    """A head without CPUs, two CPU nodes, and one that says it has GPUs."""
    for _ in range(2):
        ray_head.start_worker("--num-cpus=1", CPU_POOL)
    ray_head.start_worker("--num-cpus=2", "--num-gpus=2", GPU_POOL)
    return ray_head


def pmm(cluster: RayNodes, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pmm_ray.cli", *arguments],
        env=cluster.client_environment,
        capture_output=True,
        text=True,
        timeout=600,
    )


def masks(cluster: RayNodes, photographs: Path, out: Path, address: str) -> None:
    done = pmm(
        cluster,
        "masks",
        *("--images", str(photographs / "images"), "--cams", str(photographs / "cams")),
        *("--out", str(out), "--address", address, "--set", "masks.batch_size=1"),
        # the GPUs of these nodes are only said to be there
        *("--set", "runtime.preflight=false", "--set", "masks.alpha=2"),
    )
    assert done.returncode == 0, done.stderr


def ask(cluster: RayNodes, what: str) -> list[dict[str, Any]]:
    """A list of Ray's state API."""
    answer = requests.get(
        f"http://127.0.0.1:{cluster.dashboard_port}/api/v0/{what}",
        params={"limit": "10000", "detail": "true"},
        headers={"Authorization": f"Bearer {cluster.token}"},
        timeout=30,
    ).json()
    return list(answer["data"]["result"]["result"])


def pools(cluster: RayNodes) -> dict[str, str]:
    """The label `pool` of each node by its id; `head` for the one that has none."""
    return {n["node_id"]: n["labels"].get("pool", "head") for n in ask(cluster, "nodes")}


def test_the_same_masks_from_one_node_and_from_three_and_none_on_head_or_gpu_node(
    cluster: RayNodes, photographs: Path, tmp_path: Path
) -> None:
    masks(cluster, photographs, tmp_path / "one", "local")
    masks(cluster, photographs, tmp_path / "three", f"127.0.0.1:{cluster.port}")
    found = {}
    for name in ("one", "three"):
        [folder] = (tmp_path / name).glob("make_masks-*")
        found[name] = tables.content_hash(read_all(str(folder)))
        pngs = {p.name: p.read_bytes() for p in (tmp_path / name / "masks").glob("*.png")}
        assert len(pngs) == 24
        found[name] += str(sorted(pngs.items()))
    assert found["one"] == found["three"]

    pool_of = {
        node["node_id"]: node["labels"].get("pool", "head") for node in ask(cluster, "nodes")
    }
    assert sorted(pool_of.values()) == ["cpu", "cpu", "gpu", "head"]
    work = [task for task in ask(cluster, "tasks") if "MapBatches" in task["name"]]
    assert len(work) >= 24
    assert {pool_of[task["node_id"]] for task in work} == {"cpu"}
    assert len({task["node_id"] for task in work}) == 2


# The real fused stage, with a stand-in for the network: nodes here only say that they have GPUs.
FUSED = """
import sys
from functools import partial
from pathlib import Path

import numpy as np
import ray

from pmm_ray.config import MasksConfig, RunConfig
from pmm_ray.runtime.cluster.connect import connect
from pmm_ray.runtime.core.events import EventLog
from pmm_ray.runtime.core.index import index_file
from pmm_ray.runtime.core.lease import hold
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.mapping.workers import row_by_row
from pmm_ray.runtime.core.manifest import open_manifest
from types import SimpleNamespace
from pmm_ray.runtime.rows.cams import Cams
from pmm_ray.stages import make_cams, make_masks

address, manifest_uri, place = sys.argv[1:]


def note(kind):
    path = Path(place) / f"{kind}-{ray.get_runtime_context().get_node_id()}"
    path.touch()


def cams(row):
    note("cams")
    about = row["manifest"]
    cam = np.full((len(about["labels"]), 4, 4), 0.5, np.float16)
    keep = {k: about[k] for k in ("image_id", "height", "width", "labels")}
    return keep | {"cam": cam.tobytes(), "cam_height": 4, "cam_width": 4}


def masks(make):
    inner = make()

    def worker(rows):
        note("masks")
        return inner(rows)

    return worker


original = make_masks.mask_factory
make_masks.mask_factory = lambda *given: partial(masks, original(*given))
make_cams.cam_factory = lambda *given: partial(row_by_row, "make_masks", cams)

config = RunConfig(masks=MasksConfig(batch_size=1))
with hold(place, "a"), connect(address, config.runtime) as cluster:
    events, progress = EventLog(place, "driver"), Progress()
    manifest = open_manifest(manifest_uri)
    context = SimpleNamespace(
        run_dir=place, config=config, manifest=manifest, cluster=cluster, events=events,
        progress=progress, attempt="a")
    folder = StageFolder.below(place, "make_masks", "12345678")
    images = index_file(manifest_uri)
    streamed = Cams(images, "0", streamed_from="none")
    make_masks.run(config.masks, context, folder, cams=streamed)
"""


def test_networks_run_where_gpus_are_and_masks_where_they_are_not(
    cluster: RayNodes, photographs: Path, tmp_path: Path
) -> None:
    script = tmp_path / "fused.py"
    script.write_text(FUSED)
    manifest = str(photographs / "manifest.parquet")
    place = tmp_path / "run"
    (place / "logs").mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, str(script), f"127.0.0.1:{cluster.port}", manifest, str(place)],
        env=cluster.client_environment,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    pool_of = {
        node["node_id"]: node["labels"].get("pool", "head") for node in ask(cluster, "nodes")
    }
    ran = {
        kind: [pool_of[path.name.split("-")[1]] for path in place.glob(f"{kind}-*")]
        for kind in ("cams", "masks")
    }
    assert set(ran["cams"]) == {"gpu"}
    assert ran["masks"] == ["cpu", "cpu"]


def test_a_node_that_cannot_do_its_part_is_named_before_the_run(
    ray_head: RayNodes, tmp_path: Path
) -> None:
    run_dir, data = tmp_path / "runs", tmp_path / "data"
    run_dir.mkdir()
    data.mkdir()
    ray_head.start_worker("--num-cpus=1")
    # a node with file systems of its own, on which the run folder is another one
    hidden = f'mount -t tmpfs none {tmp_path} && exec "$0" "$@"'
    ray_head.start_worker("--num-cpus=1", prefix=("unshare", "--mount", "sh", "-c", hidden))
    address = f"127.0.0.1:{ray_head.port}"
    looked = ("--run-dir", str(run_dir), "--set", f"data.root={data}", "--address", address)
    done = pmm(ray_head, "doctor", "--cluster", *looked)
    assert done.returncode == 1
    table = done.stderr[done.stderr.index("not every node") :]
    blind = [line for line in table.splitlines() if "run folder" in line or "input" in line]
    assert len(blind) == 2
    assert len({line.split(")")[0] for line in blind}) == 1  # one node: host (address, id)
    assert "mount" in table

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"name": "x", "data": {"source": "shapes", "images": 12}}))
    run = pmm(ray_head, "run", str(recipe), "--run-dir", str(run_dir), "--address", address)
    assert run.returncode == 1
    assert "cannot read what the driver wrote" in run.stderr
    assert not list(run_dir.glob("train_classifier-*/model.pt"))
