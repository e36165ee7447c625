"""Tab. 4: one segmenter for each operation on the loss, and for masks of a random walk."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pmm_ray.ablations import Ablation
from pmm_ray.ablations.segmenters import WALKED_STAGES, make_table, note, variant_of
from pmm_ray.ablations.table import Cell, PaperTable
from pmm_ray.config import load_recipe

if TYPE_CHECKING:
    from pmm_ray.pipeline import Pipeline
    from pmm_ray.runtime.core.stage import StageFolder

ROWS: tuple[tuple[str, str, float | None], ...] = (
    ("none", "RW", 0.6441),
    ("none", "ours", 0.6486),
    ("pow", "ours", 0.6492),
    ("ignore", "ours", 0.6544),
    ("clamp", "ours", 0.6673),
    ("reweight", "ours", None),
    ("clamp", "RW", 0.6327),
)
"""Operation, pseudo-masks, and what the paper has (VOC 2012 val)."""


def run(request: Ablation) -> int:
    """Make the table; returns the exit code."""
    config = load_recipe(request.recipe, request.settings)
    variants = [
        variant_of(config, kind, kind if masks == "ours" else f"{kind}-walked")
        for kind, masks, _ in ROWS
    ]
    pus, held_out = config.segmenter.underfitting, config.data.held_out_split

    def rows(pipeline: Pipeline, cams: StageFolder, masks: StageFolder) -> PaperTable:
        by_name = {"ours": masks, "RW": pipeline.make_walked_masks(cams)}
        made: list[tuple[Cell, ...]] = []
        for (kind, name, paper), variant in zip(ROWS, variants, strict=True):
            pipeline.run_rounds(by_name[name], variant)
            score = pipeline.held_out_score(pipeline.held_out_stage(0, variant))
            numbers = ("", "") if kind == "none" else (f"{pus.beta:g}", f"{pus.kappa:g}")
            made.append((kind, name, *numbers, score, paper))
        return PaperTable(
            4,
            "pretended under-fitting, by its operation on the loss",
            ("pus", "masks", "beta", "kappa", f"segmenter, {held_out} %", "paper"),
            tuple(made),
            note(
                config,
                f"round 0, scope {pus.scope}; ours: PPMG; RW: argmax of the recipe's CAMs after a "
                "random walk",
            ),
        )

    return make_table(request, 4, variants, rows, WALKED_STAGES)
