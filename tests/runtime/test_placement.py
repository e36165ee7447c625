"""Where stages run: decided from the list of nodes, each worker whole on one of them."""

from __future__ import annotations

import io
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from pmm_ray.config import (
    CamsConfig,
    ConfigError,
    PredictConfig,
    RunConfig,
    RuntimeConfig,
    WalkConfig,
    load_recipe,
    section_hash,
)
from pmm_ray.pipeline.data import TRAININGS
from pmm_ray.runtime.cluster.connect import inference_process
from pmm_ray.runtime.cluster.placement import mask_memory, place
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.resources import ClusterResources, Node, Pool, away_from
from pmm_ray.runtime.core.selection import Selection
from pmm_ray.runtime.core.session import Session
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.mapping.follow import Sizes
from pmm_ray.runtime.mapping.table_stage import actor_pool, cpu_pool
from pmm_ray.runtime.training.workers import plan_workers

from ..cluster.shapes import RECIPES, SHAPES


def node(name: str, labels: dict[str, str] | None = None, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "Resources": resources, "Labels": labels or {}}


GIB = 1024**3
HEAD = node("head", memory=8e9)


def test_cpu_stages_keep_away_from_gpu_nodes() -> None:
    nodes = [HEAD, node("a", CPU=16), node("b", CPU=8, GPU=4), node("c", CPU=8, GPU=4)]
    placement = place(nodes, RuntimeConfig())
    assert (placement.cpus, placement.gpus) == (32, 8)
    assert placement.default_tasks() == 16
    assert placement.cpu_stage_labels == {"ray.io/node-id": "!in(b,c)"}


@pytest.mark.parametrize("gpu", [{}, {"GPU": 1.0}])
def test_nodes_of_one_kind_all_work(gpu: dict[str, float]) -> None:
    placement = place([node("a", CPU=4, **gpu), node("b", CPU=4, **gpu)], RuntimeConfig())
    assert placement.default_tasks() == 8
    assert placement.cpu_stage_labels == {}


def test_labels_choose_the_nodes() -> None:
    nodes = [HEAD, node("a", {"pool": "cpu", "zone": "1"}, CPU=16), node("b", CPU=8)]
    placement = place(nodes, RuntimeConfig(cpu_labels={"pool": "cpu"}))
    assert placement.default_tasks() == 16
    assert placement.cpu_stage_labels == {"pool": "cpu"}
    nowhere = place(nodes, RuntimeConfig(cpu_labels={"pool": "spot"}))
    with pytest.raises(
        CannotRunError, match=r"1 CPUs on nodes with pool=spot.*none of these nodes"
    ):
        nowhere.require("make_masks", cpus=1, labels=nowhere.cpu_stage_labels)


def test_what_an_autoscaler_may_add_counts_as_there() -> None:
    types = [
        {"cpus": 32, "count": 8, "labels": {"pool": "cpu"}},
        {"cpus": 8, "gpus": 4, "count": 2},
    ]
    config = RuntimeConfig.model_validate({"autoscaled_nodes": types})
    # one of the two GPU nodes is already there
    placement = place([HEAD, node("g", CPU=8, GPU=4)], config)
    assert (placement.cpus, placement.gpus, placement.default_tasks()) == (272, 8, 256)
    assert placement.cpu_stage_labels == {"ray.io/node-id": "!in(g)"}
    assert [n.node_id for n in placement.offered if n.node_id] == ["head", "g"]
    assert place([HEAD], config).cpu_stage_labels == {}


def test_no_node_comes_to_a_ray_of_our_own() -> None:
    """A run's settings for a cluster, on a laptop: what waited an hour is refused at once."""
    kinds = [{"cpus": 8, "gpus": 4, "labels": {"pool": "gpu"}}, {"cpus": 32}]
    config = RuntimeConfig.model_validate({"autoscaled_nodes": kinds})
    laptop = place([node("a", CPU=2)], config, local=True)
    assert (laptop.cpus, laptop.gpus, laptop.default_tasks()) == (2, 0, 2)
    labelled = config.model_copy(update={"cpu_labels": {"pool": "cpu"}})
    nowhere = place([node("a", CPU=2)], labelled, local=True)
    with pytest.raises(CannotRunError, match=r"pool=cpu.*room for 0.*connect to a cluster"):
        nowhere.require("make_masks", cpus=1, labels=nowhere.cpu_stage_labels)


