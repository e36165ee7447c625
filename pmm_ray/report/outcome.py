"""What became of every image of a run: its last mask, an error row, or why no stage took it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pmm_ray.report.run_data import RunData, StageRecord
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.accounting import Accounting, account
from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow
from pmm_ray.runtime.core.index import Ids, TableIndex, id_column, read_index
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.core.selection import base_name

_MAKERS = ("make_masks", "predict_masks")
_BEFORE_MASKS = ("make_cams", "walk_cams")
_UNLABELLED = "without an image-level label"


@dataclass(frozen=True)
class SplitMasks:
    """The masks of one split.

    Attributes:
        split: its name.
        stage: the stage that made them.
        index: where each image's row is.
    """

    split: str
    stage: str
    index: TableIndex

    @property
    def image_ids(self) -> list[str]:
        return sorted(self.index.image_ids)


def mask_stages(run: RunData) -> list[StageRecord]:
    """The finished stages that made masks of any kind."""
    return [s for s in run.stages if base_name(s.stage) in _MAKERS and s.summary is not None]


def result_stages(run: RunData) -> list[StageRecord]:
    """Those whose masks are the run's own: not a ladder's, nor of a segmenter found worse."""
    return [record for record in mask_stages(run) if _is_result(record, run)]


def last_of_splits(records: Sequence[StageRecord], manifest: Manifest) -> tuple[SplitMasks, ...]:
    """For each split the rows of the last stage that has some of it."""
    table = tables.read_table(manifest.uri, ["image_id", "split"])
    indices = [(record.stage, read_index(record.folder.uri)) for record in records]
    found = []
    for split in manifest.splits:
        ids = table.filter(pc.equal(table.column("split"), split)).column("image_id")
        selected = [(name, index.select(ids)) for name, index in indices]
        selected = [(name, index) for name, index in selected if len(index)]
        if selected:
            found.append(SplitMasks(split, *selected[-1]))
    return tuple(found)


def account_run(run: RunData) -> Accounting:
    """The sum of a run: what was found, and what has a mask at its end.

    Where a run ends before its masks, what has a CAM; before its CAMs, what was imported.

    Raises:
        CannotRunError: the run has imported nothing.
    """
    if run.manifest_uri is None:
        raise CannotRunError(f"{run.run_dir} has imported no images yet")
    manifest = open_manifest(run.manifest_uri)
    imported = run.stage("import_data")
    if imported is None or imported.summary is None:
        total = account("images", found=manifest.num_rows, made=manifest.num_rows)
    elif known := imported.summary.details.get("accounting"):
        total = Accounting.from_dict(known)
    else:  # an older version imported it
        found = manifest.num_rows + len(imported.errors)
        total = account("images", found=found, made=manifest.num_rows, errors=imported.errors)
    records = result_stages(run) or [
        s for s in run.stages if s.stage in _BEFORE_MASKS and s.summary is not None
    ]
    if not records:
        return total
    last = last_of_splits(records, manifest)
    made = pa.chunked_array([c for masks in last for c in masks.index.ids.chunks], pa.string())
    errors, left_out = why_absent(run, manifest, made, "no stage was asked for it")
    return total.after(errors, left_out)


def why_absent(
    run: RunData, manifest: Manifest, made: Ids, otherwise: str
) -> tuple[list[ErrorRow], dict[str, list[str]]]:
    """Why each image of the manifest that is not among `made` is not: (error rows, left out).

    Args:
        run: whose error rows count.
        manifest: its images.
        made: ids of those that need no reason.
        otherwise: the reason of those that no row and no split explains.
    """
    failed: dict[str, ErrorRow] = {}
    for record in run.stages:
        if record.stage != "import_data":
            for row in record.errors:
                failed.setdefault(row.image_id, row)
    used = (run.setting("data", "train_split"), run.held_out_split)
    errors: list[ErrorRow] = []
    left_out: dict[str, list[str]] = {}
    table = tables.read_table(manifest.uri, ["image_id", "split", "labels"])
    table = table.filter(pc.invert(pc.is_in(table.column("image_id"), value_set=id_column(made))))
    columns = (table.column(name).to_pylist() for name in table.column_names)
    for image_id, split, labels in zip(*columns, strict=True):
        if image_id in failed:
            errors.append(failed[image_id])
        elif split not in used:
            left_out.setdefault(f"of split {split}, which no stage uses", []).append(image_id)
        else:
            left_out.setdefault(otherwise if labels else _UNLABELLED, []).append(image_id)
    return errors, left_out


def _is_result(record: StageRecord, run: RunData) -> bool:
    # `pmm predict` has no rounds
    found = re.fullmatch(r"make_masks|predict_masks(?:-r(\d+)(-.*)?)?", record.stage)
    if found is None:
        return False
    number, held_out = found.groups()
    return not held_out or run.final_round is None or int(number) <= run.final_round
