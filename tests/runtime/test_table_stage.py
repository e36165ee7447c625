"""The stream under every inference stage, on a real Ray: exactly once, whatever happens."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
import ray

from pmm_ray.config import RunConfig
from pmm_ray.runtime.core import lease, tables
from pmm_ray.runtime.core.errors import (
    BudgetExceededError,
    CannotRunError,
    ErrorKind,
    ErrorRow,
    RowError,
)
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.index import index_file, read_all, read_index, scan_parts
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.resources import Pool
from pmm_ray.runtime.core.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.mapping.table_stage import auto_batch, network_batch, run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Producer, Worker, row_by_row

MakeContext = Callable[..., RunContext]

TWO_TASKS = Pool(2)
SCHEMA = pa.schema([("image_id", pa.string()), ("area", pa.int32())])


def area_worker(log: str, fail: str = "", crash: str = "", mark: str = "") -> Worker:
    """Areas of images; notes each image it computes as a file, fails or dies where told to."""

    def area(row: InputRow) -> dict[str, Any]:
        image_id = row["manifest"]["image_id"]
        name = f"{image_id}-{os.getpid()}-{os.urandom(4).hex()}"
        (Path(log) / name).touch()
        if image_id == fail:
            raise RowError("decode", "told to fail")
        if image_id == "wrong":
            raise ZeroDivisionError("a bug")
        if image_id == crash and not (mark and Path(mark).exists()):
            if mark:
                Path(mark).touch()
            os._exit(13)
        return {"image_id": image_id, "area": row["manifest"]["height"] * row["manifest"]["width"]}

    return row_by_row("area", area)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    folder = tmp_path / "log"
    folder.mkdir()
    return folder


def run(
    context: RunContext,
    factory: Callable[[], Worker],
    *,
    ids: Sequence[str] | None = None,
    batch: int = 3,
    pool: Pool = TWO_TASKS,
    name: str = "area",
    producer: Producer | None = None,
) -> tuple[Summary, StageFolder]:
    folder = StageFolder.below(context.run_dir, name, "12345678")
    images = index_file(context.manifest.uri)
    if ids is not None:
        images = images.select(ids)
    summary = run_table_stage(
        context,
        folder,
        inputs={"manifest": images},
        factory=factory,
        schema=SCHEMA,
        pool=pool,
        batch_size=batch,
        producer=producer,
    )
    return summary, folder


def computed(log: Path) -> list[str]:
    return sorted("-".join(path.name.split("-")[:-2]) for path in log.iterdir())


def test_every_image_once_and_the_same_table_for_any_pool(
    make_context: MakeContext, shapes: Manifest, log: Path
) -> None:
    context = make_context(shapes)
    hashes = set()
    for number, (batch, pool) in enumerate(
        [(3, Pool(1)), (16, Pool(2)), (1, Pool(2, actors=True)), (2, Pool(1, True, overlap=3))]
    ):
        summary, folder = run(
            context, partial(area_worker, str(log)), batch=batch, pool=pool, name=f"area-{number}"
        )
        assert (summary.images, summary.errors) == (16, 0)
        hashes.add(tables.content_hash(read_all(folder.uri)))
        # what a plan is made of
        chunks = [c for c in read_events(context.run_dir, "chunk") if c["stage"] == folder.stage]
        assert sum(c["images"] for c in chunks) == 16
        assert all(c["pool_seconds"] > 0 and c["bytes"] > 0 for c in chunks)
        assert all(c["producer_pool_seconds"] == 0 for c in chunks)
    assert len(hashes) == 1
    assert len(computed(log)) == 4 * 16


def test_finished_images_are_not_computed_again(
    make_context: MakeContext, shapes: Manifest, log: Path
) -> None:
    context = make_context(shapes)
    ids = index_file(shapes.uri).image_ids
    run(context, partial(area_worker, str(log)), ids=ids[:6])
    assert computed(log) == sorted(ids[:6])
    run(context, partial(area_worker, str(log)), batch=4)
    assert computed(log) == sorted(ids)


def test_a_torn_part_is_dropped_and_its_images_run_again(
    make_context: MakeContext, shapes: Manifest, log: Path
) -> None:
    context = make_context(shapes)
    _, folder = run(context, partial(area_worker, str(log)))
    whole = tables.content_hash(read_all(folder.uri))
    parts = read_index(folder.uri).parts
    torn = Path(parts[0])
    lost = len(tables.read_table(parts[0]))
    torn.write_bytes(torn.read_bytes()[:40])
    Path(folder.path("part-junk.parquet")).write_bytes(b"")
    run(context, partial(area_worker, str(log)))
    assert tables.content_hash(read_all(folder.uri)) == whole
    assert len(computed(log)) == 16 + lost
    assert len(list(read_events(context.run_dir, "broken_part"))) == 2


def test_errors_are_rows_with_their_kind(
    make_context: MakeContext, shapes: Manifest, log: Path
) -> None:
    context = make_context(shapes)
    ids = index_file(shapes.uri).image_ids
    summary, folder = run(context, partial(area_worker, str(log), fail=ids[4]))
    assert (summary.images, summary.errors) == (15, 1)
    rows = tables.read_errors(folder.errors_uri)
    assert [(r.image_id, r.stage, r.kind, r.message) for r in rows] == [
        (ids[4], "area", "decode", "told to fail")
    ]
    assert rows[0].uri
    # an error row counts as finished
    before = len(computed(log))
    run(context, partial(area_worker, str(log)))
    assert len(computed(log)) == before


def test_the_budget_ends_the_run_with_the_reasons(
    make_context: MakeContext, shapes: Manifest, log: Path
) -> None:
    config = RunConfig.model_validate({"errors": {"budget": 0}})
    context = make_context(shapes, config)
    ids = index_file(shapes.uri).image_ids
    with pytest.raises(BudgetExceededError, match=f"{ids[4]}: decode: told to fail"):
        run(context, partial(area_worker, str(log), fail=ids[4]))


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("pool", "batch"),
    [
        (Pool(2), 4),
        pytest.param(Pool(2, actors=True), 4, marks=SLOW),
        # a chunk takes others of its process along, of one image, too: nobody else is blamed
        pytest.param(Pool(1, actors=True, overlap=3), 1, marks=SLOW),
    ],
)
def test_an_image_that_kills_its_process_becomes_an_error_row_and_its_neighbours_live(
    make_context: MakeContext, shapes: Manifest, log: Path, pool: Pool, batch: int
) -> None:
    context = make_context(shapes)
    ids = index_file(shapes.uri).image_ids
    summary, folder = run(
        context,
        partial(area_worker, str(log), crash=ids[7]),
        batch=batch,
        pool=pool,
    )
    assert (summary.images, summary.errors) == (15, 1)
    [row] = tables.read_errors(folder.errors_uri)
    assert (row.image_id, row.kind) == (ids[7], "internal")
    assert "died" in row.message
    assert "see logs/ray.log" in row.message
    wait_for_every_cpu()


def wait_for_every_cpu() -> None:
    """Fails unless the stage's processes give their CPUs back: the next stage needs them."""
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU", 0) < ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, "the pool still holds CPUs"
        time.sleep(0.2)


