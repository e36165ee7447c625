"""Masks from other programs' scores or CAMs by a joint CRF, scored where there is ground truth.

A task reads the scores of its own images, and nothing of them leaves it: what flows back are ids.
Counts of pixels stand in the table, and are given a meaning when all are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from latticecrf.dense_crf import Backend
from latticecrf.presets import Setting
from pmm_ray.labels import LabelSpace
from pmm_ray.method.cams import upsample_cam
from pmm_ray.method.confusion import count_pairs
from pmm_ray.method.readings import SIDES, add_up, choose_readings, describe
from pmm_ray.method.refinement import before_crf, refine
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow, RowError
from pmm_ray.runtime.core.index import TableIndex, read_all
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.mapping.table_stage import auto_batch, run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Worker
from pmm_ray.runtime.rows.cams import ReadCam
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.rows.images import decode_mask, read_file
from pmm_ray.runtime.rows.masks import MaskOutput
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.sources.masks.mask_pairs import Truth
from pmm_ray.sources.masks.truth import check_voc_palette
from pmm_ray.stages.make_masks import mask_pool
from pmm_ray.stages.score_masks import counts_of

STAGE = "refine_scores"
CODE_VERSION = 3

TRUTH = "truth"
"""The part of a run's errors for truth that cannot be used."""
MOMENTS = ("before", "after")
"""Of the CRF."""
_COUNTS = {"truth": pa.uint16(), "mask": pa.uint16(), "pixels": pa.int64()}
REFINED = pa.schema(
    [
        *tables.MASKS,
        pa.field("truth_fault", pa.string()),
        *(pa.field(f"{w}_{name}", pa.list_(of)) for w in MOMENTS for name, of in _COUNTS.items()),
    ]
)
"""A masks table with counts of (true value, mask value) pairs before and after the CRF. Without
truth they are empty; `truth_fault` says why truth that is there could not be used."""

# A joint CRF of an image of VOC's size on one core, and about what a task holds of a plane: the
# file, its array, the resized one, and the CRF's own.
_IMAGE_SECONDS = 0.3
_BYTES_PER_PLANE = 28


@dataclass(frozen=True)
class Seeds:
    """Where the scores or CAMs of some images are.

    Attributes:
        index: rows that name files, or of a cams table.
        hash: of the files and of how they are read.
        read: how the planes of a row are read.
        planes: the most that a file has.
    """

    index: TableIndex
    hash: str
    read: ReadCam
    planes: int


def refining_worker(
    setting: Setting,
    backend: Backend,
    read: ReadCam,
    photographs: Photographs,
    stage: str,
    png_folder: str | None = None,
) -> Worker:
    """Makes the worker of one task."""
    output = MaskOutput(photographs.label_space, png_folder=png_folder)
    ignore = photographs.label_space.ignore

    def make(row: InputRow, image_HW3: NDArray[np.uint8]) -> dict[str, Any]:
        manifest = row["manifest"]
        labels, planes = read({"manifest": manifest, "cams": row["scores"]})
        if setting.background != "given":
            planes = upsample_cam(planes, *image_HW3.shape[:2])
        truth, fault = _truth(row.get("truth"), image_HW3.shape[:2], photographs.label_space)
        mask = refine(setting, image_HW3, labels, planes, ignore, backend)
        counts: dict[str, list[int]] = {}
        if truth is not None:
            plain = before_crf(setting, labels, planes, ignore)
            counts = _counted("before", truth, plain) | _counted("after", truth, mask)
        # writes a file: nothing may fail behind it
        return output(manifest, mask) | {"truth_fault": fault} | counts

    return photographs.row_by_row(stage, make)


def _truth(
    row: Mapping[str, Any] | None, size: tuple[int, ...], space: LabelSpace
) -> tuple[NDArray[Any] | None, str | None]:
    """The true mask of a row, and what is wrong with it: it costs the score, not the mask."""
    if row is None:
        return None, None
    data, uri = row.get("mask_png"), row.get("uri") or ""
    if data is None and not uri:
        return None, None
    try:
        data = read_file(uri) if data is None else data
        check_voc_palette(data, uri, space)
        truth = decode_mask(data, uri=uri)
    except (RowError, ValueError) as error:
        return None, f"{uri}: {error}"
    if truth.shape != size:
        sizes = [f"{width} x {height}" for height, width in (truth.shape, size)]
        return None, f"{uri}: the ground truth has {sizes[0]} px, the photograph {sizes[1]}"
    return truth, None