def test_a_reservation_never_exceeds_the_largest_node() -> None:
    nodes = [HEAD, node("a", CPU=1, memory=2e9), node("g", CPU=48, GPU=4, memory=89e9)]
    assert place(nodes, RuntimeConfig()).node_memory == 2e9  # not of nodes that take no such task
    assert place([HEAD, nodes[2]], RuntimeConfig()).node_memory == 89e9
    small, large = mask_memory(320 * 240, 8e9), mask_memory(4000 * 3000, 8e9)
    assert 300e6 < small < 400e6 < large < 8e9
    assert mask_memory(1e9, 8e9) == 8e9
    assert mask_memory(1e6, 0) > 400e6  # a cluster that does not say


def test_memory_that_no_allowed_node_has_is_refused() -> None:
    nodes = [node("a", CPU=16, memory=22 * GIB), node("g", CPU=48, GPU=4, memory=89 * GIB)]
    cluster = place(nodes, RuntimeConfig())
    labels = cluster.cpu_stage_labels
    cluster.require("make_masks", cpus=1, memory=cluster.node_memory, labels=labels)
    with pytest.raises(
        CannotRunError,
        match=r"1 CPUs and 28\.9 GiB of memory on nodes.*room for 0: "
        r"1 x \(16 CPUs and 22\.0 GiB of memory\) holds 0",
    ):
        cluster.require("make_masks", cpus=1, memory=28.9 * GIB, labels=labels)


def test_stages_without_a_gpu_keep_away_from_gpu_nodes_that_come_later() -> None:
    """An autoscaler starts with no nodes."""
    kinds = [{"cpus": 32, "count": 16}, {"cpus": 48, "gpus": 4, "count": 2}]
    config = RuntimeConfig.model_validate({"autoscaled_nodes": kinds})
    with_gpus = [node(name, CPU=48, GPU=4) for name in ("g0", "g1")]
    come = [HEAD, node("c0", CPU=32), *with_gpus]
    cluster = replace(place([HEAD], config), look=lambda: place(come, config))
    assert (cluster.cpu_stage_labels, cluster.default_tasks()) == ({}, 512)
    early = Pool(512, labels=cluster.cpu_stage_labels, follows=True)
    for later in (cluster.now(), cluster.now().now()):
        assert later.cpu_stage_labels == {"ray.io/node-id": "!in(g0,g1)"}
        assert later.default_tasks() == 512
        # a stage that began before they came does not grow onto them
        assert later.placed(early).size == 512
    # those without a GPU are lost, and come back
    views = iter([place(with_gpus, RuntimeConfig()), place(come, RuntimeConfig())])
    cluster = replace(place(come, RuntimeConfig()), look=lambda: next(views))
    alone = cluster.now()
    assert (alone.cpu_stage_labels, alone.default_tasks()) == ({}, 96)
    assert alone.now().default_tasks() == 32


def nodes_of(count: int, cpus: float, gpus: float = 0.0) -> ClusterResources:
    offered = tuple(Node(cpus, gpus, node_id=f"n{number}") for number in range(count))
    return ClusterResources(count * cpus, count * gpus, count, False, offered=offered)


def changing(*views: ClusterResources) -> ClusterResources:
    """A cluster as the driver connects to it, and as each later look finds it."""
    later = iter(views[1:])
    return replace(views[0], look=lambda: next(later))


