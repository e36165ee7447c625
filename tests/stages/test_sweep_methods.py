"""Rows of the paper's tables: every way from CAM to mask, under a grid of exponents."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latticecrf import CrfParameters
from pmm_ray.config import ErrorsConfig, MasksConfig, RunConfig
from pmm_ray.method.cams import upsample_cam
from pmm_ray.method.confusion import confusion_matrix, mean_iou
from pmm_ray.method.mask_methods import MASK_METHODS
from pmm_ray.method.masks import MaskParameters, argmax_masks, proportional_masks
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import ErrorRow
from pmm_ray.runtime.core.index import index_file, read_all, read_index
from pmm_ray.runtime.core.manifest import Manifest, ManifestRow, write_manifest
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.rows.cams import decode_cam, walked_mask
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.runtime.rows.masks import mask_parameters
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.stages import sweep_masks
from pmm_ray.stages.make_masks import WALK, mask_worker
from pmm_ray.stages.sweep_masks import combined, grid, sweep_worker

from .truth_cams import cams_of_truth

MakeContext = Callable[..., RunContext]
ALPHAS = (0.05, 1.0, 6.0)
POINTS = grid({"alpha": ALPHAS})
CONFIG = MasksConfig()


@pytest.fixture(scope="module")
def rows(shapes: Manifest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Joined rows of all images; their CAMs are blurred truth."""
    cams = read_all(cams_of_truth(shapes, tmp_path_factory.mktemp("cams"))).to_pylist()
    manifest = {row["image_id"]: row for row in tables.read_table(shapes.uri).to_pylist()}
    return [{"cams": row, "manifest": manifest[row["image_id"]]} for row in cams]


def photographs(shapes: Manifest) -> Photographs:
    return Photographs(shapes.root, shapes.apply_exif, 10**7, shapes.label_space)


def alone(method: str, image: Any, cam: Any, labels: list[int], alpha: float) -> Any:
    """One mask by the method's own functions."""
    if method in ("cam_argmax", "crf_argmax"):
        plain = MaskParameters(
            alpha=alpha, smoothing=0, zero_below_threshold=False, crf=CrfParameters.seam()
        )
        return argmax_masks(image, cam, labels, [plain], use_crf=method == "crf_argmax")[0]
    if method == "crf_argmax_cvs":
        smooth = MaskParameters(alpha=alpha, crf=CrfParameters.seam())
        return argmax_masks(image, cam, labels, [smooth])[0]
    parameters = MaskParameters(alpha=alpha)
    if method == "ppmg_no_cvs":
        parameters = replace(parameters, smoothing=0.0)
    return proportional_masks(image, cam, labels, [parameters])[0]


@pytest.mark.parametrize("method", list(MASK_METHODS))
def test_every_method_does_what_its_row_says(
    shapes: Manifest, rows: list[dict[str, Any]], method: str
) -> None:
    row = max(rows, key=lambda row: len(row["cams"]["labels"]))
    image = photographs(shapes).image(row["manifest"])
    cam = upsample_cam(decode_cam(row["cams"]), *image.shape[:2])
    parameters = [mask_parameters(combined(CONFIG, point)) for point in POINTS]
    masks = MASK_METHODS[method].load()(image, cam, row["cams"]["labels"], parameters)
    assert len(masks) == len(ALPHAS)
    for mask, alpha in zip(masks, ALPHAS, strict=True):
        want = alone(method, image, cam, row["cams"]["labels"], alpha)
        np.testing.assert_array_equal(mask, want)


