"""Tab. 5: the segmenter of each cyclic round, and how much each round's masks changed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmm_ray.ablations import Ablation
from pmm_ray.ablations.segmenters import make_table, note
from pmm_ray.ablations.table import Cell, PaperTable
from pmm_ray.config import load_recipe

if TYPE_CHECKING:
    from pmm_ray.pipeline import Pipeline
    from pmm_ray.runtime.core.stage import StageFolder

PAPER = (0.6673, 0.6850, 0.6827)
"""mIoU after 0, 1 and 2 cycles (VOC 2012 val); the table has as many rows, or the recipe's."""


def run(request: Ablation) -> int:
    """Make the table; returns the exit code."""
    from pmm_ray.cycle_pipeline import Variant

    config = load_recipe(request.recipe, request.settings)
    held_out = config.data.held_out_split
    own = Variant(rounds=max(len(PAPER) - 1, config.cycles.rounds))

    def rows(pipeline: Pipeline, cams: StageFolder, masks: StageFolder) -> PaperTable:
        pipeline.run_rounds(masks, own)
        made: list[tuple[Cell, ...]] = []
        for number in range(own.count(config) + 1):
            score = pipeline.held_out_score(pipeline.held_out_stage(number, own))
            if score is None:
                break  # stop_when or if_better ended the cycle
            paper = PAPER[number] if number < len(PAPER) else None
            made.append((str(number), score, pipeline.agreement(number, own), paper))
        return PaperTable(
            5,
            "cyclic masks, by the number of cycles",
            ("cycles", f"segmenter, {held_out} %", "masks kept, train %", "paper"),
            tuple(made),
            note(config, "masks kept: pixels whose class the cycle did not change"),
        )

    return make_table(request, 5, [own], rows)