def test_pools_follow_the_cluster_and_devices_do_not() -> None:
    cluster = changing(nodes_of(2, 8, 4), nodes_of(3, 8, 4), nodes_of(1, 16), nodes_of(2, 8, 4))
    pool = Pool(8, actors=True, cpus=0.0, gpus=1.0, follows=True)
    asked = replace(pool, size=3, follows=False)
    assert (cluster.placed(pool).size, cluster.placed(asked).size) == (8, 3)
    more = cluster.now()
    assert (more.placed(pool).size, more.placed(asked).size) == (12, 3)
    # all GPUs are lost: their work waits for them, and is not done on CPUs
    none = more.now()
    assert (none.gpus, none.placed(pool).size) == (1, 1)
    assert none.placed(Pool(9, follows=True)).size == 16
    # what the run began with may come back: it is not refused
    none.require("the training", cpus=8, gpus=1, workers=2)
    none.avoid("n1", "sick")
    back = none.now()
    assert back.placed(pool).size == 4
    joined = changing(nodes_of(1, 4), nodes_of(2, 8, 4)).now()
    assert (joined.gpus, joined.placed(pool).size) == (0, 16)
    assert nodes_of(1, 4).now().placed(Pool(9, follows=True)).size == 4


@pytest.mark.parametrize(("share", "on_each"), [(1.0, 1), (0.7, 1), (0.5, 2), (0.3, 3), (0.25, 4)])
def test_actors_that_share_gpus_are_whole_on_one(share: float, on_each: int) -> None:
    cluster = changing(nodes_of(2, 8, 4), nodes_of(1, 8, 4))
    assert cluster.default_actors(share) == cluster.room(0, share) == 8 * on_each
    pool = Pool(3, actors=True, cpus=0.0, gpus=share, follows=True)
    assert cluster.placed(pool).size == 8 * on_each
    assert cluster.now().placed(pool).size == 4 * on_each
    cluster.avoid("n0", "sick")
    assert cluster.placed(pool).size == 4 * on_each


def test_a_share_of_a_gpu_changes_no_result() -> None:
    sections = (CamsConfig, PredictConfig, WalkConfig)
    assert all(section_hash(kind(gpus_per_actor=0.5)) == section_hash(kind()) for kind in sections)


def test_the_actors_of_every_stage_with_a_network_take_their_share() -> None:
    def pool(config: Any, cluster: ClusterResources) -> Pool:
        return actor_pool(SimpleNamespace(cluster=cluster), config)  # type: ignore[arg-type]

    cluster = nodes_of(2, 8, 4)
    for kind in (CamsConfig, PredictConfig, WalkConfig):
        shared = pool(kind(gpus_per_actor=0.5), cluster)
        assert (shared.size, shared.gpus, shared.follows) == (16, 0.5, True)
        asked = pool(kind(gpus_per_actor=0.5, actors=3), cluster)
        assert (asked.size, asked.gpus, asked.follows) == (3, 0.5, False)
        on_cpus = pool(kind(gpus_per_actor=0.5), nodes_of(2, 8))
        assert (on_cpus.size, on_cpus.gpus, on_cpus.cpus) == (16, 0.0, 1.0)


@pytest.mark.parametrize("share", [0, -0.5, 1.5, 2])
def test_more_than_a_gpu_is_refused_with_its_key(share: float) -> None:
    with pytest.raises(ConfigError, match=r"cams\.gpus_per_actor"):
        load_recipe("recipes/shapes.yaml", [f"cams.gpus_per_actor={share}"])


def test_a_process_with_a_part_of_a_gpu_takes_that_part_of_its_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[float] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", taken.append)
    for gpus in (0.0, 0.25, 1.0):
        inference_process(gpus)
    assert taken == [0.25]


