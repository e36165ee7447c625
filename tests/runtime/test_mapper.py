"""The function under Ray Data's plan: whatever it raises would be dropped, so it reports."""

from __future__ import annotations

import json
import threading
from typing import Any

import pyarrow as pa
import pytest

from pmm_ray.runtime.core.machine import Place
from pmm_ray.runtime.mapping import operators
from pmm_ray.runtime.mapping.operators import Row, _Mapper
from pmm_ray.runtime.mapping.tasks import SOUND

BUSY = "CUDA error: all CUDA-capable devices are busy or unavailable"
CHUNK = pa.table({"chunk": ["x"]})


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What ends this process, in place of its end."""
    ended: list[str] = []
    monkeypatch.setattr(operators, "_ending", threading.Event())
    monkeypatch.setattr(operators, "_last_report", threading.Lock())
    monkeypatch.setattr(operators, "end_process_soon", lambda: ended.append("soon"))
    return ended


def failed(row: Row, why: Row) -> Row:
    return SOUND | why


def mapped(function: Any = None, worker: Any = lambda rows: rows) -> Row:
    [row] = _Mapper(lambda: worker, function, failed, 0.5)(CHUNK).to_pylist()
    return dict(row)


def test_a_card_on_which_no_context_can_be_made_is_a_fault(
    monkeypatch: pytest.MonkeyPatch, ended: list[str]
) -> None:
    def no_context(gpus: float) -> None:
        raise RuntimeError(BUSY)

    monkeypatch.setattr(operators, "inference_process", no_context)
    row = mapped()
    assert BUSY in json.loads(row["fault"])["text"]
    assert row["host"] == Place.here().host
    # the process takes no more chunks from those that work
    assert ended == ["soon"]


def test_any_other_exception_is_the_chunks_failure(ended: list[str]) -> None:
    def bug(row: Row, worker: Any) -> Row:
        raise KeyError("odd")

    assert mapped(bug)["failure"] == "KeyError: 'odd'"

    class Counting:
        def counted(self) -> Row:
            raise ZeroDivisionError("views of no pass")

    row = mapped(lambda row, worker: {"failure": "", "fault": ""}, Counting())
    assert row["failure"] == "ZeroDivisionError: views of no pass"
    assert ended == []


@pytest.mark.parametrize(("process", "ends"), [(0, []), (1, ["soon"])])
def test_only_the_process_of_the_broken_device_ends(
    ended: list[str], process: int, ends: list[str]
) -> None:
    """The second of two pools passes on the word of the first."""
    here = Place.here().__dict__
    fault = json.dumps(here | {"text": BUSY, "image": "a", "process": process * here["process"]})
    assert mapped(lambda row, worker: {"failure": "", "fault": fault})["fault"] == fault
    assert ended == ends
