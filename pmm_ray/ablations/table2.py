"""Tab. 2: from CAM to mask, with the CAMs of the baseline and of multi-crop training."""

from __future__ import annotations

from pmm_ray.ablations import Ablation, open_session
from pmm_ray.ablations.cam_tables import BASE_STAGES, IMAGES, Score, TablePipeline, note
from pmm_ray.ablations.table import Cell, PaperTable, keep_table, table_stage
from pmm_ray.ablations.table1 import MULTICROP, WHOLE
from pmm_ray.config import RunConfig, load_recipe
from pmm_ray.runtime.core.guard import guarded
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.stages.score_cams import Way
from pmm_ray.walk_pipeline import WALK_STAGES

NUMBER = 2
ROWS: tuple[tuple[str, Way, float, float], ...] = (
    ("CAM", "cam", 0.5272, 0.5821),
    ("CRF", "crf", 0.5424, 0.5919),
    ("CRF & CVS", "crf_cvs", 0.5441, 0.6083),
    ("PPMG without CVS", "ppmg_no_cvs", 0.5702, 0.6123),
    ("PPMG", "ppmg", 0.5732, 0.6149),
)
WALKED: tuple[tuple[str, Way], ...] = (("RW", "walk"), ("RW & PPMG", "ppmg"))
"""Further rows of a recipe with `affinity.enabled`."""


def baseline(config: RunConfig) -> str:
    """Name of the first column's CAMs; table 1 has the same."""
    return f"{config.classifier.backbone}-{WHOLE}"


def ours(config: RunConfig) -> str:
    """Name of the second column's CAMs: the recipe's, or table 1's of multi-crop training."""
    return "recipe" if config.multicrop.enabled else f"{config.multicrop.backbone}-{MULTICROP}"


def uses_recipe(config: RunConfig) -> bool:
    """Whether the recipe's own CAMs, of both splits, are needed."""
    return config.multicrop.enabled or config.affinity.enabled


def stages(config: RunConfig) -> tuple[str, ...]:
    """Names of the stages beyond the recipe's, in order."""
    planned = [f"make_cams-{baseline(config)}"]
    if not config.multicrop.enabled:
        planned += [*BASE_STAGES, "train_multicrop", f"make_cams-{ours(config)}"]
    for column in (baseline(config), ours(config)):
        planned += [f"score_cams-{column}-{way}" for _, way, _, _ in ROWS]
    if config.affinity.enabled:
        planned += [*WALK_STAGES, *(f"score_cams-walked-{way}" for _, way in WALKED)]
    return (*planned, table_stage(NUMBER))


def run(request: Ablation) -> int:
    """Train what is missing, score every cell, print the table; the exit code."""

    def body(progress: Progress) -> None:
        config = load_recipe(request.recipe, request.settings)
        with open_session(request, stages(config), progress) as (session, _):
            session.hold()
            pipeline = TablePipeline(session)
            pipeline.images = request.images or IMAGES
            pipeline.import_data()
            first = pipeline.train_classifier()
            whole = pipeline.held_out_cams(baseline(config), pipeline.whole_cams, first)
            recipe = pipeline.up_to_cams() if uses_recipe(config) else None
            if recipe is not None and config.multicrop.enabled:
                second = recipe
            else:
                network = pipeline.train_multicrop(pipeline.base_masks())
                second = pipeline.held_out_cams(ours(config), pipeline.window_cams, network)
            cams = {baseline(config): whole, ours(config): second}
            rows: list[tuple[Cell, ...]] = []
            scores: list[Score] = []
            for title, way, *paper in ROWS:
                both = [pipeline.score(name, maps, way) for name, maps in cams.items()]
                cells = [(s.mean_iou, f"{s.alpha:g}", p) for s, p in zip(both, paper, strict=True)]
                rows.append((title, *cells[0], *cells[1]))
                scores += both
            if config.affinity.enabled:
                assert recipe is not None, "a walk is made on the recipe's CAMs"
                walked = pipeline.walk(recipe)
                for title, way in WALKED:
                    score = pipeline.score("walked", walked, way)
                    alpha = None if score.alpha is None else f"{score.alpha:g}"
                    rows.append((title, None, None, None, score.mean_iou, alpha, None))
            columns = ("setting", "baseline", "alpha", "paper", "ours", "alpha", "paper")
            title = "mIoU of different ways from CAM to mask"
            keep_table(
                session, PaperTable(NUMBER, title, columns, tuple(rows), note(scores, config))
            )

    return guarded(body)
