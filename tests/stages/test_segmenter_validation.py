"""The segmenter scored on held-out images while it is trained."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latticecrf import CrfParameters, DenseCrf
from pmm_ray.config import PredictConfig
from pmm_ray.method.confusion import confusion_matrix, mean_iou
from pmm_ray.nets.segmenter import build_segmenter, description_of, predict_logits
from pmm_ray.nets.segmenter_validation import MIOU, SCORED, SegmenterShare
from pmm_ray.nets.views import normalise_views
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.sources.datasets.shapes import make_shapes

from ..networks import mean_probabilities
from .segmenter_job import section, validation


def test_validation_is_the_evaluators_miou_whatever_the_number_of_workers(
    shapes: Manifest,
) -> None:
    torch.manual_seed(0)
    network = build_segmenter(section(), 4, 255).eval()
    about = description_of(network)
    total = np.zeros((4, 4), np.int64)
    this = validation(shapes)
    assert len(this.rows()) == shapes.splits["val"]
    for row in this.rows():
        image_HW3 = this.photographs.image(row)
        pixels = torch.from_numpy(image_HW3.copy()).permute(2, 0, 1)[None]
        truth = decode_mask(storage.read_bytes(shapes.locate(row["ground_truth_uri"])))
        size = max(image_HW3.shape[:2]), min(image_HW3.shape[:2])
        exact = dataclasses.replace(this, resize_base=size)
        with torch.no_grad():
            views = normalise_views(pixels, about.input_mean, about.input_std)
            predicted = predict_logits(network, views)[0].argmax(0).numpy()
        assert np.array_equal(exact._predict(network, image_HW3, torch.device("cpu")), predicted)
        total += confusion_matrix(
            truth, this._predict(network, image_HW3, torch.device("cpu")), 4, 255
        )
    want = mean_iou(total)[0]
    for world in (1, 3):
        shares = [this.measure(network, torch.device("cpu"), r, world) for r in range(world)]
        assert this.metrics(shares) == {MIOU: want, SCORED: shapes.splits["val"]}
    assert (
        validation(shapes, "nothing").metrics([SegmenterShare(np.zeros((4, 4), np.int64), 0)]) == {}
    )


@pytest.mark.parametrize("pixels", [0, 99])
def test_truth_without_a_class_gives_no_score_to_choose_by(shapes: Manifest, pixels: int) -> None:
    """All of it 255, or background, in which the emptiest mask has IoU 1."""
    total = np.zeros((4, 4), np.int64)
    total[0, 0] = pixels
    assert validation(shapes).metrics([SegmenterShare(total, 2)]) == {SCORED: 2}


@pytest.mark.parametrize("use_crf", [True, False])
def test_the_test_pipeline_scores_what_predict_would_make(shapes: Manifest, use_crf: bool) -> None:
    torch.manual_seed(0)
    network = build_segmenter(section(), 4, 255).eval()
    base = (80, 60)
    predict = PredictConfig(
        ratios=(0.5, 1.0), resize_base=base, crop_size=48, stride=32, use_crf=use_crf
    )
    this = dataclasses.replace(validation(shapes), predict=predict, images=2)
    total = np.zeros((4, 4), np.int64)
    for row in this.rows():
        image_HW3 = this.photographs.image(row)
        scores = mean_probabilities(image_HW3, network, predict, torch.device("cpu"))
        if use_crf:
            scores = DenseCrf(image_HW3, CrfParameters.segmentation()).joint(scores)
        total += confusion_matrix(this.photographs.truth(row), scores.argmax(0), 4, 255)
    share = this.measure(network, torch.device("cpu"), 0, 1)
    assert share.images == 2
    assert np.abs(share.confusion - total).sum() <= 0.001 * total.sum()  # float16 between both
    alone = dataclasses.replace(this, predict=None).measure(network, torch.device("cpu"), 0, 1)
    assert not np.array_equal(alone.confusion, share.confusion)


def test_a_held_out_image_that_cannot_be_scored_is_left_out_and_named(tmp_path: Path) -> None:
    """A value outside the classes, another size, no file, no PNG: the others are scored."""
    make_shapes(str(tmp_path), images=24, size=48, classes=3, seed=2)
    manifest = open_manifest(str(tmp_path / "manifest.parquet"))
    this = validation(manifest)
    network = build_segmenter(section(), 4, 255).eval()
    told: list[tuple[int, int]] = []
    whole = this.measure(network, torch.device("cpu"), 0, 1, lambda *done: told.append(done))
    assert told == [(done, len(this.rows())) for done in range(len(this.rows()))]
    assert (whole.images, this.unusable()) == (len(this.rows()), {})
    paths = [Path(manifest.locate(row["ground_truth_uri"])) for row in this.rows()[:4]]
    mask_HW = decode_mask(paths[0].read_bytes())
    Image.fromarray(mask_HW[:9]).save(paths[1])
    mask_HW[0, 0] = 200
    Image.fromarray(mask_HW).save(paths[0])
    paths[2].unlink()
    paths[3].write_bytes(b"no picture")
    share = this.measure(network, torch.device("cpu"), 0, 1)
    assert share.images == whole.images - 4
    reasons = [this.unusable()[row["image_id"]] for row in this.rows()[:4]]
    for reason, path, said in zip(
        reasons,
        paths,
        (
            "the truth holds [200]: allowed are 0..3 and 255",
            "the truth is (9, ",
            "no ground truth",
            "",
        ),
        strict=True,
    ):
        assert path.name in reason
        assert said in reason
    assert len(this.unusable()) == 4


PROGRAM = """
import importlib
import json
import sys
sys.path.insert(0, sys.argv[1])
module = importlib.import_module("tests.stages.segmenter_job")
print(json.dumps(module.statistics(*sys.argv[2:])))
"""


def test_before_scoring_all_workers_have_the_first_ones_statistics(
    shapes: Manifest, masks_uri: str, tmp_path: Path
) -> None:
    """Two processes, whose norms see other images, score one and the same network."""
    root = str(Path(__file__).parents[2])
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, root, shapes.uri, masks_uri]
    workers = [
        subprocess.Popen([*command, str(tmp_path), str(rank)], stdout=subprocess.PIPE, text=True)
        for rank in (0, 1)
    ]
    seen = [json.loads(worker.communicate(timeout=240)[0].splitlines()[-1]) for worker in workers]
    assert len(set(seen[0])) == 3
    assert seen[0] == seen[1]
