"""What may wait how long: nodes, data and steps have clocks of their own; helpers come back."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from pmm_ray.config import RuntimeConfig
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import index_file
from pmm_ray.runtime.core.machine import Place
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.resources import ClusterResources, Node, Pool
from pmm_ray.runtime.core.stage import RunContext
from pmm_ray.runtime.mapping.chunks import make_chunks
from pmm_ray.runtime.mapping.operators import stream
from pmm_ray.runtime.mapping.stall import Limits, StalledError, missing_nodes
from pmm_ray.runtime.mapping.tasks import Output
from pmm_ray.runtime.mapping.workers import Producer
from pmm_ray.runtime.training import clock
from pmm_ray.runtime.training.losses import Losses, WorkerFailedError
from pmm_ray.runtime.training.reporter import (
    SCORING,
    TRAINING,
    Phase,
    Reporter,
    State,
    make_reporter,
)

from .test_table_stage import SCHEMA

NAN = float("nan")
JOB: Any = SimpleNamespace(stage="train_segmenter-r0", workers=2, cpus=3)
LIMITS = RuntimeConfig(nodes_seconds=100, prepare_seconds=50, stall_seconds=10)


class Watch:
    """A clock on the wall that tests move."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr(clock, "time", watch)
    return watch


def state(
    workers: int, phase: str = TRAINING, done: int = 0, total: int = 0, step: int = 0
) -> State:
    return State(step, NAN, 0, workers, phase, done, total)


def test_waiting_for_nodes_is_no_stall_and_has_a_line(watch: Watch) -> None:
    own = clock.Clock(JOB, LIMITS)
    for workers in (0, 1):
        watch.now += 90  # longer than a stall; a worker that comes is progress
        assert own.look(state(workers)) == f"waits for workers ({workers} of 2 are there)"
        own.check()
    watch.now += 101
    with pytest.raises(CannotRunError, match=r"only 1 of 2 workers .* runtime\.nodes_seconds"):
        own.check()


@pytest.mark.parametrize(
    ("phase", "seconds", "message"),
    [
        ("prepares masks", 50, r"nothing moved .* prepares masks .*prepare_seconds"),
        # COCO's 40,137 with views and a CRF: an hour in which no step is done
        (SCORING, 10, r"no image was scored .* runtime\.stall_seconds"),
    ],
)
def test_a_phase_may_last_as_long_as_it_moves(
    phase: str, seconds: int, message: str, watch: Watch
) -> None:
    own = clock.Clock(JOB, LIMITS)
    for done in range(5):
        assert own.look(state(2, phase, done, 9)) == f"{phase} ({done} of 9)"
        watch.now += seconds - 1
        own.check()
    watch.now += 2
    with pytest.raises(CannotRunError, match=message):
        own.check()


def test_steps_have_the_stalls_clock_which_begins_with_them(watch: Watch) -> None:
    own = clock.Clock(JOB, LIMITS)
    own.look(state(2, "prepares masks", 1, 9))
    watch.now += 45
    assert own.look(state(2)) == ""
    watch.now += 9
    own.check()
    own.look(state(2, step=1))
    watch.now += 9
    own.check()
    watch.now += 2
    with pytest.raises(CannotRunError, match=r"no step was finished .* runtime\.stall_seconds"):
        own.check()


def test_a_worker_lost_in_mid_training_is_waited_for_as_for_a_node(watch: Watch) -> None:
    own = clock.Clock(JOB, LIMITS)
    own.look(state(2, step=7))
    own.look(state(1, step=7))
    watch.now += 60
    own.check()


def test_the_reporter_tells_the_phase_of_the_slowest_that_counts() -> None:
    reporter = Reporter()
    assert reporter.state().workers == 0
    reporter.beat(0, "prepares masks", 7, 10)
    reporter.beat(1, "prepares its data", 0, 0)  # waits for the first one on its node
    reporter.beat(2, "prepares masks", 5, 10)
    found = reporter.state()
    assert (found.workers, found.phase, found.done, found.total) == (3, "prepares masks", 5, 10)
    for rank in range(3):
        reporter.beat(rank, TRAINING, 0, 0)
    assert reporter.state().phase == TRAINING
    reporter.leave(2)
    assert reporter.state().workers == 2


def test_a_reporter_that_restarts_forgets_no_number_of_a_request() -> None:
    reporter = Reporter()
    reporter.ask_to_save(1)
    known = reporter.beat(0, TRAINING, 0, 0)
    reporter = Reporter()  # its process died
    assert max(known, reporter.beat(0, TRAINING, 0, 0)) == known
    reporter.ask_to_save(2)
    assert max(known, reporter.beat(0, TRAINING, 0, 0)) > known


def test_the_reporter_is_on_the_drivers_node_and_comes_back(ray_session: ClusterResources) -> None:
    reporter = make_reporter()
    try:
        with Phase(reporter, 0).told() as phase:
            phase.set(TRAINING)
            pid, node = ray.get(
                reporter.__ray_call__.remote(lambda self: (os.getpid(), Place.here().node))
            )
            assert node == ray.get_runtime_context().get_node_id()
            os.kill(pid, signal.SIGKILL)
            deadline = time.monotonic() + 60
            # the worker tells it again what it does
            while ray.get(reporter.state.remote(), timeout=60).workers != 1:
                assert time.monotonic() < deadline
                time.sleep(0.2)
            assert ray.get(reporter.__ray_call__.remote(lambda self: os.getpid())) != pid
    finally:
        ray.kill(reporter)


