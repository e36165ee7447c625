"""A node that does not see what the driver sees, as one whose disk is not mounted: its failure."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pmm_ray.config import RunConfig
from pmm_ray.runtime.core.errors import CannotRunError, MayPassError
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.index import TableIndex, index_file
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.resources import ClusterResources, Node, Pool
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.core.store_faults import refusal
from pmm_ray.runtime.mapping.blame import Blame
from pmm_ray.runtime.mapping.table_stage import run_table_stage
from pmm_ray.runtime.mapping.tasks import failed_chunk, reason

from .test_table_stage import SCHEMA

HOST = socket.gethostname()


@pytest.fixture
def own(shapes: Manifest) -> Iterator[TableIndex]:
    """The manifest under a name that this process sees and no other."""
    index = index_file(shapes.uri)
    with open(shapes.uri, "rb") as file:
        number = fcntl.fcntl(file, fcntl.F_DUPFD, 900)
        yield replace(index, parts=(f"/proc/self/fd/{number}",))
        os.close(number)


def never() -> Callable[[Any], Any]:
    return lambda rows: pytest.fail("no row was read")


def run(context: RunContext, index: TableIndex) -> None:
    folder = StageFolder.below(context.run_dir, "area", "1")
    inputs = {"manifest": index}
    run_table_stage(
        context, folder, inputs=inputs, factory=never, schema=SCHEMA, pool=Pool(1), batch_size=99
    )


def test_the_node_is_named_where_no_other_can_do_its_work(
    make_context: Callable[..., RunContext], shapes: Manifest, own: TableIndex
) -> None:
    with pytest.raises(MayPassError, match=rf"the machine {HOST} .*/proc/self/fd.*No other"):
        run(make_context(shapes), own)


def test_it_is_avoided_where_another_can(
    make_context: Callable[..., RunContext], shapes: Manifest, own: TableIndex
) -> None:
    config = RunConfig.model_validate({"runtime": {"nodes_seconds": 0.1}})
    context = make_context(shapes, config)
    cluster: ClusterResources = replace(context.cluster, offered=(Node(4),), avoided={})
    # the other one never comes
    with pytest.raises(MayPassError, match="no node came"):
        run(SimpleNamespace(**context.__dict__ | {"cluster": cluster}), own)  # type: ignore[arg-type]
    [event] = read_events(context.run_dir, "node_avoided")
    assert event["of_host"] == HOST
    assert "/proc/self/fd" in event["why"]


def test_what_nobody_sees_ends_the_run_and_names_the_host(
    make_context: Callable[..., RunContext], shapes: Manifest, tmp_path: Path
) -> None:
    gone = replace(index_file(shapes.uri), parts=(str(tmp_path / "gone.parquet"),))
    with pytest.raises(CannotRunError, match=rf"^area, on {HOST}: .*gone\.parquet") as error:
        run(make_context(shapes), gone)
    assert not isinstance(error.value, MayPassError)


def test_one_report_is_enough_and_its_error_rows_are_doubted() -> None:
    blame = Blame()
    place = {"node": "n1", "host": "late", "process": 7}
    zero = {"producer_node": "", "earlier": 0, "producer_in_a_row": 0} | place
    rows = failed_chunk({"failed": '["a"]', "part": "p", "images": 1, "errors": 1}) | zero
    blame.add(rows)
    assert blame.verdict(lambda node: True) is None
    error = FileNotFoundError(errno.ENOENT, "No such file", "/shared/x")
    blame.add(failed_chunk(reason(error, ["/shared/x"]) | {"at": json.dumps(place)}) | zero)
    verdict = blame.verdict(lambda node: True)
    assert verdict is not None
    assert (verdict.node, verdict.host, verdict.error_parts) == ("n1", "late", ["p"])


def test_what_a_system_or_a_store_refuses_is_told_from_what_fails() -> None:
    def because(cause: Exception) -> Exception:
        error = CannotRunError("x is not there")
        error.__cause__ = cause
        return error

    denied = OSError("AWS Error ACCESS_DENIED during HeadObject operation: No response body")
    missing = FileNotFoundError(errno.ENOENT, "No such file", "/shared/x")
    for error in (denied, missing, because(missing), OSError(errno.EROFS, "read-only")):
        assert refusal(error) is not None
        assert reason(error, ["/t"])["unseen"] == '["/t"]'
    full, stale = OSError(errno.ENOSPC, "full"), OSError(errno.ESTALE, "stale")
    throttled = OSError("AWS Error SLOW_DOWN during GetObject operation: Reduce your request rate")
    for error in (full, stale, throttled, ValueError("odd"), because(full)):
        assert refusal(error) is None
        assert reason(error, ["/t"])["unseen"] == "[]"
