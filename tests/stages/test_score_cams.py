"""Rows of the paper's tables: every way from CAM to mask, and the best exponent of a grid."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latticecrf import CrfParameters
from pmm_ray.config import MasksConfig, RunConfig
from pmm_ray.method.cams import upsample_cam
from pmm_ray.method.confusion import confusion_matrix, mean_iou
from pmm_ray.method.masks import MaskParameters, argmax_mask, proportional_mask
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import ErrorRow
from pmm_ray.runtime.core.index import index_file, read_all, read_index
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.rows.cams import decode_cam
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.stages import score_cams
from pmm_ray.stages.score_cams import Way, masks_of

from .truth_cams import cams_of_truth

MakeContext = Callable[..., RunContext]
ALPHAS = (0.05, 1.0, 6.0)
CONFIG = MasksConfig()


@pytest.fixture(scope="module")
def rows(shapes: Manifest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Joined rows of all images; their CAMs are blurred truth."""
    cams = read_all(cams_of_truth(shapes, tmp_path_factory.mktemp("cams"))).to_pylist()
    manifest = {row["image_id"]: row for row in tables.read_table(shapes.uri).to_pylist()}
    return [{"cams": row, "manifest": manifest[row["image_id"]]} for row in cams]


def photographs(shapes: Manifest) -> Photographs:
    return Photographs(shapes.root, shapes.apply_exif, 10**7, shapes.label_space)


def alone(way: Way, image: Any, cam: Any, labels: list[int], alpha: float) -> Any:
    """One mask by the method's own functions."""
    if way == "cam" or way == "crf":
        plain = MaskParameters(
            alpha=alpha, smoothing=0, zero_below_threshold=False, crf=CrfParameters.seam()
        )
        return argmax_mask(image, cam, labels, plain, use_crf=way == "crf")
    if way == "crf_cvs":
        smooth = MaskParameters(alpha=alpha, crf=CrfParameters.seam())
        return argmax_mask(image, cam, labels, smooth)
    parameters = MaskParameters(alpha=alpha)
    if way == "ppmg_no_cvs":
        parameters = replace(parameters, smoothing=0.0)
    return proportional_mask(image, cam, labels, parameters)


@pytest.mark.parametrize("way", ["cam", "crf", "crf_cvs", "ppmg_no_cvs", "ppmg"])
def test_every_way_is_the_method_s(shapes: Manifest, rows: list[dict[str, Any]], way: Way) -> None:
    row = max(rows, key=lambda row: len(row["cams"]["labels"]))
    image = photographs(shapes).image(row["manifest"])
    cam = upsample_cam(decode_cam(row["cams"]), *image.shape[:2])
    masks = list(masks_of(way, row, image, CONFIG, ALPHAS))
    assert len(masks) == len(ALPHAS)
    for mask, alpha in zip(masks, ALPHAS, strict=True):
        want = alone(way, image, cam, row["cams"]["labels"], alpha)
        np.testing.assert_array_equal(mask, want)


def test_the_best_exponent_counts(
    shapes: Manifest, make_context: MakeContext, tmp_path: Path
) -> None:
    context = make_context(shapes, RunConfig())
    cams = read_index(cams_of_truth(shapes, tmp_path / "cams"))
    chosen = cams.select(index_file(shapes.uri, {"split": ["val"]}).image_ids)
    folder = StageFolder.below(context.run_dir, "score_cams-x-cam", "0")
    summary = score_cams.run(
        CONFIG,
        context,
        folder,
        cams=chosen,
        images=index_file(shapes.uri),
        way="cam",
        alphas=ALPHAS,
        split="val",
    )
    space, reader = shapes.label_space, photographs(shapes)
    total = np.zeros((len(ALPHAS), space.num_classes, space.num_classes), np.int64)
    manifest = {row["image_id"]: row for row in tables.read_table(shapes.uri).to_pylist()}
    table = {row["image_id"]: row for row in read_all(str(tmp_path / "cams")).to_pylist()}
    for image_id in chosen.image_ids:
        row = manifest[image_id]
        image, truth = reader.image(row), reader.truth(row)
        cam = upsample_cam(decode_cam(table[image_id]), *image.shape[:2])
        for found, alpha in zip(total, ALPHAS, strict=True):
            mask = alone("cam", image, cam, table[image_id]["labels"], alpha)
            found += confusion_matrix(truth, mask, space.num_classes, space.ignore)
    want = [mean_iou(confusion)[0] for confusion in total]
    assert list(summary.details["mean_iou_by_alpha"].values()) == pytest.approx(want, abs=1e-6)
    assert summary.metrics["mean_iou"] == pytest.approx(max(want), abs=1e-6)
    assert summary.details["alpha"] == ALPHAS[int(np.argmax(want))]
    assert summary.pixel_labels_used
    assert summary.images == len(chosen)


def test_a_walk_has_one_mask_and_no_exponent(shapes: Manifest, rows: list[dict[str, Any]]) -> None:
    row = rows[0]
    cams = row["cams"]
    size = cams["cam_height"] * cams["cam_width"]
    sure = {"background": np.zeros(size, "<f2").tobytes(), "peaks": [1.0] * len(cams["labels"])}
    image = photographs(shapes).image(row["manifest"])
    [mask] = masks_of("walk", {**row, "cams": cams | sure}, image, CONFIG, ALPHAS)
    assert mask.shape == image.shape[:2]
    assert set(np.unique(mask)) <= set(cams["labels"])


def test_what_cannot_be_scored_is_an_error_row(
    shapes: Manifest, rows: list[dict[str, Any]]
) -> None:
    good, bad = rows[0], {**rows[1], "cams": dict(rows[1]["cams"])}
    bad["cams"]["cam"] = np.full(len(bad["cams"]["cam"]) // 2, np.inf, "<f2").tobytes()
    worker = score_cams.score_worker("cam", CONFIG, ALPHAS, photographs(shapes), "stage")
    first, second = worker([good, bad])
    assert isinstance(first, dict)
    assert [sum(counts) for counts in first["counts"]] == [
        good["cams"]["height"] * good["cams"]["width"]
    ] * len(ALPHAS)
    assert isinstance(second, ErrorRow)
    assert second.kind == "nonfinite"