def test_work_on_cpus_stays_on_all_nodes_when_a_small_one_joins() -> None:
    with_gpus = [node("g0", CPU=64, GPU=8), node("g1", CPU=64, GPU=8)]

    def seen(nodes: list[dict[str, Any]]) -> ClusterResources:
        return place(nodes, RuntimeConfig())

    joined = [*with_gpus, node("small", CPU=4)]
    cluster = replace(seen(with_gpus), look=lambda: seen(joined))
    pool = Pool(128, labels=cluster.cpu_stage_labels, follows=True)
    assert cluster.placed(pool).size == 128
    assert cluster.now().placed(pool).size == 132
    assert (cluster.now().default_tasks(), cluster.now().cpu_stage_labels) == (132, {})
    # nodes without GPUs were there from the first: work keeps to them, and to those that join
    began = [node("c0", CPU=8), with_gpus[0]]
    cluster = replace(seen(began), look=lambda: seen([*began, node("c1", CPU=4)]))
    pool = Pool(8, labels=cluster.cpu_stage_labels, follows=True)
    assert (cluster.placed(pool).size, cluster.now().placed(pool).size) == (8, 12)
    # a node with GPUs joins those without
    cluster = replace(seen(began[:1]), look=lambda: seen(began))
    pool = Pool(8, labels=cluster.cpu_stage_labels, follows=True)
    assert (cluster.placed(pool).size, cluster.now().placed(pool).size) == (8, 8)


def test_bfloat16_needs_it_on_every_card() -> None:
    def cards(*names: str) -> bool:
        offered = tuple(Node(8, 1, labels={"ray.io/accelerator-type": name}) for name in names)
        return ClusterResources(8, len(names), 1, False, offered=offered).has_bfloat16()

    assert cards("A10G", "L4")
    assert not cards("A10G", "T4")
    assert cards("a card of tomorrow")
    # one without a name may be any, as of a node that an autoscaler may bring
    assert not cards("A10G", "")
    assert not nodes_of(2, 8, 4).has_bfloat16()
    assert not nodes_of(2, 8).has_bfloat16()


def test_a_pool_that_lost_a_node_grows_back_to_what_was_asked_for() -> None:
    cluster = changing(*[nodes_of(count, 4, 4) for count in (2, 2, 3)])
    cluster.avoid("n1", "sick")
    pool = Pool(8, actors=True, cpus=0.0, gpus=1.0)
    sizes = Sizes(cluster, [pool], 100, lambda _: None)
    assert (list(sizes()), list(sizes())) == ([4], [8])


def test_workers_of_nodes_that_may_come_are_not_there() -> None:
    absent = Node(8, 4)
    begun = replace(nodes_of(1, 8, 4), gpus=12, offered=(Node(8, 4, node_id="n0"), absent, absent))
    come = replace(begun, offered=(*nodes_of(2, 8, 4).offered, absent))
    gpus = Pool(1, actors=True, cpus=0.0, gpus=1.0, follows=True)
    tasks = Pool(1, cpus=0.9, follows=True)
    told: list[list[int]] = []
    sizes = Sizes(changing(begun, begun, come), [gpus, tasks], 20, told.append)
    assert told == [[4, 8]]
    # actors are made for all that may come: the autoscaler adds nodes for them
    assert (list(sizes()), list(sizes())) == ([12, 20], [12, 20])
    assert told == [[4, 8], [8, 16]]
    # without nodes by name, as in one process
    assert ClusterResources(4, 0, 1, True).held(Pool(9)) == 4


def test_every_stage_reads_the_cluster_again(tmp_path: Path) -> None:
    seen: list[int] = []

    def run(context: RunContext, folder: StageFolder) -> Summary:
        seen.append(cpu_pool(context).size)
        return Summary(stage=folder.stage, hash=folder.hash)

    cluster = changing(nodes_of(2, 8), nodes_of(2, 8), nodes_of(3, 8), nodes_of(1, 8))
    stages = ("a", "b", "c")
    session = Session(
        str(tmp_path),
        RunConfig(),
        Selection(stages),
        Progress(stream=io.StringIO()),
        lambda: nullcontext(cluster),
    )
    with session:
        assert cpu_pool(session).size == 16
        for name in stages:
            session.do(Stage(name, (name,), run))
    assert seen == [16, 24, 8]
    assert [event["cpus"] for event in read_events(str(tmp_path), "cluster")] == [16, 24, 8]


