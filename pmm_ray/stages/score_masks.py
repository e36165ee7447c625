"""Score any masks against any truth: pixels are counted per image, and given a meaning at the end.

A task counts pairs of the files' raw values. Their meaning is decided once, from the
values of the whole set, when all are counted: see `method.readings`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pmm_ray.labels import LabelSpace
from pmm_ray.method.confusion import count_pairs
from pmm_ray.method.readings import SIDES, Counts, add_up, choose_readings, describe
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import (
    CannotRunError,
    ErrorRow,
    RowError,
    require_budget,
)
from pmm_ray.runtime.core.index import TableIndex, read_all
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.core.tables import INT64, TEXT, columns
from pmm_ray.runtime.mapping.table_stage import run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Worker, row_by_row
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.sources.masks.mask_files import MaskFiles
from pmm_ray.sources.masks.mask_pairs import Matched
from pmm_ray.sources.masks.truth import check_voc_palette

STAGE = "score_masks"
CODE_VERSION = 3

COUNTED = columns(
    image_id=TEXT, truth=pa.list_(pa.uint16()), mask=pa.list_(pa.uint16()), counts=pa.list_(INT64)
)
"""One row per image: how many pixels have each pair of (true value, mask value)."""


def scoring_worker(stage: str, space: LabelSpace) -> Worker:
    """Makes the worker of one task."""

    def count(row: InputRow) -> dict[str, Any]:
        truth = _read(row["truth"], "ground truth", space)
        mask = _read(row["masks"], "mask", space)
        if truth.shape != mask.shape:
            sizes = [f"{width} x {height}" for height, width in (mask.shape, truth.shape)]
            raise RowError("label", f"the mask has {sizes[0]} px, its ground truth {sizes[1]}")
        true, predicted, counts = count_pairs(truth, mask)
        return {
            "image_id": row["manifest"]["image_id"],
            "truth": true.tolist(),
            "mask": predicted.tolist(),
            "counts": counts.tolist(),
        }

    return row_by_row(stage, count)


def _read(row: Mapping[str, Any], what: str, space: LabelSpace) -> NDArray[Any]:
    """The values of a mask: of a masks table's row, or of the file that the row names."""
    uri = row.get("uri") or ""
    data = row.get("mask_png")
    if data is None:
        try:
            data = storage.read_bytes(uri)
        except FileNotFoundError as error:
            raise RowError("missing", f"the {what} does not exist", uri) from error
    try:
        check_voc_palette(data, uri, space)
        return decode_mask(data, uri=uri)
    except ValueError as error:
        raise RowError("label", str(error), uri) from error


def counts_of(table: pa.Table, names: Sequence[str] = COUNTED.names[1:]) -> Counts:
    """The counts of a table with these columns; images are numbered by their rows."""
    columns = [table.column(name).combine_chunks().fill_null([]) for name in names]
    lengths = columns[0].value_lengths().to_numpy(zero_copy_only=False)
    flat = [column.flatten().to_numpy(zero_copy_only=False).astype(np.int64) for column in columns]
    return Counts(np.repeat(np.arange(table.num_rows), lengths.astype(np.int64)), *flat)


def run(
    context: RunContext,
    folder: StageFolder,
    *,
    matched: Matched,
    pairs: TableIndex,
    space: LabelSpace,
    wanted: Sequence[str],
    unmatched: Sequence[ErrorRow],
) -> Summary:
    """Count and score.

    Args:
        matched: where the masks and the ground truth are.
        pairs: the images that have both.
        space: what the classes are.
        wanted: see `choose_readings`.
        unmatched: error rows of images that lack one or the other; they count for the budget.

    Raises:
        BudgetExceededError: too many images could not be scored.
        CannotRunError: see `choose_readings`.
    """
    summary = run_table_stage(
        context,
        folder,
        inputs={"manifest": pairs, "masks": matched.masks, "truth": matched.truth},
        factory=partial(scoring_worker, folder.stage, space),
        schema=COUNTED,
    )
    table = read_all(folder.uri)
    if not table.num_rows:
        first = next(iter(tables.read_errors(folder.errors_uri)), None)
        reason = "" if first is None else f", the first reason: {first.image_id}: {first.message}"
        raise CannotRunError(f"0 of {len(pairs)} masks could be scored{reason}")
    counts = counts_of(table)
    try:
        readings, note = choose_readings(counts, space, wanted)
    except ValueError as error:
        raise CannotRunError(str(error)) from error
    total, faults = add_up(counts, space, readings)
    image_ids = table.column("image_id").to_pylist()
    rows = [ErrorRow(image_ids[image], STAGE, "label", text) for image, text in faults.items()]
    tables.write_errors(storage.join(context.run_dir, "errors"), "values", rows)
    failed = [*unmatched, *tables.read_errors(folder.errors_uri), *rows]
    require_budget(STAGE, failed, context.config.errors.budget, len(pairs) + len(unmatched))
    metrics, details = describe(total, space)
    about = {
        "readings": dict(zip(SIDES, readings, strict=True)),
        "note": note,
        "scored": len(pairs) - summary.errors - len(rows),
        "error_rows": len(failed),
        "values": [row.as_dict() for row in rows],
    }
    return summary.extended(about | details, metrics, pixel_labels_used=True)


def stage(
    sides: tuple[MaskFiles, MaskFiles],
    matched: Matched,
    pairs: TableIndex,
    space: LabelSpace,
    readings: tuple[str, str],
    unmatched: Sequence[ErrorRow],
) -> Stage:
    """The scores of any masks.

    Args:
        sides: masks and ground truth, as they were found.
        readings: how truth and masks are to be read, see `choose_readings`.
        matched, pairs, space, unmatched: see `run`.
    """
    identity = (
        *(side.fingerprint for side in sides),
        space.to_json(),
        pairs.image_ids,
        readings,
        CODE_VERSION,
    )
    body = partial(
        run, matched=matched, pairs=pairs, space=space, wanted=readings, unmatched=unmatched
    )
    return Stage(STAGE, identity, body, images=pairs.ids)
