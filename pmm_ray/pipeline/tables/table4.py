"""Tab. 4: one segmenter for each operation on the loss, and for masks of a random walk."""

from __future__ import annotations

from pmm_ray.config import RunConfig
from pmm_ray.method.mask_methods import MASK_METHODS
from pmm_ray.pipeline.rounds import Variant, rounds
from pmm_ray.pipeline.run import Run, Step
from pmm_ray.pipeline.tables.segmenter_tables import (
    WALKED,
    steps_to_masks,
    trained_on,
    variant_of,
    walked_masks,
)
from pmm_ray.pipeline.tables.table import Cell, PaperTable, table_step

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


def _variant(kind: str, masks: str, config: RunConfig) -> Variant:
    if masks == "ours":
        return variant_of(config, kind)
    return variant_of(config, kind, f"{kind}-walked", WALKED)


def steps(config: RunConfig, images: int | None) -> list[Step]:
    """Both kinds of masks, and a segmenter for each row."""
    found = [*steps_to_masks(4, config, images), *walked_masks(config)]
    for kind, masks, _ in ROWS:
        found += rounds(config, _variant(kind, masks, config))
    return [*found, table_step(4, _table)]


def _table(run: Run) -> PaperTable:
    config = run.config
    pus, ours = config.segmenter.underfitting, MASK_METHODS[config.masks.method].title
    rows: list[tuple[Cell, ...]] = []
    for kind, masks, paper in ROWS:
        score = run.score(_variant(kind, masks, config).held_out_masks(0, config))
        numbers = ("", "") if kind == "none" else (f"{pus.beta:g}", f"{pus.kappa:g}")
        rows.append((kind, masks, *numbers, score, paper))
    return PaperTable(
        4,
        "pretended under-fitting, by its operation on the loss",
        ("pus", "masks", "beta", "kappa", f"segmenter, {config.data.held_out_split} %", "paper"),
        tuple(rows),
        trained_on(
            config,
            f"round 0, scope {pus.scope}; ours: {ours}; RW: argmax of the recipe's CAMs after a "
            "random walk",
        ),
    )