def test_workers_are_packed_into_nodes_not_into_their_sum() -> None:
    cluster = nodes_of(2, 32, 4)
    # 9 CPUs for each of 8 workers: 72 of 64 + 64, but three to a node
    assert cluster.room(9, 1) == 6
    with pytest.raises(CannotRunError) as error:
        cluster.require("the training", cpus=9, gpus=1, workers=8, key="segmenter.workers")
    said = str(error.value)
    assert "8 times 9 CPUs and 1 GPUs, each time on one node, and there is room for 6" in said
    assert "2 x (32 CPUs, 4 GPUs) hold 3 each" in said
    assert "set segmenter.workers lower" in said
    cluster.require("the training", cpus=8, gpus=1, workers=8)


def test_avoided_nodes_take_nothing() -> None:
    cluster = nodes_of(3, 8, 4)
    cluster.avoid("n1", "sick")
    assert cluster.room(1, 1) == 8
    pool = cluster.placed(Pool(12, actors=True, cpus=0.0, gpus=1.0))
    assert (pool.size, pool.labels) == (8, {"ray.io/node-id": "!in(n1)"})
    assert away_from({"pool": "cpu", "ray.io/node-id": "!in(b)"}, ["a"]) == {
        "pool": "cpu",
        "ray.io/node-id": "!in(a,b)",
    }
    cluster.trust("n1")
    assert cluster.room(1, 1) == 12


@pytest.mark.parametrize("gpus", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.file)
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_training_of_every_recipe_fits(recipe: Any, shape: Any, gpus: int) -> None:
    config = load_recipe(recipe)
    count, rest = divmod(gpus, int(shape.gpu.gpus))
    offered = [shape.gpu] * count
    if rest:  # a part of a node, as a smaller machine of the kind has it
        offered.append(Node(shape.gpu.cpus * rest / shape.gpu.gpus, rest))
    offered += [shape.cpu] * shape.most_cpu
    cluster = ClusterResources(
        sum(n.cpus for n in offered), gpus, len(offered), False, offered=tuple(offered)
    )
    for name in TRAININGS:
        section = getattr(config, name)
        workers = plan_workers(name, section, cluster)
        assert workers.count <= gpus
        share = section.batch_size // workers.count
        assert share * workers.count == section.batch_size
        assert share >= section.least_images
        assert cluster.room(workers.cpus, 1) >= workers.count
        assert workers.loader_processes > 0


def test_sixteen_gpus_take_voc() -> None:
    """The segmenter's batch of 16 has no sixteen shares of two images."""
    cluster = nodes_of(4, 48, 4)
    config = load_recipe("recipes/voc12.yaml")
    counts = {name: plan_workers(name, getattr(config, name), cluster).count for name in TRAININGS}
    assert counts["multicrop"] == 16
    assert counts["segmenter"] == counts["classifier"] == 8


def test_auto_counts_the_loader_processes_that_are_asked_for() -> None:
    values = {"workers": "auto", "batch_size": 8, "loader_processes": 8}
    section = RunConfig.model_validate({"segmenter": values}).segmenter
    # 4 GPUs, and 24 CPUs that hold two workers of 9
    assert plan_workers("segmenter", section, nodes_of(1, 24, 4)).count == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"workers": 3, "batch_size": 8}, "cannot be split evenly over 3 workers"),
        ({"workers": 2, "batch_size": 2}, "BatchNorm needs 2"),
        ({"workers": 2, "batch_size": 8, "accumulate": 3}, "split evenly over 3 passes"),
        ({"workers": 4, "loader_processes": 8}, "4 times 9 CPUs and 1 GPUs.*room for 2"),
        ({"workers": 8}, r"set segmenter\.workers lower"),
    ],
)
def test_what_cannot_be_placed_is_refused_with_its_key(
    values: dict[str, Any], message: str
) -> None:
    section: BaseModel = RunConfig.model_validate({"segmenter": values}).segmenter
    with pytest.raises(CannotRunError, match=message):
        plan_workers("segmenter", section, nodes_of(1, 24, 4))  # type: ignore[arg-type]
