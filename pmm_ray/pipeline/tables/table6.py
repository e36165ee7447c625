"""Tab. 6: what each step from activation maps to the last segmenter adds."""

from __future__ import annotations

from pmm_ray.config import RunConfig
from pmm_ray.method.mask_methods import MASK_METHODS
from pmm_ray.pipeline.rounds import Variant, rounds
from pmm_ray.pipeline.run import Run, Step
from pmm_ray.pipeline.steps import ladder_steps
from pmm_ray.pipeline.tables.segmenter_tables import (
    WALKED,
    steps_to_masks,
    trained_on,
    variant_of,
    walked_masks,
)
from pmm_ray.pipeline.tables.table import Cell, PaperTable, table_step
from pmm_ray.runtime.core.errors import CannotRunError

PAPER = (0.5821, 0.5218, 0.6149, None, 0.6673, 0.6850)
"""mIoU of the steps (VOC 2012 val); the paper has no segmenter without under-fitting here."""
_PUS = "+ PUS"


def _segmenters(config: RunConfig) -> tuple[Variant, Variant]:
    """Without under-fitting and cycles; the run's own, with one cycle or more.

    They are one where the run's own does not pretend: then there is no row of under-fitting.
    """
    own = Variant(rounds=max(1, config.cycles.rounds))
    plain = own if config.segmenter.underfitting.kind == "none" else variant_of(config, "none")
    return plain, own


def steps(config: RunConfig, images: int | None) -> list[Step]:
    """The other ways to masks, and the segmenters.

    Raises:
        CannotRunError: the recipe's own masks are of walked CAMs.
    """
    if config.affinity.enabled:
        raise CannotRunError(
            "table 6 begins with the CAMs as they are, and has a row for the random walk: --set "
            "affinity.enabled=false, with a --run-dir of its own"
        )
    plain, own = _segmenters(config)
    return [
        *steps_to_masks(6, config, images),
        *([] if config.masks.method == "cam_argmax" else ladder_steps(config, "cam_argmax")),
        *walked_masks(config),
        *([] if plain is own else rounds(config, plain)),
        *rounds(config, own),
        table_step(6, _table),
    ]


def _table(run: Run) -> PaperTable:
    config = run.config
    plain, own = _segmenters(config)
    method = config.masks.method
    masks = {
        "CAM": "make_masks" if method == "cam_argmax" else "make_masks-cam_argmax",
        "CAM, RW": WALKED,
        f"CAM, {MASK_METHODS[method].title}": "make_masks",
        "+ segmenter": plain.held_out_masks(0, config),
        _PUS: own.held_out_masks(0, config),
    }
    for number in range(1, own.count(config) + 1):
        masks[f"+ cyclic, round {number}"] = own.held_out_masks(number, config)
    rows: list[tuple[Cell, ...]] = []
    for place, (step, name) in enumerate(masks.items()):
        if step == _PUS and plain is own:
            continue
        score = run.score(name)
        if score is not None:  # else stop_when or if_better ended the cycle
            rows.append((step, score, PAPER[place] if place < len(PAPER) else None))
    return PaperTable(
        6,
        "what each step adds",
        ("step", f"{config.data.held_out_split} %", "paper"),
        tuple(rows),
        trained_on(
            config,
            f"classifier {config.classifier.network}, segmenter {config.segmenter.backbone}, "
            f"segmenter.underfitting.kind {config.segmenter.underfitting.kind}; "
            "RW is not part of the steps below it; for the paper's last row (70.01) set "
            "segmenter.backbone: res2net101 with its segmenter.weights",
        ),
    )
