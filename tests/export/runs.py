"""A finished run, as `pmm export` finds it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from pmm_ray.config import RunConfig
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import scan_parts, write_index
from pmm_ray.runtime.core.manifest import Manifest, open_manifest
from pmm_ray.runtime.core.stage import StageFolder, Summary
from pmm_ray.runtime.rows.masks import mask_row
from pmm_ray.sources.datasets.shapes import make_shapes

SEGMENTER = {
    "channels": 8,
    "output_stride": 32,
    "batch_size": 2,
    "iterations": 2,
    "crop_size": 64,
    "resize_base": [96, 64],
    "head_multiplier": 10.0,
}


def make_run(root: Path, *stages: str, **sections: Any) -> Manifest:
    """A finished run on shapes, every mask of a stage one square of class 1."""
    make_shapes(str(root / "data"), images=8, size=48, classes=3, seed=2)
    manifest = open_manifest(str(root / "data" / "manifest.parquet"))
    values = {"segmenter": SEGMENTER, "predict": {"resize_base": [96, 64], "crop_size": 64}}
    values["predict"] |= {"stride": 48}
    (root / "resolved.yaml").write_text(
        yaml.safe_dump(RunConfig.model_validate(values | sections).model_dump(mode="json"))
    )
    rows = []
    for row in tables.read_table(manifest.uri).to_pylist():
        mask = np.zeros((row["height"], row["width"]), np.uint8)
        mask[5:20, 5:20] = 1
        rows.append(mask_row(row, mask, manifest.label_space, 0))
    records = []
    for stage in stages:
        folder = StageFolder.below(str(root), stage, "00000000")
        tables.write_rows(folder.path("part-0.parquet"), rows, tables.MASKS)
        write_index(folder.uri, scan_parts(folder.uri)[0])
        folder.finish(Summary(stage=stage, hash=folder.hash))
        records.append({"stage": stage, "hash": folder.hash, "folder": f"{stage}-00000000"})
    record = {"name": "test", "finished": "now", "manifest": "data/manifest.parquet"}
    (root / "run.json").write_text(json.dumps(record | {"stages": records}))
    return manifest