def troubled_worker(stage: str, kind: ErrorKind, fail: str, crash: str) -> Worker:
    """One of two pools: 4 from the first; the second adds 1 to what the first made."""

    def make(row: InputRow) -> dict[str, Any]:
        image_id = row["manifest"]["image_id"]
        if image_id == crash:
            os._exit(13)
        if image_id == fail:
            raise RowError(kind, "told to fail")
        return {
            "image_id": image_id,
            "area": row["perimeters"]["area"] + 1 if stage == "area" else 4,
        }

    return row_by_row(stage, make)


@pytest.mark.slow
def test_images_that_kill_a_process_of_either_of_two_pools_become_error_rows(
    make_context: MakeContext, shapes: Manifest
) -> None:
    context = make_context(shapes)
    ids = index_file(shapes.uri).image_ids
    first = Producer(
        "perimeters",
        partial(troubled_worker, "perimeter", "decode", ids[2], ids[5]),
        SCHEMA,
        Pool(1, actors=True, cpus=1.0),
    )
    factory = partial(troubled_worker, "area", "label", ids[9], ids[13])
    summary, folder = run(context, factory, batch=4, producer=first)
    assert (summary.images, summary.errors) == (12, 4)
    assert {row["area"] for row in read_all(folder.uri).to_pylist()} == {5}
    rows = {row.image_id: (row.stage, row.kind) for row in tables.read_errors(folder.errors_uri)}
    assert rows == {
        ids[2]: ("perimeter", "decode"),
        ids[5]: ("area", "internal"),
        ids[9]: ("area", "label"),
        ids[13]: ("area", "internal"),
    }
    wait_for_every_cpu()


def test_a_process_that_dies_once_costs_nothing(
    make_context: MakeContext, shapes: Manifest, log: Path, tmp_path: Path
) -> None:
    context = make_context(shapes)
    ids = index_file(shapes.uri).image_ids
    factory = partial(area_worker, str(log), crash=ids[7], mark=str(tmp_path / "mark"))
    summary, _ = run(context, factory)
    assert (summary.images, summary.errors) == (16, 0)
    wait_for_every_cpu()


def test_a_worker_that_cannot_start_stops_the_stage_with_its_reason(
    make_context: MakeContext, shapes: Manifest
) -> None:
    def broken() -> Worker:
        raise FileNotFoundError("no weights at /nowhere")

    context = make_context(shapes)
    for name, pool in (("tasks", Pool(2)), ("actors", Pool(1, actors=True))):
        with pytest.raises(CannotRunError, match="no weights at /nowhere"):
            run(context, broken, pool=pool, name=name)


