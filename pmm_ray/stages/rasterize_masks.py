"""Annotated objects -> ground-truth masks, for evaluation only: one PNG file per image."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from pmm_ray.config import DataConfig
from pmm_ray.labels import LabelSpace
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.files import OBJECTS_FOLDER
from pmm_ray.runtime.core.index import TableIndex, index_file, read_all, read_index
from pmm_ray.runtime.core.stage import RunContext, Stage, StageFolder, Summary
from pmm_ray.runtime.core.tables import FLOAT, LABELS, TEXT, columns
from pmm_ray.runtime.mapping.table_stage import run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Worker, row_by_row
from pmm_ray.runtime.rows.dataset import DataSet
from pmm_ray.runtime.rows.images import encode_mask
from pmm_ray.sources.datasets.coco_files import OBJECTS_KEY
from pmm_ray.sources.datasets.raster import draw_objects, require_pycocotools

STAGE = "rasterize_masks"
CODE_VERSION = 1

DRAWN = columns(image_id=TEXT, labels=LABELS, hidden=LABELS, foreground=FLOAT, ignored=FLOAT)
"""One row per mask: the classes that appear in it, those of the image's labels that do not
(small ones under later objects), and the shares of its pixels that are foreground and ignored."""


def rasterize_worker(root: str, space: LabelSpace, overlap: str, crowd: str, stage: str) -> Worker:
    """Makes the worker of one task; `root` is the manifest's folder."""

    def draw(row: InputRow) -> dict[str, Any]:
        manifest, objects = row["manifest"], row["objects"]["objects"]
        mask = draw_objects(
            objects, manifest["height"], manifest["width"], space, overlap=overlap, crowd=crowd
        )
        uri = storage.anchor(manifest["ground_truth_uri"], root)
        storage.write_bytes(uri, encode_mask(mask, space))
        counts = np.bincount(mask.ravel(), minlength=space.ignore + 1) / mask.size
        labels = np.flatnonzero(counts[1 : space.num_classes]) + 1
        return {
            "image_id": manifest["image_id"],
            "labels": labels.tolist(),
            "hidden": sorted({*manifest["labels"]} - {*labels.tolist()}),
            "foreground": float(counts[1 : space.num_classes].sum()),
            "ignored": float(counts[space.ignore]),
        }

    return row_by_row(stage, draw)


def objects_fingerprint(manifest_uri: str) -> str | None:
    """Of the objects that a manifest's masks are made of; None where there are none."""
    return tables.table_metadata(manifest_uri).get(OBJECTS_KEY)


def images_to_draw(manifest_uri: str) -> TableIndex:
    """The rows of the manifest that name a mask."""
    table = tables.read_table(manifest_uri, ["image_id", "ground_truth_uri"])
    columns = (table.column(name).to_pylist() for name in table.column_names)
    wanted = [image_id for image_id, truth in zip(*columns, strict=True) if truth]
    return index_file(manifest_uri).select(wanted)


def run(data: DataConfig, context: RunContext, folder: StageFolder) -> Summary:
    """Make the masks that the manifest names, from the objects beside it.

    Raises:
        CannotRunError: pycocotools is not installed.
    """
    require_pycocotools()
    manifest = context.manifest
    wanted = images_to_draw(manifest.uri)
    context.progress.message(f"{folder.stage}: pixel labels used ({len(wanted)} masks drawn)")
    summary = run_table_stage(
        context,
        folder,
        inputs={
            "manifest": wanted,
            "objects": read_index(storage.join(manifest.root, OBJECTS_FOLDER)),
        },
        factory=partial(
            rasterize_worker,
            manifest.root,
            manifest.label_space,
            data.overlap,
            data.crowd,
            folder.stage,
        ),
        schema=DRAWN,
        measures=True,
    )
    drawn = read_all(folder.uri)
    hidden = sum(bool(labels) for labels in drawn.column("hidden").to_pylist())
    counts = {"masks": drawn.num_rows, "masks without one of the image's labels": hidden}
    details = {"counts": counts, "overlap": data.overlap, "crowd": data.crowd}
    return summary.extended(details, pixel_labels_used=True)


def stage(config: DataConfig, data: DataSet) -> Stage:
    """The masks of a data set that has objects, see `objects_fingerprint`."""
    uri = data.manifest.uri
    return Stage(
        STAGE,
        (config.overlap, config.crowd, objects_fingerprint(uri), data.hash, CODE_VERSION),
        partial(run, config),
        images=images_to_draw(uri).ids,
    )
