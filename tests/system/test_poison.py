"""Images that take their process with them, in the real mask stage on a real Ray."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from pmm_ray.config import RunConfig
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import ErrorRow
from pmm_ray.runtime.core.index import TableIndex, read_all, scan_parts
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.resources import Pool
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.mapping.table_stage import run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Worker
from pmm_ray.stages.make_masks import mask_factory

MakeContext = Callable[..., RunContext]

CONFIG = RunConfig.model_validate({"masks": {"alpha": 2, "crf": {"iterations": 2}}})


def segfault() -> None:
    ctypes.string_at(0)


def exits() -> None:
    os._exit(7)


def killed_for_memory() -> None:
    """What the kernel does to the process that is in its way when memory has run out."""
    os.kill(os.getpid(), signal.SIGKILL)


def allocates_without_end() -> None:
    """The allocation itself fails: an exception, which the worker survives."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 500_000_000, hard))
    try:
        held = [bytearray(100_000_000) for _ in range(20)]
        raise AssertionError(f"{len(held)} allocations went through")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def poisoned(factory: Callable[[], Worker], image_id: str, how: Callable[[], None]) -> Worker:
    """The stage's own worker, but for one image on which something breaks."""
    worker = factory()

    def work(rows: Sequence[InputRow]) -> Iterator[dict[str, Any] | ErrorRow]:
        for row in rows:
            if row["manifest"]["image_id"] == image_id:
                row["cams"] = row["cams"] | {"labels": _Trap(row["cams"]["labels"], how)}
            yield from worker([row])

    return work


class _Trap(list[int]):
    """Labels that break something when they are first counted, inside the mask stage's code."""

    def __init__(self, labels: list[int], how: Callable[[], None]) -> None:
        super().__init__(labels)
        self._how = how

    def __len__(self) -> int:
        self._how()
        return super().__len__()


def write_cams(context: RunContext, shapes: Manifest) -> TableIndex:
    rows = []
    for number, row in enumerate(tables.read_table(shapes.uri).to_pylist()):
        height, width = -(-row["height"] // 4), -(-row["width"] // 4)
        values = [(number * 37 + i) % 256 / 256 for i in range(len(row["labels"]) * height * width)]
        cam = np.array(values, "<f2").tobytes()
        keep = {name: row[name] for name in ("image_id", "height", "width", "labels")}
        rows.append(keep | {"cam": cam, "cam_height": height, "cam_width": width})
    folder = storage.join(context.run_dir, "cams")
    tables.write_rows(storage.join(folder, "part-all.parquet"), rows, tables.CAMS)
    return scan_parts(folder)[0]


def make_masks(
    context: RunContext, cams: TableIndex, name: str, wrap: Callable[..., Callable[[], Worker]]
) -> StageFolder:
    folder = StageFolder.below(context.run_dir, name, "00000000")
    factory = mask_factory(CONFIG.masks, context, name, "ppmg")
    run_table_stage(
        context,
        folder,
        inputs={"cams": cams},
        factory=wrap(factory),
        schema=tables.MASKS,
        pool=Pool(2),
        batch_size=4,
    )
    return folder


@pytest.mark.parametrize(
    ("how", "kind"),
    [
        (segfault, "internal"),
        (exits, "internal"),
        (killed_for_memory, "internal"),
        (allocates_without_end, "too_large"),
    ],
)
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_image_is_an_error_row_and_its_neighbours_have_the_same_masks(
    make_context: MakeContext, shapes: Manifest, how: Callable[[], None], kind: str
) -> None:
    context = make_context(shapes, CONFIG)
    cams = write_cams(context, shapes)
    bad = cams.image_ids[5]
    whole = make_masks(context, cams, "whole", lambda factory: factory)
    broken = make_masks(
        context, cams, "broken", lambda factory: partial(poisoned, factory, bad, how)
    )
    [error] = tables.read_errors(broken.errors_uri)
    assert (error.image_id, error.stage, error.kind) == (bad, "broken", kind)
    expected = {row["image_id"]: row for row in read_all(whole.uri).to_pylist()}
    got = {row["image_id"]: row for row in read_all(broken.uri).to_pylist()}
    assert expected.pop(bad)
    assert got == expected
