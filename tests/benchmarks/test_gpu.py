"""`benchmarks/gpu.py` at tiny sizes on a CPU: what it counts, what it writes, what it survives."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
gpu: Any = importlib.import_module("gpu")
gpu_measure: Any = importlib.import_module("gpu_measure")


def test_every_part_is_a_row_and_one_that_fails_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("no kernel image\nis available")

    monkeypatch.setitem(gpu.STAGES, "predict", gpu.STAGES["predict"]._replace(make=broken))
    out = tmp_path / "gpu"
    found = gpu.main(["--device", "cpu", "--tiny", "--out", str(out)])
    rows = {(row["stage"], row["way"]): row for row in found["rows"]}
    expected = [(part.stage, part.way.name) for part in gpu.parts(["efficientnet_lite0"], False)]
    assert list(rows) == expected
    assert {stage for stage, _ in rows} == {*gpu.STAGES, *gpu.gpu_training.STAGES}
    for (stage, _), row in rows.items():
        if stage == "predict":
            assert row["failed"] == "RuntimeError: no kernel image is available"
            continue
        assert row["images_per_second"] > 0
        assert 0 < row["busy"] <= 1
        assert row["tflops"] > 0
        assert row["peak_gb"] is None
        assert ("of_bare_torch" in row) == stage.startswith("train ")
    assert all(value > 0 for value in found["ceilings"].values())
    assert json.loads(out.with_suffix(".json").read_text()) == found
    table = [line for line in out.with_suffix(".md").read_text().splitlines() if "|" in line]
    assert len(table) == 2 + len(rows)
    assert {line.count("|") for line in table} == {table[0].count("|")}


def test_a_part_that_comes_too_late_is_a_row() -> None:
    row = gpu.guarded(lambda: {"images_per_second": 1.0}, until=0.0)
    assert row == {"failed": "not run: the time was over"}


@pytest.mark.parametrize("groups", [1, 4])
def test_operations_are_those_of_the_layers_forward_and_backward(groups: int) -> None:
    layer = nn.Conv2d(4, 8, 3, padding=1, groups=groups, bias=False)
    images = torch.randn(2, 4, 5, 6, requires_grad=True)
    forward = 2 * (2 * 8 * 5 * 6) * (4 // groups * 3 * 3)
    assert gpu_measure.operations(lambda: layer(images)) == forward
    assert gpu_measure.operations(lambda: layer(images).sum().backward()) == 3 * forward
    # the first layer of a network has no gradient of its input
    first = images.detach()
    assert gpu_measure.operations(lambda: layer(first).sum().backward()) == 2 * forward


def test_what_is_compiled_comes_last() -> None:
    ways = [part.way for part in gpu.parts(["a", "b"], with_compiler=True)]
    first = next(n for n, way in enumerate(ways) if way.compiled)
    assert all(way.compiled for way in ways[first:])
    assert len(ways[first:]) == 2 * 3
