"""Whose fault a failure is: told from the exception, then from where failures happen."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pmm_ray.nets.halving import in_halves
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.index import index_file, read_all
from pmm_ray.runtime.core.machine import (
    MachineError,
    machine_fault,
    network_fault,
    out_of_memory,
)
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.resources import Pool
from pmm_ray.runtime.core.stage import RunContext, StageFolder, Summary
from pmm_ray.runtime.mapping.blame import Blame
from pmm_ray.runtime.mapping.table_stage import run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Worker, row_by_row

from .test_table_stage import SCHEMA

MakeContext = Callable[..., RunContext]
ILLEGAL = "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be ..."


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(ILLEGAL),
        torch.AcceleratorError("CUDA error: unspecified launch failure"),
        torch.distributed.DistBackendError("NCCL error in: ProcessGroupNCCL.cpp:3690"),
        RuntimeError("Found no NVIDIA driver on your system. Please check that you have ..."),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
        RuntimeError("CUDA error: uncorrectable ECC error encountered"),
    ],
)
def test_errors_of_devices_and_drivers_are_the_machines(error: Exception) -> None:
    said = machine_fault(error)
    assert said is not None
    assert "\n" not in said
    # wherever they are wrapped
    wrapped = ValueError("a view failed")
    wrapped.__cause__ = error
    assert machine_fault(wrapped) == said


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("size mismatch for conv1"),
        ZeroDivisionError("a bug"),
        ValueError("label 'CUDA error' is unknown"),  # a user's words
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_other_errors_are_not(error: Exception) -> None:
    assert machine_fault(error) is None
    assert out_of_memory(error) == ("memory" in str(error) or "ALLOC" in str(error))


def test_a_failed_link_may_be_any_partners() -> None:
    assert network_fault(torch.distributed.DistBackendError("NCCL error in: x"))
    assert not network_fault(RuntimeError(ILLEGAL))


def test_a_batch_that_does_not_fit_is_halved_until_it_does() -> None:
    sizes = []

    def network(batch_BN: Tensor, other_B: Tensor) -> Tensor:
        sizes.append(len(batch_BN))
        if len(batch_BN) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        return batch_BN * other_B[:, None]

    batch, other = torch.arange(14.0).reshape(7, 2), torch.arange(7.0)
    assert torch.equal(in_halves(network, batch, other), batch * other[:, None])
    assert sizes == [7, 4, 2, 2, 3, 2, 1]

    def never(batch_BN: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        in_halves(never, batch)


def test_memory_that_one_image_alone_exceeds_is_its_error_and_a_devices_failure_is_not() -> None:
    def too_large(row: InputRow) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    rows: Sequence[InputRow] = [{"manifest": {"image_id": "a", "uri": "a.jpg"}}]
    [row] = row_by_row("area", too_large)(rows)
    assert isinstance(row, ErrorRow)
    assert (row.kind, row.process) == ("too_large", os.getpid())
    assert row.host

    def broken(row: InputRow) -> dict[str, Any]:
        raise RuntimeError(ILLEGAL)

    with pytest.raises(MachineError, match="illegal memory access"):
        list(row_by_row("area", broken)(rows))


def test_a_package_that_is_missing_is_no_images_error() -> None:
    def lacking(row: InputRow) -> dict[str, Any]:
        raise ModuleNotFoundError("No module named 'pydensecrf'")

    rows: Sequence[InputRow] = [{"manifest": {"image_id": "a", "uri": "a.jpg"}}]
    with pytest.raises(CannotRunError, match="'pydensecrf': install the same packages on every"):
        list(row_by_row("area", lacking)(rows))


def word(
    node: str, done: Sequence[str] = (), failed: Sequence[str] = (), fault: str = "", **more: Any
) -> dict[str, Any]:
    """What a task reports."""
    place = {"node": node, "host": f"host-{node}", "process": more.pop("process", 1)}
    nobody = {"producer_node": "", "producer_host": "", "producer_process": 0}
    return {
        "done": json.dumps(list(done)),
        "failed": json.dumps(list(failed)),
        "earlier": 0,
        "in_a_row": 0 if done else len(failed),
        "part": "-".join([node, *done, *failed]),
        "failure": "",
        "fault": json.dumps({"text": "CUDA error", "image": fault, **place}) if fault else "",
        **place,
        **nobody,
        "producer_in_a_row": 0,
        **more,
    }


def anywhere(node: str) -> bool:
    return True


def nowhere(node: str) -> bool:
    return False


def test_a_device_that_fails_at_three_images_is_at_fault() -> None:
    blame = Blame()
    for image in ("a", "a", "b"):
        blame.add(word("sick", fault=image))
        assert blame.verdict(anywhere) is None
    blame.add(word("well", done=["a", "b"]))
    blame.add(word("sick", fault="c"))
    verdict = blame.verdict(anywhere)
    assert verdict is not None
    assert (verdict.node, verdict.host) == ("sick", "host-sick")
    assert blame.verdict(anywhere) is None  # told once


def test_a_healthy_stage_does_not_look_at_the_cluster() -> None:
    asked: list[str] = []

    def elsewhere(node: str) -> bool:
        asked.append(node)
        return True

    blame = Blame()
    blame.add(word("well", done=["a", "b"]))
    blame.add(word("well", fault="c"))
    assert blame.verdict(elsewhere) is None
    assert asked == []
    for image in "de":
        blame.add(word("well", done=[f"after-{image}"]))
        blame.add(word("well", fault=image))
    assert blame.verdict(elsewhere) is not None
    assert asked == ["well"]


def test_images_that_break_every_device_are_no_nodes_fault() -> None:
    blame = Blame()
    for number in range(9):
        blame.add(word(f"node-{number % 3}", fault=f"image-{number}"))
        assert blame.verdict(anywhere) is None
    assert blame.broke["image-4"] == 1


def test_two_nodes_that_are_sick_at_once_are_both_at_fault() -> None:
    blame = Blame()
    blame.add(word("well", done=["a", "b"]))
    found = []
    for number in range(3):
        for node in ("one", "two"):
            blame.add(word(node, fault=f"{node}-{number}"))
            found += [verdict.node] if (verdict := blame.verdict(anywhere)) else []
    assert found == ["one", "two"]
    # what other nodes did before they were avoided says nothing for the next one
    for number in range(3):
        assert blame.verdict(anywhere) is None
        blame.add(word("three", fault=f"three-{number}"))
    assert blame.verdict(anywhere) is not None


def test_where_every_other_node_was_at_fault_it_may_be_the_images() -> None:
    blame = Blame()
    for number in range(3):
        blame.add(word("one", fault=f"image-{number}"))
    assert blame.verdict(anywhere) is not None
    for number in range(11):
        blame.add(word("two", fault=f"image-{number}"))
        assert blame.verdict(anywhere) is None


def test_nodes_that_only_take_what_gpus_made_say_nothing_of_devices() -> None:
    blame = Blame()
    for number in range(5):
        cpu = {"process": 7, "producer_node": "gpu-0", "producer_host": "g", "producer_process": 3}
        blame.add(word(f"cpu-{number}", done=[f"done-{number}"], **cpu))
    for number in range(9):
        blame.add(word(f"gpu-{number % 3}", fault=f"image-{number}"))
        assert blame.verdict(anywhere) is None


def test_what_a_report_costs_does_not_grow_with_the_nodes() -> None:
    def calls(nodes: int) -> int:
        blame, counted = Blame(), []
        for number in range(nodes):
            blame.add(word(f"node-{number}", done=[f"image-{number}"]))
        report = word("node-0", done=["more"])
        sys.setprofile(lambda frame, event, _: counted.append(frame) if "call" in event else None)
        try:
            blame.add(report)
            assert blame.verdict(anywhere) is None
            assert blame.faults == 0
        finally:
            sys.setprofile(None)
        return len(counted)

    assert calls(100) == calls(10)


def test_a_node_alone_is_at_fault_only_if_nothing_succeeds_between() -> None:
    blame = Blame()
    for number in range(6):
        blame.add(word("only", fault=f"image-{number}"))
        blame.add(word("only", done=[f"other-{number}"]))
        assert blame.verdict(nowhere) is None
    for number in range(3):
        blame.add(word("only", fault=f"last-{number}"))
    assert blame.verdict(nowhere) is not None


def test_eight_error_rows_in_a_row_from_one_process_cast_doubt_on_its_node() -> None:
    blame = Blame()
    ids = [f"image-{n}" for n in range(8)]
    blame.add(word("sick", failed=ids[:5]))
    # another process of it does well
    blame.add(word("sick", done=["x", "y"], process=2))
    assert blame.verdict(anywhere) is None
    blame.add(word("sick", failed=ids[5:]))
    assert blame.verdict(nowhere) is None  # there is nobody for a second opinion
    verdict = blame.verdict(anywhere)
    assert verdict is not None
    assert list(verdict.image_ids) == ids
    assert len(verdict.error_parts) == 2
    # elsewhere they succeed
    blame.add(word("well", done=ids))
    assert blame.second_opinion() is None


def test_a_second_node_may_be_doubted_once_the_doubt_of_the_first_is_settled() -> None:
    blame = Blame()
    for node in ("one", "two"):
        ids = [f"{node}-{n}" for n in range(8)]
        blame.add(word(node, failed=ids))
        verdict = blame.verdict(anywhere)
        assert verdict is not None
        assert verdict.node == node
        blame.add(word("well", done=ids))
        assert blame.second_opinion() is None


def test_images_that_fail_elsewhere_too_clear_their_node() -> None:
    blame = Blame()
    ids = [f"image-{n}" for n in range(8)]
    blame.add(word("a", failed=ids))
    assert blame.verdict(anywhere) is not None
    blame.add(word("b", failed=ids))
    assert blame.second_opinion() == "a"
    # and no other node is doubted for rows
    blame.add(word("b", failed=[f"more-{n}" for n in range(20)]))
    assert blame.verdict(anywhere) is None


def test_many_more_error_rows_than_elsewhere_cast_doubt() -> None:
    blame = Blame()
    for number in range(60):
        blame.add(word("well", done=[f"well-{number}"]))
    for number in range(8):
        assert blame.verdict(anywhere) is None
        blame.add(word("sick", done=[f"s-{number}"], failed=[f"f-{number}"]))
    verdict = blame.verdict(anywhere)
    assert verdict is not None
    assert "8 of 16 images failed there, and 0 of 60 elsewhere" in verdict.why


def test_failures_of_the_first_pool_are_its_nodes() -> None:
    blame = Blame()
    ids = [f"image-{n}" for n in range(8)]
    producer = {"producer_node": "gpu", "producer_host": "gpu-1", "producer_process": 3}
    for image in ids:
        blame.add(
            word("cpu", failed=[image], earlier=1, producer_in_a_row=1, in_a_row=0, **producer)
        )
    verdict = blame.verdict(anywhere)
    assert verdict is not None
    assert (verdict.node, verdict.host) == ("gpu", "gpu-1")


def sick_worker(log: str, good: int, breaks: str = "") -> Worker:
    """Maps so many images, then a CUDA-like error at each; or only at one image."""
    seen = []

    def area(row: InputRow) -> dict[str, Any]:
        image_id = row["manifest"]["image_id"]
        seen.append(image_id)
        if image_id == breaks or (not breaks and len(seen) > good):
            (Path(log) / f"{image_id}-{os.getpid()}-{len(seen)}").touch()
            raise RuntimeError(ILLEGAL)
        return {"image_id": image_id, "area": os.getpid()}

    return row_by_row("area", area)


def run(
    context: RunContext, factory: Callable[[], Worker], images: int
) -> tuple[Summary, StageFolder]:
    folder = StageFolder.below(context.run_dir, "area", "12345678")
    index = index_file(context.manifest.uri)
    summary = run_table_stage(
        context,
        folder,
        inputs={"manifest": index.select(index.image_ids[:images])},
        factory=factory,
        schema=SCHEMA,
        pool=Pool(1, actors=True),
        batch_size=4,
    )
    return summary, folder


@pytest.mark.slow
def test_a_process_whose_device_fails_from_the_nth_image_on_is_replaced(
    make_context: MakeContext, shapes: Manifest, tmp_path: Path
) -> None:
    context = make_context(shapes)
    summary, folder = run(context, partial(sick_worker, str(tmp_path), 3), images=9)
    assert (summary.images, summary.errors) == (9, 0)
    processes = {row["area"] for row in read_all(folder.uri).to_pylist()}
    faults = list(read_events(context.run_dir, "machine_fault"))
    # each ended at its fourth image, and another went on
    assert len(processes) >= 3
    assert len(faults) >= 2
    assert {fault["process"] for fault in faults} <= processes
    assert all(fault["host"] and "illegal memory" in fault["text"] for fault in faults)


def test_a_broken_device_ends_the_run_and_makes_no_error_row(
    make_context: MakeContext, shapes: Manifest, tmp_path: Path
) -> None:
    context = make_context(shapes)
    with pytest.raises(CannotRunError, match=r"the machine .* is at fault.*illegal memory"):
        run(context, partial(sick_worker, str(tmp_path), 0), images=16)
    assert (
        tables.read_errors(StageFolder.below(context.run_dir, "area", "12345678").errors_uri) == []
    )


@pytest.mark.slow
def test_an_image_that_breaks_each_device_becomes_an_error_row(
    make_context: MakeContext, shapes: Manifest, tmp_path: Path
) -> None:
    context = make_context(shapes)
    bad = index_file(shapes.uri).image_ids[2]
    summary, folder = run(context, partial(sick_worker, str(tmp_path), 0, bad), images=6)
    assert (summary.images, summary.errors) == (5, 1)
    [row] = tables.read_errors(folder.errors_uri)
    assert (row.image_id, row.kind) == (bad, "internal")
    assert "device failed each time" in row.message
    assert len(list(tmp_path.glob(f"{bad}-*"))) == 3
