"""Tab. 3: an affinity network and its random walk, against PPMG, on the recipe's own CAMs."""

from __future__ import annotations

from pmm_ray.config import RunConfig
from pmm_ray.pipeline.run import Run, Step
from pmm_ray.pipeline.steps import steps_to_cams, walk_steps
from pmm_ray.pipeline.tables.cam_tables import Score, measured_on, read_score, score_step
from pmm_ray.pipeline.tables.table import Cell, PaperTable, table_step
from pmm_ray.stages.make_masks import WALK

ROWS: tuple[tuple[str, str, str, float], ...] = (
    ("CAM", "recipe", "cam_argmax", 0.5821),
    ("CAM, CRF", "recipe", "crf_argmax", 0.5919),
    ("CAM, RW", "walked", WALK, 0.5218),
    ("CAM, PPMG", "recipe", "ppmg", 0.6149),
    ("CAM, RW, PPMG", "walked", "ppmg", 0.6096),
)
_PLACES = {"recipe": "make_cams", "walked": "walk_cams"}


def steps(config: RunConfig, images: int | None) -> list[Step]:
    """The recipe's CAMs, the walk on them, and every row, scored."""
    scored = [score_step(name, _PLACES[name], method, images) for _, name, method, _ in ROWS]
    return [*steps_to_cams(config, "table 3"), *walk_steps(), *scored, table_step(3, _table)]


def _table(run: Run) -> PaperTable:
    rows: list[tuple[Cell, ...]] = []
    scores: list[Score] = []
    for title, name, method, paper in ROWS:
        found = read_score(run, name, method)
        rows.append((title, found.mean_iou, found.exponent, paper))
        scores.append(found)
    columns = ("masks from", "mIoU %", "alpha", "paper")
    title = "mIoU with and without an affinity network and a random walk"
    return PaperTable(3, title, columns, tuple(rows), measured_on(scores, run.config))
