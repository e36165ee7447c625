"""Scores of masks that are worked out by hand, on the real stream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from pmm_ray.method.confusion import from_sparse
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.index import index_file
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.rows.images import decode_mask, encode_mask
from pmm_ray.runtime.rows.masks import mask_row
from pmm_ray.stages import evaluate

MakeContext = Callable[..., RunContext]


def test_scores_agree_with_torchmetrics_and_name_what_has_no_truth(
    make_context: MakeContext, shapes: Manifest, tmp_path: Path
) -> None:
    context = make_context(shapes)
    rng = np.random.default_rng(0)
    metric = MulticlassJaccardIndex(4, average="none", ignore_index=255)
    masks = []
    rows = tables.read_table(shapes.uri).to_pylist()
    for row in rows:
        truth = decode_mask(storage.read_bytes(shapes.locate(row["ground_truth_uri"])))
        noisy = np.where(rng.random(truth.shape) < 0.2, rng.integers(0, 4, truth.shape), truth)
        noisy = noisy.astype(np.uint8)
        masks.append(mask_row(row, noisy, shapes.label_space, 0))
        metric.update(torch.from_numpy(noisy), torch.from_numpy(truth.copy()))
    source = str(tmp_path / "masks.parquet")
    storage.write_bytes(source, tables.to_bytes(pa.Table.from_pylist(masks, tables.MASKS)))
    folder = StageFolder.below(context.run_dir, "evaluate-x", "12345678")
    summary = evaluate.run(
        context,
        folder,
        masks=index_file(source),
        title="noise",
        split="val",
        masks_stage="make_masks",
    )
    expected = metric.compute().numpy()
    scores = summary.details["class_iou"]
    np.testing.assert_allclose(list(scores.values()), expected, atol=1e-6)
    assert list(scores) == list(shapes.label_space.names)
    assert summary.metrics["mean_iou"] == pytest.approx(expected.mean(), abs=1e-6)
    assert summary.pixel_labels_used
    assert summary.details["excluded"] == []


def test_classes_without_truth_are_left_out_of_the_mean(shapes: Manifest) -> None:
    # two pixels of class 1, one of them called background; class 2 and 3 appear nowhere
    space = shapes.label_space
    total = from_sparse(np.array([5, 4]), np.array([1, 1]), space.num_classes)
    metrics, details = evaluate.scores(total, space)
    names = shapes.label_space.names
    assert metrics["mean_iou"] == 0.5
    assert details["excluded"] == [names[0], *names[2:]]
    assert set(details["class_iou"].values()) == {0.5, None}


def test_a_mask_of_another_size_is_an_error_row(shapes: Manifest) -> None:
    from pmm_ray.runtime.core.errors import ErrorRow
    from pmm_ray.runtime.rows.photographs import Photographs

    row = tables.read_table(shapes.uri).to_pylist()[0]
    photographs = Photographs(shapes.root, False, 10**8, shapes.label_space)
    mask = {"mask_png": encode_mask(np.zeros((3, 3), np.uint8), shapes.label_space)}
    [out] = evaluate.evaluation_worker(photographs, "evaluate")([{"manifest": row, "masks": mask}])
    assert isinstance(out, ErrorRow)
    assert out.kind == "label"
