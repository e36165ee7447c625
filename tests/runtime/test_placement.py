"""Where stages run: decided from the list of nodes."""

from __future__ import annotations

from typing import Any

import pytest

from pmm_ray.config import RuntimeConfig
from pmm_ray.runtime.cluster.placement import largest_memory, mask_memory, place
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.resources import ClusterResources


def node(name: str, labels: dict[str, str] | None = None, **resources: float) -> dict[str, Any]:
    return {"NodeID": name, "Resources": resources, "Labels": labels or {}}


HEAD = node("head", memory=8e9)


def test_cpu_stages_keep_away_from_gpu_nodes() -> None:
    nodes = [HEAD, node("a", CPU=16), node("b", CPU=8, GPU=4), node("c", CPU=8, GPU=4)]
    placement = place(nodes, RuntimeConfig())
    assert (placement.cpus, placement.gpus) == (32, 8)
    assert placement.cpu_stage_cpus == 16
    assert placement.cpu_stage_labels == {"ray.io/node-id": "!in(b,c)"}


@pytest.mark.parametrize("gpu", [{}, {"GPU": 1.0}])
def test_nodes_of_one_kind_all_work(gpu: dict[str, float]) -> None:
    placement = place([node("a", CPU=4, **gpu), node("b", CPU=4, **gpu)], RuntimeConfig())
    assert placement.cpu_stage_cpus == 8
    assert placement.cpu_stage_labels == {}


def test_labels_choose_the_nodes() -> None:
    nodes = [HEAD, node("a", {"pool": "cpu", "zone": "1"}, CPU=16), node("b", CPU=8)]
    placement = place(nodes, RuntimeConfig(cpu_labels={"pool": "cpu"}))
    assert placement.cpu_stage_cpus == 16
    assert placement.cpu_stage_labels == {"pool": "cpu"}
    nowhere = place(nodes, RuntimeConfig(cpu_labels={"pool": "spot"}))
    cluster = ClusterResources(24, 0, 3, False, cpu_stage_cpus=nowhere.cpu_stage_cpus)
    with pytest.raises(CannotRunError, match="1 CPUs on nodes with pool=spot, of which there are"):
        cluster.require("make_masks", cpus=1, labels=nowhere.cpu_stage_labels)


def test_what_an_autoscaler_may_add_counts_as_there() -> None:
    config = RuntimeConfig(autoscaled_stage_cpus=256, autoscaled_gpus=8)
    placement = place([HEAD, node("g", CPU=8, GPU=4)], config)
    assert (placement.cpus, placement.gpus, placement.cpu_stage_cpus) == (256, 8, 256)
    assert placement.cpu_stage_labels == {"ray.io/node-id": "!in(g)"}
    assert place([HEAD], config).cpu_stage_labels == {}


def test_a_reservation_never_exceeds_the_largest_node() -> None:
    nodes = [HEAD, node("a", CPU=1, memory=2e9)]
    assert largest_memory(nodes) == 8e9
    small, large = mask_memory(320 * 240, 8e9), mask_memory(4000 * 3000, 8e9)
    assert 300e6 < small < 400e6 < large < 8e9
    assert mask_memory(1e9, 8e9) == 8e9
    assert mask_memory(1e6, 0) > 400e6  # a cluster that does not say
