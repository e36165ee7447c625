"""Actors that work on some chunks at once, on a real Ray."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.index import index_file
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.resources import Pool
from pmm_ray.runtime.core.stage import RunContext
from pmm_ray.runtime.mapping.overlap import Overlapped, one_by_one
from pmm_ray.runtime.mapping.workers import InputRow, Worker, row_by_row

from .test_table_stage import run

MakeContext = Callable[..., RunContext]
THREE_CHUNKS = Pool(1, actors=True, overlap=3)


def meeting_worker(folder: str) -> Worker:
    """Fails unless another chunk comes to the same process while it works on its first image."""
    here = Path(folder) / str(os.getpid())
    here.mkdir(exist_ok=True)

    def meet(row: InputRow) -> dict[str, Any]:
        (here / row["manifest"]["image_id"]).touch()
        deadline = time.monotonic() + 60
        while len(list(here.iterdir())) < 2:
            assert time.monotonic() < deadline, "no other chunk came"
            time.sleep(0.02)
        return {"image_id": row["manifest"]["image_id"], "area": 1}

    return row_by_row("area", meet)


def test_an_actor_works_on_some_chunks_at_once_and_its_seconds_are_counted_once(
    make_context: MakeContext, shapes: Manifest, tmp_path: Path
) -> None:
    context = make_context(shapes)
    started = time.monotonic()
    summary, _ = run(context, partial(meeting_worker, str(tmp_path)), batch=2, pool=THREE_CHUNKS)
    assert (summary.images, summary.errors) == (16, 0)
    seconds = sum(c["pool_seconds"] for c in read_events(context.run_dir, "chunk"))
    assert 0 < seconds < time.monotonic() - started


def breaking_worker(image_id: str, mark: str) -> Worker:
    """A network whose device fails once, at one image."""

    def see(row: InputRow) -> InputRow:
        if row["manifest"]["image_id"] == image_id and not Path(mark).exists():
            Path(mark).touch()
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        time.sleep(0.05)
        return row

    def finish(row: InputRow, seen: InputRow) -> dict[str, Any]:
        return {"image_id": seen["manifest"]["image_id"], "area": 1}

    return Overlapped("area", lambda row: row, one_by_one(see), finish)


@pytest.mark.slow
def test_a_device_that_fails_among_several_chunks_is_told_once_and_costs_no_image(
    make_context: MakeContext, shapes: Manifest, tmp_path: Path
) -> None:
    context = make_context(shapes)
    ids = index_file(shapes.uri).image_ids
    factory = partial(breaking_worker, ids[3], str(tmp_path / "mark"))
    summary, _ = run(context, factory, batch=2, pool=THREE_CHUNKS)
    assert (summary.images, summary.errors) == (16, 0)
    told = list(read_events(context.run_dir, "machine_fault"))
    assert [fault["image"] for fault in told] == [ids[3]]