def test_the_best_exponent_counts(
    shapes: Manifest, make_context: MakeContext, tmp_path: Path
) -> None:
    context = make_context(shapes, RunConfig())
    cams = read_index(cams_of_truth(shapes, tmp_path / "cams"))
    chosen = cams.select(index_file(shapes.uri, {"split": ["val"]}).image_ids)
    folder = StageFolder.below(context.run_dir, "sweep_masks-x-cam_argmax", "0")
    summary = sweep_masks.run(
        CONFIG,
        context,
        folder,
        cams=chosen,
        method="cam_argmax",
        combinations=POINTS,
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
            mask = alone("cam_argmax", image, cam, table[image_id]["labels"], alpha)
            found += confusion_matrix(truth, mask, space.num_classes, space.ignore)
    want = [mean_iou(confusion)[0] for confusion in total]
    found = [row["mean_iou"] for row in summary.details["combinations"]]
    assert found == pytest.approx(want, abs=1e-6)
    assert summary.metrics["mean_iou"] == pytest.approx(max(want), abs=1e-6)
    assert summary.details["chosen"]["alpha"] == ALPHAS[int(np.argmax(want))]
    assert summary.pixel_labels_used
    assert summary.images == len(chosen)


def test_a_walk_has_one_mask_and_no_exponent(shapes: Manifest, rows: list[dict[str, Any]]) -> None:
    row = rows[0]
    cams = row["cams"]
    size = cams["cam_height"] * cams["cam_width"]
    sure = {"background": np.zeros(size, "<f2").tobytes(), "peaks": [1.0] * len(cams["labels"])}
    worker = sweep_worker(None, [mask_parameters(CONFIG)], "lattice", photographs(shapes), WALK)
    walked = {**row, "cams": cams | sure}
    [out] = worker([walked])
    assert isinstance(out, dict)
    [cells] = out["cells"]
    predicted = set(np.unravel_index(cells, (shapes.label_space.num_classes,) * 2)[1])
    assert predicted <= set(cams["labels"])
    # the mask that a segmenter learns from is the one that is scored
    [made] = mask_worker(None, mask_parameters(CONFIG), "lattice", photographs(shapes), WALK)(
        [walked]
    )
    assert isinstance(made, dict)
    mask = decode_mask(made["mask_png"])
    np.testing.assert_array_equal(mask, walked_mask(walked["cams"], *mask.shape))
    assert set(made["labels"]) == predicted


def test_what_cannot_be_scored_is_an_error_row(
    shapes: Manifest, rows: list[dict[str, Any]]
) -> None:
    good, bad = rows[0], {**rows[1], "cams": dict(rows[1]["cams"])}
    bad["cams"]["cam"] = np.full(len(bad["cams"]["cam"]) // 2, np.inf, "<f2").tobytes()
    parameters = [mask_parameters(combined(CONFIG, point)) for point in POINTS]
    make = MASK_METHODS["cam_argmax"].load()
    worker = sweep_worker(make, parameters, "lattice", photographs(shapes), "stage")
    first, second = worker([good, bad])
    assert isinstance(first, dict)
    assert [sum(counts) for counts in first["counts"]] == [
        good["cams"]["height"] * good["cams"]["width"]
    ] * len(ALPHAS)
    assert isinstance(second, ErrorRow)
    assert second.kind == "nonfinite"


@pytest.mark.parametrize(
    ("value", "reason"), [(220, "such as .*the truth holds \\[220\\]"), (0, "holds no class")]
)
def test_a_search_that_scored_no_image_chooses_nothing_and_says_why(
    value: int, reason: str, shapes: Manifest, make_context: MakeContext, tmp_path: Path
) -> None:
    cams = read_index(cams_of_truth(shapes, tmp_path / "cams"))
    rows = []
    for row in tables.read_table(shapes.uri).to_pylist():
        truth = tmp_path / f"{row['image_id']}.png"
        Image.fromarray(np.full((row["height"], row["width"]), value, np.uint8)).save(truth)
        row |= {"uri": shapes.locate(row["uri"]), "ground_truth_uri": str(truth)}
        rows.append(ManifestRow(**row))
    uri = str(tmp_path / "manifest.parquet")
    manifest = write_manifest(uri, rows, shapes.label_space, source="test", exif="ignore")
    context = make_context(manifest, RunConfig(errors=ErrorsConfig(budget=0)))
    folder = StageFolder.below(context.run_dir, "sweep_masks-x", "0")
    summary = sweep_masks.run(
        CONFIG, context, folder, cams=cams, method="cam_argmax", combinations=POINTS, split="val"
    )
    assert re.search(reason, summary.details["not_scored"])
    assert (summary.details["chosen"], summary.metrics) == ({}, {})
    assert summary.errors == len(tables.read_errors(folder.errors_uri)) == len(rows) * bool(value)
