"""The sweep: every combination scored as `make_masks` and `evaluate` would, on one sample."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pmm_ray.config import MasksConfig, RunConfig
from pmm_ray.method.confusion import confusion_matrix, mean_iou
from pmm_ray.method.masks import proportional_masks
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.index import index_file
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.runtime.rows.masks import mask_parameters
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.stages import sweep_masks
from pmm_ray.stages.make_masks import mask_worker
from pmm_ray.stages.sweep_masks import combined, grid, sample

from .test_make_masks import blob_cam

MakeContext = Callable[..., RunContext]


def test_the_grid_holds_every_combination_in_order() -> None:
    points = grid({"alpha": [3, 5], "smoothing": [0, 0.3]})
    assert points == [
        {"alpha": 3, "smoothing": 0},
        {"alpha": 3, "smoothing": 0.3},
        {"alpha": 5, "smoothing": 0},
        {"alpha": 5, "smoothing": 0.3},
    ]


def test_the_sample_does_not_depend_on_order_and_grows_by_adding() -> None:
    ids = [f"i{n}" for n in range(40)]
    chosen = sample(ids, 10, seed=1)
    assert chosen == sample(ids[::-1], 10, seed=1)
    assert chosen != sample(ids, 10, seed=2)
    assert set(chosen) < set(sample(ids, 11, seed=1))
    assert sample(ids, 100, seed=1) == sample(ids, None, seed=1) == sorted(ids)


def test_a_combination_replaces_the_configured_values() -> None:
    config = MasksConfig(alpha=9, smoothing=0.1, semantics="paper")
    expected = MasksConfig(alpha=4, smoothing=0.1, semantics="paper")
    assert combined(config, {"alpha": 4.0}) == expected


def test_scores_are_those_of_each_combination_alone(
    make_context: MakeContext, shapes: Manifest, tmp_path: Path
) -> None:
    manifest = tables.read_table(shapes.uri).to_pylist()
    cams = [blob_cam(row, i) for i, row in enumerate(manifest)]
    source = storage.join(str(tmp_path), "cams.parquet")
    storage.write_bytes(source, tables.to_bytes(pa.Table.from_pylist(cams, tables.CAMS)))
    chosen = sample([row["image_id"] for row in manifest], 6, seed=0)
    said = io.StringIO()
    context = make_context(shapes, RunConfig())
    context.progress = Progress(stream=said)  # type: ignore[misc]
    folder = StageFolder.below(context.run_dir, "sweep_masks", "00000000")
    points = grid({"alpha": [1.0, 4.0], "smoothing": [0.0, 0.3]})
    summary = sweep_masks.run(
        MasksConfig(),
        context,
        folder,
        cams=index_file(source).select(chosen),
        method="ppmg",
        combinations=points,
        split="val",
    )
    assert (summary.images, summary.errors) == (6, 0)
    assert summary.pixel_labels_used
    assert "pixel labels used (val, 6 images)" in said.getvalue()
    found = summary.details["combinations"]
    assert [{k: row[k] for k in ("alpha", "smoothing")} for row in found] == points
    photographs = Photographs.of(context)
    for point, row in zip(points, found, strict=True):
        expected = score_alone(point, photographs, manifest, cams, chosen)
        assert row["mean_iou"] == pytest.approx(expected, abs=1e-6)
    best = max(found, key=lambda row: row["mean_iou"])
    assert summary.details["chosen"] == {k: best[k] for k in ("alpha", "smoothing")}
    assert summary.metrics["mean_iou"] == best["mean_iou"]
    assert pq.read_table(folder.path("sweep.parquet")).to_pylist() == found
    written = json.loads(Path(folder.path("sweep.json")).read_text())
    assert written["chosen"] == summary.details["chosen"]


def score_alone(
    point: dict[str, float],
    photographs: Photographs,
    manifest: list[dict[str, Any]],
    cams: list[dict[str, Any]],
    chosen: list[str],
) -> float:
    parameters = mask_parameters(MasksConfig(**point))  # type: ignore[arg-type]
    worker = mask_worker(proportional_masks, parameters, "lattice", photographs, "make_masks")
    rows = [
        {"manifest": m, "cams": c}
        for m, c in zip(manifest, cams, strict=True)
        if m["image_id"] in chosen
    ]
    space = photographs.label_space
    total = np.zeros((space.num_classes, space.num_classes), np.int64)
    for row, out in zip(rows, worker(rows), strict=True):
        assert isinstance(out, dict)
        total += confusion_matrix(
            photographs.truth(row["manifest"]),
            decode_mask(out["mask_png"]),
            space.num_classes,
            space.ignore,
        )
    return mean_iou(total)[0]
