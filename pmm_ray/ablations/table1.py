"""Tab. 1: CAM mIoU of backbones, with windows in neither, in testing, in training and testing."""

from __future__ import annotations

from pmm_ray.ablations import Ablation, open_session
from pmm_ray.ablations.cam_tables import (
    BASE_STAGES,
    IMAGES,
    TablePipeline,
    check_backbones,
    note,
    table_backbones,
)
from pmm_ray.ablations.table import Cell, PaperTable, keep_table, table_stage
from pmm_ray.config import RunConfig, load_recipe
from pmm_ray.runtime.core.guard import guarded
from pmm_ray.runtime.core.progress import Progress

NUMBER = 1
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


def stages(config: RunConfig) -> tuple[str, ...]:
    """Names of the stages beyond the recipe's, in order."""
    planned = list(BASE_STAGES)
    for backbone in table_backbones(config):
        planned += [f"train_classifier-{backbone}", f"train_multicrop-{backbone}"]
        for name in _NAMES.values():
            planned += [f"make_cams-{backbone}-{name}", f"score_cams-{backbone}-{name}-cam"]
    return (*planned, "train_multicrop", table_stage(NUMBER))


def run(request: Ablation) -> int:
    """Train what is missing, score every row, print the table; the exit code."""

    def body(progress: Progress) -> None:
        config = load_recipe(request.recipe, request.settings)
        check_backbones(config)
        with open_session(request, stages(config), progress) as (session, _):
            session.hold()
            pipeline = TablePipeline(session)
            pipeline.images = request.images or IMAGES
            pipeline.import_data()
            base_masks = pipeline.base_masks()
            rows: list[tuple[Cell, ...]] = []
            scores = []
            for backbone in table_backbones(config):
                classifier = pipeline.classifier(backbone)
                second = pipeline.multicrop(backbone, base_masks)
                for setting, maps, network in (
                    (BASELINE, pipeline.whole_cams, classifier),
                    (TEST, pipeline.window_cams, classifier),
                    (BOTH, pipeline.window_cams, second),
                ):
                    name = f"{backbone}-{_NAMES[setting]}"
                    cams = pipeline.held_out_cams(name, maps, network)
                    score = pipeline.score(name, cams, "cam")
                    scores.append(score)
                    paper = PAPER.get((setting, backbone))
                    rows.append((setting, backbone, score.mean_iou, f"{score.alpha:g}", paper))
            columns = ("setting", "backbone", "CAM mIoU %", "alpha", "paper")
            title = "CAM mIoU of different settings"
            kind = f" First classifier: {config.classifier.kind}, second: {config.multicrop.kind}."
            keep_table(
                session,
                PaperTable(NUMBER, title, columns, tuple(rows), note(scores, config) + kind),
            )

    return guarded(body)