def test_a_run_that_was_taken_over_commits_nothing(
    make_context: MakeContext, shapes: Manifest, log: Path
) -> None:
    context = make_context(shapes)
    stale: Any = SimpleNamespace(**{**context.__dict__, "attempt": "another"})
    with pytest.raises(CannotRunError, match="taken over"):
        run(stale, partial(area_worker, str(log)))
    assert scan_parts(StageFolder.below(context.run_dir, "area", "12345678").uri)[0].parts == ()


def test_asking_for_more_than_the_cluster_has_fails_at_once(
    make_context: MakeContext, shapes: Manifest, log: Path
) -> None:
    with pytest.raises(CannotRunError, match=r"1 GPUs, and there is room for 0"):
        run(make_context(shapes), partial(area_worker, str(log)), pool=Pool(1, gpus=1))


def test_no_images_make_an_empty_table(
    make_context: MakeContext, shapes: Manifest, log: Path
) -> None:
    summary, folder = run(make_context(shapes), partial(area_worker, str(log)), ids=[])
    assert summary.images == 0
    assert len(read_index(folder.uri)) == 0


def test_any_exception_becomes_an_internal_row() -> None:
    def process(row: InputRow) -> dict[str, Any]:
        raise ZeroDivisionError("a bug")

    rows: Sequence[InputRow] = [{"manifest": {"image_id": "a", "uri": "a.jpg"}}]
    results: Iterator[Any] = row_by_row("area", process)(rows)
    assert list(results) == [ErrorRow("a", "area", "internal", "ZeroDivisionError: a bug", "a.jpg")]


def test_batches_leave_enough_tasks_for_every_worker() -> None:
    assert auto_batch(10, 4) == 1
    assert auto_batch(82_081, 8) == 32
    assert auto_batch(640, 8) == 10
    # one driver hands out some 30 chunks a second: many workers need longer ones
    assert auto_batch(10_000_000, 1000, 0.06) == 555
    assert auto_batch(82_081, 1000, 0.06) == 213
    assert auto_batch(500, 2, 0.06) == 31
    # the driver's memory: no more than some 50,000 chunks
    assert auto_batch(10_000_000, 8, 0.06) == 200
    assert auto_batch(10_000_000, 8, 4.0) == 75
    # nor may a chunk last for minutes
    assert auto_batch(82_081, 8, 4.0) == 8
    assert auto_batch(82_081, 8, 60.0) == 1


def test_chunks_of_networks_follow_the_time_that_they_take() -> None:
    gpus, cpus = (Pool(64, actors=True, gpus=1.0), Pool(64, actors=True))
    # 2,130 images a second where the driver hands out 30 chunks, in place of 240
    assert network_batch(1_000_000, gpus, 0.03, 4.0) == 71
    assert network_batch(100_000, cpus, 0.03, 4.0) == 8
    assert network_batch(10_000, cpus, 0.5, 60.0) == 1
    # how long an image takes is a guess: each worker gets two chunks
    assert network_batch(1000, replace(gpus, size=256), 0.03, 4.0) == 1
    assert network_batch(0, gpus, 0.03, 4.0) == 1
    # a GPU may be as slow as a core: its chunk must not seem to stall
    assert network_batch(10_000_000, gpus, 0.5, 60.0) == 5


def test_the_lease_is_free_after_a_run(tmp_path: Path) -> None:
    with lease.hold(str(tmp_path), "a"):
        assert lease.holds(str(tmp_path), "a")
    assert lease.read_lease(str(tmp_path)) is None


def stuck_worker(image_id: str) -> Worker:
    """A worker that hangs for good at one image."""

    def area(row: InputRow) -> dict[str, Any]:
        if row["manifest"]["image_id"] == image_id:
            threading.Event().wait(60)
        return {"image_id": row["manifest"]["image_id"], "area": 1}

    return row_by_row("area", area)


def test_a_stall_says_what_each_pool_waits_for_and_what_to_do(
    make_context: MakeContext, shapes: Manifest
) -> None:
    config = RunConfig.model_validate({"runtime": {"stall_seconds": 9}})
    context = make_context(shapes, config)
    ids = index_file(shapes.uri).image_ids
    with pytest.raises(CannotRunError) as error:
        run(context, partial(stuck_worker, ids[7]), batch=1)
    said = str(error.value)
    assert said.startswith("area: no image finished for 9 s.")
    assert "pool 1 of 1 (MapBatches" in said
    assert "15 chunks finished, 1 handed to workers, 0 queued" in said
    assert "of 2 CPUs free" in said
    assert "raise runtime.stall_seconds" in said
    assert said.endswith(f"not finished: {ids[7]}")
    # what was finished stays
    summary, _ = run(context, partial(stuck_worker, "none"), batch=1)
    assert summary.images == 16
