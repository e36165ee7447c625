"""Fixtures that write run folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pmm_ray.runtime.core.errors import ErrorRow

from .run_folder import RunFolder


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunFolder]:
    def make(**options: Any) -> RunFolder:
        return RunFolder(tmp_path / "run", **options)

    return make


@pytest.fixture
def full_run(make_run: Callable[..., RunFolder]) -> RunFolder:
    """A finished run with every piece."""
    run = make_run()
    bad = [
        ErrorRow("img-9", "make_cams", "decode", "truncated <img src=x>", "/data/img-9.jpg"),
        ErrorRow("img-8", "make_cams", "missing", "no such file", "/data/img-8.jpg"),
    ]
    run.stage("import_data", errors=bad)
    run.train("train_classifier")
    run.cams()
    for stage, title, shift in (
        ("make_masks-cam_argmax", "CAM argmax", 8),
        ("make_masks-crf_argmax", "CRF argmax", 6),
        ("make_masks", "PPMG", 5),
    ):
        run.evaluate(run.masks(stage, shift), stage, title, "val")
    run.train("train_segmenter-r0")
    run.evaluate(
        run.masks("predict_masks-r0-val", 3), "predict_masks-r0-val", "segmenter, round 0", "val"
    )
    cyclic = run.masks("predict_masks-r1", 2)
    run.evaluate(cyclic, "predict_masks-r1", "cyclic masks", "train")
    run.train("train_segmenter-r1")
    run.evaluate(
        run.masks("predict_masks-r1-val", 1), "predict_masks-r1-val", "segmenter, round 1", "val"
    )
    run.write_record(finished="2026-11-01T10:05:00", seconds=300.5)
    return run