def _counted(when: str, truth: NDArray[Any], mask: NDArray[Any]) -> dict[str, list[int]]:
    columns = count_pairs(truth, mask)
    return {f"{when}_{n}": c.tolist() for n, c in zip(_COUNTS, columns, strict=True)}


def run(
    context: RunContext,
    folder: StageFolder,
    *,
    setting: Setting,
    backend: Backend,
    seeds: Seeds,
    truth: Truth | None,
    png_folder: str | None,
) -> Summary:
    """Refine every image, and count its pixels where there is truth."""
    pool = mask_pool(context, more_per_pixel=_BYTES_PER_PLANE * seeds.planes)
    inputs = {"scores": seeds.index}
    summary = run_table_stage(
        context,
        folder,
        inputs=inputs if truth is None else inputs | {"truth": truth.index},
        factory=partial(
            refining_worker,
            setting,
            backend,
            seeds.read,
            Photographs.of(context),
            folder.stage,
            png_folder,
        ),
        schema=REFINED,
        pool=pool,
        batch_size=auto_batch(len(seeds.index), pool.size, _IMAGE_SECONDS),
    )
    return summary.extended({}, pixel_labels_used=truth is not None)


def scores_of_table(
    run_dir: str, folder: StageFolder, space: LabelSpace, truth: Truth, reading: str
) -> tuple[dict[str, float], dict[str, Any]]:
    """(metrics, details) of a finished table: each metric before the CRF and after.

    Truth that cannot be used is written to the run's errors.

    Args:
        truth: as it was found.
        reading: how its values are to be read, see `choose_readings`.

    Raises:
        CannotRunError: the truth's values mean nothing, or fit two readings.
    """
    table = read_all(folder.uri, ["image_id", *REFINED.names[len(tables.MASKS) :]])
    ids = table.column("image_id").to_pylist()
    faults = dict(zip(ids, table.column("truth_fault").to_pylist(), strict=True))
    wrong = {i: truth.wrong[i] for i in ids if i in truth.wrong}
    wrong |= {image_id: text for image_id, text in faults.items() if text}
    counts = {when: counts_of(table, [f"{when}_{n}" for n in _COUNTS]) for when in MOMENTS}
    metrics: dict[str, float] = {}
    details: dict[str, Any] = {}
    scored = len(np.unique(counts["after"].image))
    if scored:
        # the masks are ours; what the truth's values mean is decided once
        try:
            readings, note = choose_readings(
                counts["after"], space, (reading, "contiguous"), ("truth",)
            )
        except ValueError as error:
            raise CannotRunError(str(error)) from error
        for when in MOMENTS:
            total, strange = add_up(counts[when], space, readings)
            found, about = describe(total, space)
            metrics |= {f"{when}_{name}": value for name, value in found.items()}
            details[when] = about
        wrong |= {ids[number]: text for number, text in strange.items()}
        scored -= len(strange)
        details |= {"readings": dict(zip(SIDES, readings, strict=True)), "note": note}
    rows = [ErrorRow(i, STAGE, "label", text) for i, text in sorted(wrong.items())]
    tables.write_errors(storage.join(run_dir, "errors"), TRUTH, rows)
    return metrics, details | {"scored": scored, "truth_errors": len(rows)}


def stage(
    setting: Setting,
    data: DataSet,
    seeds: Seeds,
    *,
    backend: Backend = "lattice",
    truth: Truth | None = None,
    png_folder: str | None = None,
) -> Stage:
    """The masks of some scores or CAMs.

    Args:
        setting: CRF, colours, background, confidence, strengths.
        truth: ground truth of some images; None: nothing is scored.
        png_folder: see `MaskOutput`.
    """
    plain = {name: value for name, value in asdict(setting).items() if name != "source"}
    known = None if truth is None else truth.fingerprint
    space: LabelSpace = data.manifest.label_space
    identity = (plain, backend, seeds.hash, space.to_json(), known, CODE_VERSION)
    body = partial(
        run,
        setting=setting,
        backend=backend,
        seeds=seeds,
        truth=truth,
        png_folder=png_folder,
    )
    return Stage(STAGE, identity, body, images=seeds.index.ids)
