"""Tab. 1: CAM mIoU of backbones, with windows in neither, in testing, in training and testing."""

from __future__ import annotations

from pmm_ray.config import RunConfig
from pmm_ray.pipeline.data import data_steps
from pmm_ray.pipeline.run import Run, Step
from pmm_ray.pipeline.steps import base_steps, train_classifier
from pmm_ray.pipeline.tables.cam_tables import (
    classifier,
    held_out_cams,
    measured_on,
    multicrop,
    read_score,
    score_step,
    table_backbones,
    whole_cams,
    window_cams,
)
from pmm_ray.pipeline.tables.table import Cell, PaperTable, table_step

BASELINE, TEST, BOTH = "baseline", "multi-crop test", "multi-crop test & train"
PAPER = {
    (BASELINE, "resnet38"): 0.5272,
    (TEST, "resnet38"): 0.5393,
    (BOTH, "resnet38"): 0.5621,
    (TEST, "res2net101"): 0.5490,
    (TEST, "scalenet101"): 0.5781,
    (BOTH, "scalenet101"): 0.5821,
}
WHOLE, MULTICROP = "whole", "multicrop"
_NAMES = {BASELINE: WHOLE, TEST: "windows", BOTH: MULTICROP}


def steps(config: RunConfig, images: int | None) -> list[Step]:
    """Two classifiers of each backbone, and three kinds of maps of them, scored."""
    found = [*data_steps(config, "table 1"), train_classifier(), *base_steps()]
    for backbone in table_backbones(config):
        first, second = classifier(backbone, config), multicrop(backbone, config)
        found += [first, second]
        for setting, maps, network in (
            (BASELINE, whole_cams, first.name),
            (TEST, window_cams, first.name),
            (BOTH, window_cams, second.name),
        ):
            name = f"{backbone}-{_NAMES[setting]}"
            found += [held_out_cams(name, maps, network, images)]
            found += [score_step(name, f"make_cams-{name}", "cam_argmax", images)]
    return [*found, table_step(1, _table)]


def _table(run: Run) -> PaperTable:
    config = run.config
    rows: list[tuple[Cell, ...]] = []
    scores = []
    for backbone in table_backbones(config):
        for setting, name in _NAMES.items():
            found = read_score(run, f"{backbone}-{name}", "cam_argmax")
            paper = PAPER.get((setting, backbone))
            scores.append(found)
            rows.append((setting, backbone, found.mean_iou, found.exponent, paper))
    columns = ("setting", "backbone", "CAM mIoU %", "alpha", "paper")
    kind = f" First classifier: {config.classifier.kind}, second: {config.multicrop.kind}."
    title = "CAM mIoU of different settings"
    return PaperTable(1, title, columns, tuple(rows), measured_on(scores, config) + kind)
