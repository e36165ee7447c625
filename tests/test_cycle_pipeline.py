"""When the cyclic rounds go on and when they end; trainings are rehearsed, decisions are real."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pmm_ray.commands.predict import find_segmenter
from pmm_ray.commands.run import run_recipe
from pmm_ray.config import RunConfig, SegmenterConfig
from pmm_ray.method.confusion import confusion_matrix, to_sparse
from pmm_ray.nets.segmenter import description_of
from pmm_ray.pipeline.data import prepare
from pmm_ray.pipeline.rounds import Variant, evaluation, rounds
from pmm_ray.pipeline.run import Run, Step, open_run
from pmm_ray.report.run_data import load_run
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.index import scan_parts, write_index
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.rows.masks import mask_row
from pmm_ray.stages.train_segmenter import SegmenterTask

from .training import task_fields

SHAPES = Path(__file__).resolve().parents[1] / "recipes" / "shapes.yaml"
SIDE = 10


class Rehearsal:
    """Rounds whose masks are wrong in as many of 100 pixels as `wrong` says.

    Masks of an image are class 1 but for the first pixels, which are background; the truth is
    class 1 everywhere. Trainings make nothing; comparisons and choices are real.
    """

    def __init__(self, wrong: dict[str, int], config: RunConfig) -> None:
        self.wrong = wrong
        self.config = config
        self.out = io.StringIO()
        self.trained: list[int] = []

    def steps(self) -> list[Step]:
        scored = evaluation("evaluate-ppmg", "PPMG", "make_masks", "val")
        first = Step("make_masks", self.masks("make_masks"))
        return [first, *(self.rehearsed(step) for step in (scored, *rounds(self.config)))]

    def rehearsed(self, step: Step) -> Step:
        kind, _, subject = step.name.partition("-")
        if kind == "train_segmenter":
            return replace(step, make=self.train(step.name, int(subject[1:])), check=lambda c: None)
        if kind == "predict_masks":
            return replace(step, make=self.masks(step.name))
        if kind == "evaluate":
            masks = "make_masks"
            if subject != "ppmg":
                masks = f"predict_masks-{subject.removeprefix('segmenter-')}-val"
            return replace(step, make=self.scores(step.name, masks))
        return step

    def run(self, manifest: Manifest, place: Path) -> None:
        progress = Progress(stream=self.out)
        with open_run(str(place), self.config, self.steps(), progress, "local") as run:
            run.data = DataSet(manifest)
            prepare(run)
            run.follow()
            run.session.write_record(finished=True)

    def train(self, name: str, number: int) -> Callable[[Run], Stage]:
        def body(context: RunContext, folder: StageFolder) -> Summary:
            self.trained.append(number)
            return Summary(stage=folder.stage, hash=folder.hash)

        return lambda run: Stage(name, (number,), body)

    def masks(self, name: str) -> Callable[[Run], Stage]:
        def make(run: Run) -> Stage:
            space = run.data.manifest.label_space
            rows = []
            for image_id in run.data.images.image_ids:
                mask = np.ones((SIDE, SIDE), np.uint8)
                mask.ravel()[: self.wrong[name]] = 0
                rows.append(mask_row({"image_id": image_id}, mask, space, 0))
            return self.table(name, rows, tables.MASKS)

        return make

    def scores(self, name: str, masks: str) -> Callable[[Run], Stage | None]:
        def make(run: Run) -> Stage | None:
            if masks not in run.folders:
                return None
            truth, mask = np.ones((1, SIDE * SIDE), np.int64), np.ones((1, SIDE * SIDE), np.int64)
            mask[0, : self.wrong[masks]] = 0
            cells, counts = to_sparse(confusion_matrix(truth, mask, 4, 255))
            row = {"image_id": "x", "split": "val", "cells": cells.tolist()}
            row["counts"] = counts.tolist()
            details = {"masks_stage": masks, "split": "val"}
            return self.table(name, [row], tables.EVALUATION, details)

        return make

    def table(
        self, name: str, rows: list[dict[str, Any]], schema: Any, details: Any = None
    ) -> Stage:
        def write(context: RunContext, folder: StageFolder) -> Summary:
            tables.write_rows(folder.path("part-x.parquet"), rows, schema)
            write_index(folder.uri, scan_parts(folder.uri)[0])
            return Summary(stage=folder.stage, hash=folder.hash, details=details or {})

        return Stage(name, (self.wrong.get(name, 0),), write)


Rehearse = Callable[..., Rehearsal]


@pytest.fixture
def rehearse(ray_session: ClusterResources, shapes: Manifest, tmp_path: Path) -> Rehearse:
    def run(wrong: dict[str, int], **cycles: Any) -> Rehearsal:
        config = RunConfig.model_validate(
            {
                "cycles": cycles,
                "evaluate": {"train_masks": False},
                "segmenter": {"workers": 1},
                "classifier": {"workers": 1},
            }
        )
        rehearsal = Rehearsal(wrong, config)
        rehearsal.run(shapes, tmp_path / "run")
        return rehearsal

    return run


def said(pipeline: Rehearsal) -> str:
    return " ".join(pipeline.out.getvalue().split())


def test_always_replaces_the_masks_whatever_they_score(rehearse: Rehearse) -> None:
    wrong = {"make_masks": 10, "predict_masks-r0-val": 40, "predict_masks-r1": 30}
    wrong |= {"predict_masks-r1-val": 40, "predict_masks-r2": 30, "predict_masks-r2-val": 40}
    pipeline = rehearse(wrong, rounds=2)
    assert pipeline.trained == [0, 1, 2]
    assert "compare_masks-r1: 80.0 % of the pixels keep their class" in said(pipeline)
    assert "compare_masks-r2: 100.0 %" in said(pipeline)


@pytest.mark.parametrize(("limit", "trained"), [(0.8, [0, 1, 2]), (0.79, [0])])
def test_the_cycle_stops_when_masks_agree_by_more_than_the_limit(
    rehearse: Rehearse, limit: float, trained: list[int]
) -> None:
    wrong = {"make_masks": 10, "predict_masks-r0-val": 40, "predict_masks-r1": 30}
    wrong |= {"predict_masks-r1-val": 40, "predict_masks-r2": 60, "predict_masks-r2-val": 40}
    pipeline = rehearse(wrong, rounds=2, stop_when=limit)
    assert pipeline.trained == trained
    stopped = f"more than cycles.stop_when {limit}: the cycle ends" in said(pipeline)
    assert stopped == (len(trained) == 1)


def test_if_better_ends_before_masks_that_beat_their_segmenter(
    rehearse: Rehearse, tmp_path: Path
) -> None:
    wrong = {"make_masks": 30, "predict_masks-r0-val": 20, "predict_masks-r1": 20}
    # the segmenter of round 1 is worse than that of round 0, whose masks it learnt from
    wrong |= {"predict_masks-r1-val": 25}
    pipeline = rehearse(wrong, rounds=2, update="if_better")
    assert pipeline.trained == [0, 1]
    run_dir = str(tmp_path / "run")
    [second] = Path(run_dir).glob("choose_masks-r2-*")
    summary = StageFolder(str(second), "choose_masks-r2", "").summary()
    assert summary is not None
    assert summary.pixel_labels_used
    assert summary.metrics == {"segmenter": 0.75, "supervision": 0.8}
    assert "pixel labels used (val, 1 images): segmenter 75.0, its supervision 80.0" in said(
        pipeline
    )
    assert "train_segmenter-r0" in find_segmenter(run_dir, ())[0]


def test_if_better_without_truth_is_refused_before_anything_runs(
    ray_session: ClusterResources, shapes: Manifest, tmp_path: Path
) -> None:
    config = RunConfig.model_validate(
        {"cycles": {"update": "if_better"}, "data": {"held_out_split": "nowhere"}}
    )
    with pytest.raises(CannotRunError, match="if_better compares on images of split 'nowhere'"):
        Rehearsal({}, config).run(shapes, tmp_path)


def test_pmm_run_refuses_if_better_without_truth(
    shapes: Manifest, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    table = tables.read_table(shapes.uri)
    rows = [row | {"ground_truth_uri": None} for row in table.to_pylist()]
    manifest = tmp_path / "manifest.parquet"
    manifest.write_bytes(tables.to_bytes(type(table).from_pylist(rows, table.schema)))
    settings = ["data.source=manifest", f"data.root={manifest}", "cycles.update=if_better"]
    run_dir = tmp_path / "run"
    assert run_recipe(SHAPES, run_dir=str(run_dir), settings=settings) == 1
    said = " ".join(capfd.readouterr().err.split())
    assert "cycles.update: if_better compares on images of split 'val'" in said
    assert "use cycles.update: always" in said
    assert not list(run_dir.glob("train_*"))


@pytest.mark.slow
def test_whole_runs_end_their_cycles_as_they_are_told(
    ray_session: ClusterResources, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """All stages are real; the second run finds all but its decisions done."""
    small = [
        *("data.images=16", "data.size=48", "data.classes=2", "evaluate.ladder=[]"),
        *("classifier.epochs=1", "classifier.batch_size=4", "classifier.crop_size=48"),
        *("classifier.resize_long=[48, 64]", "classifier.workers=1", "cams.scales=[1.0]"),
        *("segmenter.iterations=2", "segmenter.batch_size=2", "segmenter.channels=8"),
        *("segmenter.crop_size=64", "segmenter.resize_base=[96, 64]", "segmenter.workers=1"),
        *("segmenter.choose=last", "predict.ratios=[1.0]", "predict.flip=false"),
        *("predict.resize_base=[96, 64]", "predict.crf.iterations=1", "cycles.rounds=2"),
    ]
    place = str(tmp_path / "run")
    assert run_recipe(SHAPES, run_dir=place, settings=[*small, "cycles.stop_when=0"]) == 0
    stages = [record.stage for record in load_run(place).stages]
    assert stages[-2:] == ["compare_masks-r1", "evaluate-cyclic-r1"]
    assert "train_segmenter-r1" not in stages
    assert "more than cycles.stop_when 0.0: the cycle ends" in " ".join(
        capfd.readouterr().err.split()
    )
    assert run_recipe(SHAPES, run_dir=place, settings=[*small, "cycles.update=if_better"]) == 0
    run = load_run(place)
    [choice] = [r.summary for r in run.stages if r.stage == "choose_masks-r1" and r.summary]
    scores = {e.masks_stage: e.mean_iou for e in run.evaluations if e.split == "val"}
    # both have every held-out image here, so the comparison is that of the evaluations
    assert choice.metrics["segmenter"] == pytest.approx(scores["predict_masks-r0-val"], abs=1e-6)
    assert choice.metrics["supervision"] == pytest.approx(scores["make_masks"], abs=1e-6)
    went_on = "predict_masks-r1" in [record.stage for record in run.stages]
    assert went_on == (choice.metrics["segmenter"] > choice.metrics["supervision"])
    html = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "choose_masks-r1 <small>val</small>" in html


def test_the_plan_of_rounds() -> None:
    config = RunConfig.model_validate(
        {"cycles": {"rounds": 1, "update": "if_better"}, "evaluate": {"train_masks": False}}
    )
    variant = Variant("pow", {"underfitting": {"kind": "none"}})
    assert tuple(step.name for step in rounds(config, variant)) == (
        "train_segmenter-pow-r0",
        "predict_masks-pow-r0-val",
        "evaluate-segmenter-pow-r0",
        "choose_masks-pow-r1",
        "predict_masks-pow-r1",
        "compare_masks-pow-r1",
        "train_segmenter-pow-r1",
        "predict_masks-pow-r1-val",
        "evaluate-segmenter-pow-r1",
    )
    assert len(rounds(config, Variant("short", rounds=0))) == 3
    assert variant.title("Segmenter", 0) == "Segmenter, pow, round 0"
    assert Variant().title("Segmenter", 1) == "Segmenter, round 1"


def test_every_round_begins_with_the_same_fresh_network_and_only_the_first_pretends(
    shapes: Manifest,
) -> None:
    section = SegmenterConfig(channels=8, output_stride=32)
    built = []
    for number in (0, 1):
        task = SegmenterTask(**task_fields(shapes, section), round=number)
        torch.manual_seed(0)
        built.append(task.build().network)
    first, second = (network.state_dict() for network in built)
    assert all(torch.equal(first[name], second[name]) for name in first)
    kinds = [
        description_of(network).model["decode_head"]["loss_decode"]["kind"] for network in built
    ]
    assert kinds == ["clamp", "none"]