def failed(rank_errors: dict[int, Exception]) -> BaseException:
    return ray.train.WorkerGroupError("a worker failed", rank_errors)


def losing(max_failures: int, offered: tuple[Node, ...] = ()) -> tuple[Losses, list[str], Any]:
    said: list[str] = []
    cluster = ClusterResources(8, 2, 2, False, offered=offered)
    context: Any = SimpleNamespace(
        cluster=cluster,
        events=SimpleNamespace(write=lambda *_, **__: None),
        progress=SimpleNamespace(message=said.append),
    )
    config = SimpleNamespace(max_failures=max_failures, batch_size=16, elastic=False)
    job: Any = SimpleNamespace(
        stage="train_segmenter-r0", workers=1, passes=1, cpus=1, config=config
    )
    return Losses(job, context), said, cluster


def test_a_node_whose_device_fails_twice_is_avoided(ray_session: ClusterResources) -> None:
    losses, said, cluster = losing(3, (Node(4, 2),))
    device = RuntimeError("CUDA error: unspecified launch failure")
    at_sick = WorkerFailedError.of(device)
    at_sick.place = Place("sick", "gpu-7", 4)
    partner = WorkerFailedError("NCCL error", "network", Place("well", "gpu-8", 5))
    losses.add(failed({0: partner, 1: at_sick}))
    assert not cluster.avoided
    losses.add(failed({1: at_sick}))
    assert list(cluster.avoided) == ["sick"]
    assert any("gpu-7" in line and "is avoided" in line for line in said)
    # the device is named, not the partner that saw it leave
    assert "unspecified launch failure" in said[0]


def test_failures_that_would_come_again_are_not_tried_again(ray_session: ClusterResources) -> None:
    losses, _, _ = losing(3)
    import torch

    memory = WorkerFailedError.of(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"))
    with pytest.raises(CannotRunError, match=r"16 images in a pass: raise segmenter\.accumulate"):
        losses.add(failed({0: memory}))
    losses, _, _ = losing(1)
    losses.add(failed({0: ValueError("odd")}))
    with pytest.raises(CannotRunError, match="the training failed"):
        losses.add(failed({0: ValueError("odd")}))


def test_nodes_that_a_pool_lacks_are_told(ray_session: ClusterResources) -> None:
    assert missing_nodes([Pool(1, cpus=1.0)]) == ""
    lacking = Pool(1, cpus=0.0, gpus=1.0, labels={"pool": "gpu"})
    assert missing_nodes([Pool(1), lacking]) == "none of the 1 nodes has 1 GPUs pool=gpu"
    large = Pool(1, memory=1024**5)
    assert missing_nodes([large]) == ("none of the 1 nodes has 1 CPUs and 1048576.0 GiB of memory")


def test_the_stalls_clock_stands_still_while_nodes_are_missing(
    make_context: Callable[..., RunContext], shapes: Manifest
) -> None:
    context = make_context(shapes)
    index = index_file(shapes.uri)
    chunks = make_chunks(index.image_ids[:2], {"manifest": index}, 1)
    output = Output(context.run_dir, SCHEMA, "area", context.run_dir, context.attempt)
    notes: list[str] = []
    limits = Limits(stall_seconds=1.0, nodes_seconds=8.0, note=notes.append)
    started = time.monotonic()
    with pytest.raises(
        StalledError, match=r"no node came for 8 s: none of the 1 nodes has 1 CPUs pool=far"
    ):
        list(stream(chunks, lambda: iter, output, Pool(1, labels={"pool": "far"}), limits))
    assert time.monotonic() - started > 8
    assert notes
    assert set(notes) == {"waits for nodes: none of the 1 nodes has 1 CPUs pool=far"}


def test_pools_of_a_running_plan_are_resized(
    make_context: Callable[..., RunContext], shapes: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = make_context(shapes)
    index = index_file(shapes.uri)
    chunks = make_chunks(index.ids, {"manifest": index}, 1)
    output = Output(context.run_dir, SCHEMA, "area", context.run_dir, context.attempt)
    monkeypatch.setattr("pmm_ray.runtime.mapping.stall._FOLLOW_EVERY_SECONDS", 0.0)
    asked: list[int] = []

    def sizes() -> list[int]:
        asked.append(1)
        return [2, 2]

    def slow() -> Any:
        def worker(rows: Any) -> Any:
            for row in rows:
                time.sleep(1.0)
                yield {"image_id": row["manifest"]["image_id"], "area": 1}

        return worker

    actors = Producer("made", slow, SCHEMA, Pool(1, actors=True, cpus=0.1))
    limits = Limits(60.0, 60.0, lambda note: None, sizes)
    results = stream(chunks, slow, output, Pool(1, cpus=0.1), limits, actors)
    counts = list(results)
    assert sum(one["images"] for one in counts) == len(index)
    assert asked
    for pool in ("", "producer_"):
        assert len({one[f"{pool}process"] for one in counts}) >= 2, pool
