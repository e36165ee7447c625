"""Tab. 2: from CAM to mask, with the CAMs of the baseline and of multi-crop training."""

from __future__ import annotations

from pmm_ray.config import RunConfig
from pmm_ray.pipeline.data import data_steps
from pmm_ray.pipeline.run import Run, Step
from pmm_ray.pipeline.steps import (
    base_steps,
    classifier_steps,
    make_cams,
    train_classifier,
    train_multicrop,
    walk_steps,
)
from pmm_ray.pipeline.tables.cam_tables import (
    Score,
    held_out_cams,
    measured_on,
    read_score,
    score_step,
    whole_cams,
    window_cams,
)
from pmm_ray.pipeline.tables.table import Cell, PaperTable, table_step
from pmm_ray.pipeline.tables.table1 import MULTICROP, WHOLE
from pmm_ray.stages.make_masks import WALK

ROWS: tuple[tuple[str, str, float, float], ...] = (
    ("CAM", "cam_argmax", 0.5272, 0.5821),
    ("CRF", "crf_argmax", 0.5424, 0.5919),
    ("CRF & CVS", "crf_argmax_cvs", 0.5441, 0.6083),
    ("PPMG without CVS", "ppmg_no_cvs", 0.5702, 0.6123),
    ("PPMG", "ppmg", 0.5732, 0.6149),
)
WALKED = (("RW", WALK), ("RW & PPMG", "ppmg"))
"""Further rows of a recipe with `affinity.enabled`."""


def baseline(config: RunConfig) -> str:
    """Name of the first column's CAMs; table 1 has the same."""
    return f"{config.classifier.network}-{WHOLE}"


def ours(config: RunConfig) -> str:
    """Name of the second column's CAMs: the recipe's, or table 1's of multi-crop training."""
    return "recipe" if config.multicrop.enabled else f"{config.multicrop.network}-{MULTICROP}"


def steps(config: RunConfig, images: int | None) -> list[Step]:
    """The CAMs of both columns, and every way to masks of each, scored."""
    first, second = baseline(config), ours(config)
    found = [*data_steps(config, "table 2"), train_classifier()]
    found += [held_out_cams(first, whole_cams, "train_classifier", images)]
    if config.multicrop.enabled or config.affinity.enabled:
        found += [*classifier_steps(config), make_cams()]  # the recipe's own, of both splits
    if not config.multicrop.enabled:
        found += [*base_steps(), train_multicrop()]
        found += [held_out_cams(second, window_cams, "train_multicrop", images)]
    places = {first: f"make_cams-{first}", second: f"make_cams-{second}"}
    if config.multicrop.enabled:
        places[second] = "make_cams"
    for _, method, _, _ in ROWS:
        found += [score_step(name, cams, method, images) for name, cams in places.items()]
    if config.affinity.enabled:
        found += walk_steps()
        found += [score_step("walked", "walk_cams", method, images) for _, method in WALKED]
    return [*found, table_step(2, _table)]


def _table(run: Run) -> PaperTable:
    config = run.config
    rows: list[tuple[Cell, ...]] = []
    scores: list[Score] = []
    for title, method, *paper in ROWS:
        both = [read_score(run, name, method) for name in (baseline(config), ours(config))]
        cells = [(s.mean_iou, s.exponent, p) for s, p in zip(both, paper, strict=True)]
        rows.append((title, *cells[0], *cells[1]))
        scores += both
    if config.affinity.enabled:
        for title, method in WALKED:
            found = read_score(run, "walked", method)
            rows.append((title, None, None, None, found.mean_iou, found.exponent, None))
    columns = ("setting", "baseline", "alpha", "paper", "ours", "alpha", "paper")
    title = "mIoU of different ways from CAM to mask"
    return PaperTable(2, title, columns, tuple(rows), measured_on(scores, config))
