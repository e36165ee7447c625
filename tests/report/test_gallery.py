"""Whose maps, masks and scores the gallery shows, where a folder has those of several networks."""

from __future__ import annotations

from pathlib import Path

import yaml

from pmm_ray.report.gallery import Gallery, make_gallery
from pmm_ray.report.run_data import load_run

from .run_folder import RunFolder


def gallery(run: RunFolder) -> Gallery:
    found = make_gallery(load_run(run.uri), 4)
    assert found is not None
    return found


def own_run(root: Path) -> RunFolder:
    run = RunFolder(root)
    run.cams()
    run.evaluate(run.masks("make_masks", 5), "make_masks", "PPMG", "val")
    segment(run, "r0", 3, "Segmenter, round 0")
    return run


def segment(run: RunFolder, name: str, shift: int, title: str) -> None:
    run.train(f"train_segmenter-{name}")
    masks = f"predict_masks-{name}-val"
    run.evaluate(run.masks(masks, shift), masks, title, "val")


def test_an_ablation_changes_nothing(tmp_path: Path) -> None:
    run = own_run(tmp_path / "run")
    before = gallery(run)
    assert before.scored_by == "Segmenter, round 0"
    segment(run, "none-r0", 12, "Segmenter, none, round 0")
    run.stage("make_cams-vgg16")
    assert gallery(run) == before


def test_a_round_that_was_refused_is_not_scored(tmp_path: Path) -> None:
    run = own_run(tmp_path / "run")
    config = yaml.safe_load((run.root / "resolved.yaml").read_text())
    config["cycles"] = {"update": "if_better", "rounds": 2}
    (run.root / "resolved.yaml").write_text(yaml.safe_dump(config))
    before = gallery(run)
    run.stage("choose_masks-r1", details={"update": True})
    segment(run, "r1", 12, "Segmenter, round 1")
    run.stage(
        "choose_masks-r2",
        details={"update": False},
        metrics={"segmenter": 0.1, "supervision": 0.2},
    )
    assert gallery(run) == before


def test_without_a_segmenter_the_masks_are_scored(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.evaluate(run.masks("make_masks", 5), "make_masks", "PPMG", "val")
    other = "make_masks-crf_argmax"
    run.evaluate(run.masks(other, 12), other, "CRF argmax", "val")
    assert gallery(run).scored_by == "PPMG"
