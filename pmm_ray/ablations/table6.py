"""Tab. 6: what each step from activation maps to the last segmenter adds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmm_ray.ablations import Ablation
from pmm_ray.ablations.segmenters import CAM_STAGES, WALKED_STAGES, make_table, note, variant_of
from pmm_ray.ablations.table import Cell, PaperTable
from pmm_ray.config import load_recipe

if TYPE_CHECKING:
    from pmm_ray.pipeline import Pipeline
    from pmm_ray.runtime.core.stage import StageFolder

PAPER = (0.5821, 0.5218, 0.6149, None, 0.6673, 0.6850)
"""mIoU of the steps (VOC 2012 val); the paper has no segmenter without under-fitting here."""


def run(request: Ablation) -> int:
    """Make the table; returns the exit code."""
    from pmm_ray.cycle_pipeline import Variant

    config = load_recipe(request.recipe, request.settings)
    held_out = config.data.held_out_split
    plain = variant_of(config, "none")
    own = Variant(rounds=max(1, config.cycles.rounds))

    def rows(pipeline: Pipeline, cams: StageFolder, masks: StageFolder) -> PaperTable:
        pipeline.make_ladder_masks(cams, "cam_argmax")
        walked = pipeline.make_walked_masks(cams)
        pipeline.run_rounds(masks, plain)
        pipeline.run_rounds(masks, own)
        steps = {
            "CAM": "make_masks-cam_argmax",
            "CAM, RW": walked.stage,
            "CAM, PPMG": masks.stage,
            "+ segmenter": pipeline.held_out_stage(0, plain),
            "+ PUS": pipeline.held_out_stage(0, own),
        }
        for number in range(1, own.count(config) + 1):
            steps[f"+ cyclic, round {number}"] = pipeline.held_out_stage(number, own)
        made: list[tuple[Cell, ...]] = []
        for place, (step, stage) in enumerate(steps.items()):
            score = pipeline.held_out_score(stage)
            if score is not None:  # else stop_when or if_better ended the cycle
                made.append((step, score, PAPER[place] if place < len(PAPER) else None))
        return PaperTable(
            6,
            "what each step adds",
            ("step", f"{held_out} %", "paper"),
            tuple(made),
            note(
                config,
                f"classifier {config.classifier.backbone}, segmenter {config.segmenter.backbone}; "
                "RW is not part of the steps below it; for the paper's last row (70.01) set "
                "segmenter.backbone: res2net101 with its segmenter.weights",
            ),
        )

    return make_table(request, 6, [plain, own], rows, (*CAM_STAGES, *WALKED_STAGES))
