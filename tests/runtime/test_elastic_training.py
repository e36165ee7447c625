"""An elastic training's workers: as many as there is room for, the same batch, no larger passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pmm_ray.config import RunConfig, section_hash
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.resources import ClusterResources, Node
from pmm_ray.runtime.training.workers import Workers, plan_workers

BATCH = 16


def section(name: str = "classifier", **values: Any) -> Any:
    values = {"batch_size": BATCH, "loader_processes": 2, "elastic": True} | values
    return getattr(RunConfig.model_validate({name: values}), name)


def cluster(*gpus: float, cpus: float = 32) -> ClusterResources:
    nodes = tuple(Node(cpus, n, node_id=f"n{i}") for i, n in enumerate(gpus))
    return ClusterResources(len(nodes) * cpus, sum(gpus), len(nodes), False, offered=nodes)


@pytest.mark.parametrize(
    ("gpus", "count", "passes"),
    [
        ((4,), 4, 1),
        ((4, 4), 8, 1),
        ((2,), 2, 2),
        ((1,), 1, 4),
        ((3,), 2, 2),  # 16 images have no three shares
        ((4, 2), 4, 1),
    ],
)
def test_batches_stay_and_passes_do_not_grow(
    gpus: tuple[int, ...], count: int, passes: int
) -> None:
    workers = plan_workers("classifier", section(workers=4), cluster(*gpus))
    assert workers == Workers(count, 2, 3, 1, passes)


def test_passes_that_were_asked_for_bound_those_of_fewer_workers() -> None:
    asked = section(workers=4, accumulate=2)  # two images in a pass
    assert plan_workers("classifier", asked, cluster(4)).passes == 2
    assert plan_workers("classifier", asked, cluster(1)).passes == 8
    assert plan_workers("classifier", asked, cluster(8)).passes == 1


def test_groups_of_images_stay_whole() -> None:
    pus = {"kind": "clamp", "group": 8}
    asked = section("segmenter", workers=2, underfitting=pus)
    # one worker of eight images in a pass, never one whose passes split a group
    assert plan_workers("segmenter", asked, cluster(1)).passes == 2
    with pytest.raises(CannotRunError, match=r"segmenter\.workers"):
        plan_workers("segmenter", replace_workers(asked, 4), cluster(1))


def replace_workers(asked: Any, workers: int) -> Any:
    return asked.model_copy(update={"workers": workers})


def test_on_cpus_no_more_than_were_asked_for() -> None:
    asked = section(workers=4, loader_processes=0)
    assert plan_workers("classifier", asked, cluster(0, cpus=64)).count == 4
    fewer = plan_workers("classifier", asked, cluster(0, cpus=2))
    assert (fewer.count, fewer.passes) == (2, 2)


def test_only_nodes_that_are_there_count() -> None:
    whole = cluster(2, 2)
    asked = section(workers=4)
    one_left = replace(whole, offered=whole.offered[:1], began_with=whole.offered)
    assert plan_workers("classifier", asked, one_left).count == 2
    may_come = replace(whole, offered=(whole.offered[0], Node(32, 2)))
    assert plan_workers("classifier", asked, may_come).count == 2
    whole.avoid("n1", "sick")
    assert plan_workers("classifier", asked, whole).count == 2
    # without any it waits for what was asked for
    assert plan_workers("classifier", asked, replace(may_come, offered=(Node(32, 4),))).count == 4


def test_without_the_key_the_workers_are_those_that_were_asked_for() -> None:
    with pytest.raises(CannotRunError, match="4 times 3 CPUs and 1 GPUs"):
        plan_workers("classifier", section(workers=4, elastic=False), cluster(2))
    assert section_hash(section()) == section_hash(section(elastic=False))
