"""Tab. 5: the segmenter of each cyclic round, and how much each round's masks changed."""

from __future__ import annotations

from pmm_ray.config import RunConfig
from pmm_ray.pipeline.rounds import Variant, rounds
from pmm_ray.pipeline.run import Run, Step
from pmm_ray.pipeline.tables.segmenter_tables import steps_to_masks, trained_on
from pmm_ray.pipeline.tables.table import Cell, PaperTable, table_step

PAPER = (0.6673, 0.6850, 0.6827)
"""mIoU after 0, 1 and 2 cycles (VOC 2012 val); the table has as many rows, or the recipe's."""


def _own(config: RunConfig) -> Variant:
    return Variant(rounds=max(len(PAPER) - 1, config.cycles.rounds))


def steps(config: RunConfig, images: int | None) -> list[Step]:
    """The run's own segmenter, in as many rounds as the paper has."""
    return [
        *steps_to_masks(5, config, images),
        *rounds(config, _own(config)),
        table_step(5, _table),
    ]


def _table(run: Run) -> PaperTable:
    config = run.config
    own = _own(config)
    rows: list[tuple[Cell, ...]] = []
    for number in range(own.count(config) + 1):
        score = run.score(own.held_out_masks(number, config))
        if score is None:
            break  # stop_when or if_better ended the cycle
        compared = run.folders.get(f"compare_masks-{own.round(number)}")
        kept = None if compared is None else compared.finished().metrics["agreement"]
        paper = PAPER[number] if number < len(PAPER) else None
        rows.append((str(number), score, kept, paper))
    return PaperTable(
        5,
        "cyclic masks, by the number of cycles",
        ("cycles", f"segmenter, {config.data.held_out_split} %", "masks kept, train %", "paper"),
        tuple(rows),
        trained_on(config, "masks kept: pixels whose class the cycle did not change"),
    )
