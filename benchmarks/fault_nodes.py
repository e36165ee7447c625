"""Faults of a node, in a cluster of a head without CPUs and two nodes with one."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import psutil
from fault_bench import Bench, Outcome, hooked

from pmm_ray.runtime.core.events import read_events


def _cluster(
    orders: Connection, environment: Mapping[str, str], of_a_node: Mapping[str, str], nodes: int
) -> None:
    """The cluster, in a process of its own: Ray keeps a token for good."""
    os.environ.pop("RAY_ADDRESS", None)
    os.environ.update(environment)
    from ray.cluster_utils import Cluster

    store: dict[str, Any] = {"object_store_memory": 100_000_000}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False} | store
    )
    try:
        first = cluster.add_node(num_cpus=1, env_vars=dict(of_a_node), **store)
        started = [first, *(cluster.add_node(num_cpus=1, **store) for _ in range(nodes - 1))]
        cluster.wait_for_nodes()
        orders.send(cluster.address)
        while (order := orders.recv()) != "stop":
            if order == "remove":
                cluster.remove_node(started[0], allow_graceful=False)
            elif order == "remove idle":
                [idle] = [node for node in started if not _trains(node)]
                cluster.remove_node(idle, allow_graceful=False)
            else:
                cluster.add_node(num_cpus=1, **store)
            orders.send("done")
    finally:
        cluster.shutdown()


def _trains(node: Any) -> bool:
    """Whether a worker of a training runs on a node."""
    [raylet] = node.all_processes["raylet"]
    family = psutil.Process(raylet.process.pid).children(recursive=True)
    return any("RayTrainWorker" in " ".join(process.cmdline()) for process in family)


@contextmanager
def cluster(
    environment: Mapping[str, str] | None = None,
    of_a_node: Mapping[str, str] | None = None,
    nodes: int = 2,
) -> Iterator[tuple[Connection, str, dict[str, str]]]:
    """A connection that takes orders, the address, and the environment of who connects.

    Args:
        environment: further, of all processes.
        of_a_node: further, of the first node.
        nodes: beside the head.
    """
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    place = tempfile.mkdtemp(prefix="pmm-", dir="/tmp")  # short: socket paths
    own = {**token, "RAY_TMPDIR": place, "RAY_worker_niceness": "0", **(environment or {})}
    orders, others_end = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    process = spawn.Process(target=_cluster, args=(others_end, own, of_a_node or {}, nodes))
    process.start()
    others_end.close()
    try:
        yield orders, orders.recv(), own
    finally:
        if process.is_alive():
            orders.send("stop")
        process.join(60)
        shutil.rmtree(place, ignore_errors=True)


def order(orders: Connection, what: str) -> None:
    """Have something done to the cluster, and wait until it is."""
    orders.send(what)
    orders.recv()


def lost_node(bench: Bench, fused: bool = False) -> Outcome:
    """Of a head and two worker nodes one is killed, and another added later."""
    run = bench.fresh(cams=not fused)
    run.settings = ("masks.fused=true",) if fused else ()
    with cluster() as (orders, run.address, run.environment):
        process = run.start()
        before = run.wait_for_parts(process, 6)
        since = time.time_ns()
        order(orders, "remove")
        run.wait_for_parts(process, 10)
        order(orders, "add")
        run.wait(process)
    fault = "a node killed, another added" + (", CAMs streamed to the masks" if fused else "")
    return bench.outcome(run, fault, "its images in work", before, since, True)


def lost_node_fused(bench: Bench) -> Outcome:
    """The same with two pools: actors that make CAMs, tasks that make masks of them."""
    return lost_node(bench, fused=True)


def sick_node(bench: Bench) -> Outcome:
    """A node on which every image fails as on a broken GPU."""
    run = bench.fresh()
    mark = bench.folder / "sick"
    with hooked(bench.folder) as path:
        well = path | {"FAULT_ACTION": "slow", "FAULT_MARK": os.devnull}
        sick = {"FAULT_ACTION": "sick", "FAULT_MARK": str(mark)}
        with cluster(well, sick) as (_, run.address, run.environment):
            process = run.start()
            printed = run.wait(process)
    [avoided] = read_events(str(run.folder), "node_avoided")
    if run.errors() or not mark.exists() or "is avoided" not in printed:
        raise AssertionError(f"error rows, or a node that is not named: {printed}")
    fault = "a node whose device is broken"
    since = int(avoided["time"] * 1e9)
    return bench.outcome(run, fault, "its images in work", {}, since, True, printed)


def idle_node(bench: Bench) -> Outcome:
    """A node that has no part in a training is killed during it."""
    run = bench.fresh(classifier=False)
    with cluster(nodes=3) as (orders, run.address, run.environment):
        process = run.start()
        run.wait_for_step(process, 6)
        since = time.time_ns()
        order(orders, "remove idle")
        gone = time.time()
        run.wait(process)
    steps = run.steps()
    if [step for step, _ in steps] != [step for step, _ in bench.whole.steps()]:
        raise AssertionError(f"the training was disturbed: {steps}")
    until = int(next(when for _, when in steps if when > gone) * 1e9)
    fault = "an idle node killed during a training"
    return bench.outcome(run, fault, "nothing", {}, since, True, until_ns=until)
