"""What Prometheus is told of a stage."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from pmm_ray.config import RunConfig
from pmm_ray.runtime.core.errors import BudgetExceededError, RowError
from pmm_ray.runtime.core.index import index_file
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.core.tables import MASKS
from pmm_ray.runtime.mapping import meters
from pmm_ray.runtime.mapping.meters import Meters
from pmm_ray.runtime.mapping.table_stage import run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Worker, row_by_row

CLUSTER = ClusterResources(4, 0, 1, local=False)
COUNTS = {"images": 10, "host": "a", "pool_seconds": 30.0, "producer_pool_seconds": 15.0}


class Metric:
    """Keeps what it is told, in order."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.values.append(value)

    inc = observe = set


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> dict[str, Metric]:
    metrics: dict[str, Metric] = defaultdict(Metric)
    monkeypatch.setattr(meters, "_metrics", lambda: metrics)
    return metrics


def test_the_share_is_of_the_workers_that_are_there(
    told: dict[str, Metric], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(meters, "time", SimpleNamespace(monotonic=lambda: now))
    one, two = (Meters("stage", CLUSTER, two) for two in (False, True))
    one.resize(6)
    two.resize(2)
    now = 110.0
    one.chunk(COUNTS, {}, 5)
    two.chunk(COUNTS, {}, 5)
    assert told["busy"].values == [30 / 60, 15 / 20]
    two.resize(4)
    now = 120.0
    two.chunk(COUNTS, {}, 5)
    assert told["busy"].values[-1] == 30 / 60
    assert told["queue"].values == [5, 5, 5]


def failing() -> Worker:
    def fail(row: InputRow) -> dict[str, Any]:
        raise RowError("decode", "told to fail")

    return row_by_row("stage", fail)


def test_nothing_waits_in_a_stage_that_is_over(
    make_context: Callable[..., RunContext], shapes: Manifest, told: dict[str, Metric]
) -> None:
    context: Any = make_context(shapes, RunConfig.model_validate({"errors": {"budget": 0}}))
    context.cluster = replace(context.cluster, local=False)
    with pytest.raises(BudgetExceededError):
        run_table_stage(
            context,
            StageFolder.below(context.run_dir, "stage", "12345678"),
            inputs={"manifest": index_file(shapes.uri)},
            factory=failing,
            schema=MASKS,
            batch_size=4,
        )
    assert told["queue"].values[0] > 0
    assert (told["queue"].values[-1], told["busy"].values[-1]) == (0, 1.0)
