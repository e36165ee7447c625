"""Tab. 3: an affinity network and its random walk, against PPMG, on the recipe's own CAMs."""

from __future__ import annotations

from pmm_ray.ablations import Ablation, open_session
from pmm_ray.ablations.cam_tables import IMAGES, Score, TablePipeline, note
from pmm_ray.ablations.table import Cell, PaperTable, keep_table, table_stage
from pmm_ray.config import RunConfig, load_recipe
from pmm_ray.runtime.core.guard import guarded
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.stages.score_cams import Way
from pmm_ray.walk_pipeline import WALK_STAGES

NUMBER = 3
ROWS: tuple[tuple[str, str, Way, float], ...] = (
    ("CAM", "recipe", "cam", 0.5821),
    ("CAM, CRF", "recipe", "crf", 0.5919),
    ("CAM, RW", "walked", "walk", 0.5218),
    ("CAM, PPMG", "recipe", "ppmg", 0.6149),
    ("CAM, RW, PPMG", "walked", "ppmg", 0.6096),
)


def stages(config: RunConfig) -> tuple[str, ...]:
    """Names of the stages beyond the recipe's, in order."""
    scored = (f"score_cams-{cams}-{way}" for _, cams, way, _ in ROWS)
    return (*WALK_STAGES, *scored, table_stage(NUMBER))


def run(request: Ablation) -> int:
    """Train what is missing, score every row, print the table; the exit code."""

    def body(progress: Progress) -> None:
        config = load_recipe(request.recipe, request.settings)
        with open_session(request, stages(config), progress) as (session, _):
            session.hold()
            pipeline = TablePipeline(session)
            pipeline.images = request.images or IMAGES
            own = pipeline.up_to_cams()
            cams = {"recipe": own, "walked": pipeline.walk(own)}
            rows: list[tuple[Cell, ...]] = []
            scores: list[Score] = []
            for title, name, way, paper in ROWS:
                score = pipeline.score(name, cams[name], way)
                alpha = None if score.alpha is None else f"{score.alpha:g}"
                rows.append((title, score.mean_iou, alpha, paper))
                scores.append(score)
            columns = ("masks from", "mIoU %", "alpha", "paper")
            title = "mIoU with and without an affinity network and a random walk"
            keep_table(
                session, PaperTable(NUMBER, title, columns, tuple(rows), note(scores, config))
            )

    return guarded(body)
