"""What it costs to go on with a mask stage of COCO's size: nothing left to do, or one half.

The run folder is made here: a manifest of 82,081 rows and finished stages in front of the masks,
whose parts hold a real mask each row. What is timed is the `pmm run` command, in processes of its
own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import yaml

from pmm_ray.commands.run import run_recipe
from pmm_ray.labels import VOC12
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import TableIndex, ids_hash, index_file, scan_parts, write_index
from pmm_ray.runtime.core.manifest import ManifestRow, write_manifest
from pmm_ray.runtime.core.session import Session
from pmm_ray.runtime.core.stage import Stage, StageFolder, Summary
from pmm_ray.runtime.mapping.chunks import make_chunks
from pmm_ray.runtime.rows.masks import mask_row
from pmm_ray.stages import make_masks

COCO_ROWS = 82_081
PART = 32


def resume(options: argparse.Namespace, folder: Path) -> None:
    """Print seconds of the command with everything done, and of the scan with one half done."""
    rows = options.rows or COCO_ROWS
    images = [
        ManifestRow(f"image-{i:06d}", f"{i:06d}.jpg", (1, 2), 480, 640, "train")
        for i in range(rows)
    ]
    manifest = str(folder / "manifest.parquet")
    write_manifest(manifest, images, VOC12, source="benchmark", exif="ignore")
    recipe = folder / "recipe.yaml"
    data = {"source": "manifest", "root": manifest}
    recipe.write_text(yaml.safe_dump({"data": data, "evaluate": {"ladder": []}}))
    masks = fabricate(recipe, folder / "run", [image.image_id for image in images])
    parts = sorted(Path(masks.uri).glob("part-*.parquet"))
    print(f"{rows} rows, {len(parts)} parts", flush=True)
    print(f"everything done: {command(recipe, folder / 'run'):.1f} s (goal 15 s)", flush=True)
    for name in ("summary.json", "index.parquet"):
        Path(masks.path(name)).unlink()
    print(f"killed before the summary: {command(recipe, folder / 'run'):.1f} s", flush=True)
    for part in parts[::2]:
        part.unlink()
    seconds, left = until_sent(manifest, masks.uri)
    work = left * make_masks.IMAGE_SECONDS / options.workers
    print(f"half done: {seconds:.2f} s until the {left} others are sent to the workers;", end=" ")
    print(
        f"at {make_masks.IMAGE_SECONDS} s a mask, {options.workers} cores take {work:.0f} s:",
        end=" ",
    )
    print(f"{seconds / work:.2%} (goal 5 %)")


def command(recipe: Path, run_dir: Path) -> float:
    """Seconds of `pmm run` up to the masks, start of the process included."""
    started = time.monotonic()
    line = [sys.executable, "-m", "pmm_ray.cli", "run", str(recipe), "--run-dir", str(run_dir)]
    subprocess.run([*line, "--until", "make_masks"], check=True, capture_output=True)
    return time.monotonic() - started


def fabricate(recipe: Path, run_dir: Path, image_ids: list[str]) -> StageFolder:
    """Let the pipeline go through its stages, each finished by hand instead of computed."""
    mask = mask_row({"image_id": ""}, blobs(), VOC12, 0)
    made: list[StageFolder] = []

    def finished(session: Session, stage: Stage) -> StageFolder:
        name, folder = stage.name, stage.folder(session.run_dir)
        Path(folder.uri).mkdir(parents=True)
        if name == "make_cams":
            ids = pa.table({"image_id": image_ids})
            table = ids.append_column("part", pa.array([0] * len(image_ids), pa.int32()))
            table = table.append_column("row", pa.array(range(len(image_ids)), pa.int32()))
            write_index(folder.uri, TableIndex((folder.path("part-0.parquet"),), table))
        if name == "make_masks":
            for first in range(0, len(image_ids), PART):
                ids = image_ids[first : first + PART]
                table = pa.Table.from_pylist([mask | {"image_id": i} for i in ids], tables.MASKS)
                part = Path(folder.path(f"part-{tables.chunk_name(ids)}.parquet"))
                part.write_bytes(tables.to_bytes(table))  # unsynced: it is not what is timed
            write_index(folder.uri, scan_parts(folder.uri)[0])
        details = {} if stage.images is None else {"took": ids_hash(stage.images)}
        folder.finish(Summary(stage=name, hash=folder.hash, images=len(image_ids), details=details))
        made.append(folder)
        return real(session, stage)

    real, Session.do = Session.do, finished  # type: ignore[method-assign]
    try:
        run_recipe(recipe, run_dir=str(run_dir), last="make_masks", address="local")
    finally:
        Session.do = real  # type: ignore[method-assign]
    return next(folder for folder in made if folder.stage == "make_masks")


def blobs() -> Any:
    """A mask with two objects, 480 x 640."""
    mask = np.zeros((480, 640), np.uint8)
    cv2.ellipse(mask, (200, 240), (120, 180), 20, 0, 360, 1, -1)
    cv2.ellipse(mask, (430, 300), (90, 130), -30, 0, 360, 2, -1)
    return mask


def until_sent(manifest: str, masks: str) -> tuple[float, int]:
    """(seconds, images left): what a resumed stage does before its workers have work again."""
    started = time.monotonic()
    images = index_file(manifest)
    finished = set(scan_parts(masks)[0].image_ids)
    todo = [image_id for image_id in images.image_ids if image_id not in finished]
    make_chunks(todo, {"cams": images, "manifest": images}, PART)
    return time.monotonic() - started, len(todo)
