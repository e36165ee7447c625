"""A small run folder, written with the real tables, as the pipeline leaves it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from pmm_ray.labels import LabelSpace
from pmm_ray.method.confusion import confusion_matrix, iou, mean_iou, to_sparse
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import ErrorRow
from pmm_ray.runtime.core.events import EventLog
from pmm_ray.runtime.core.index import scan_parts, write_index
from pmm_ray.runtime.core.manifest import ManifestRow, write_manifest
from pmm_ray.runtime.core.stage import StageFolder, Summary
from pmm_ray.runtime.rows.images import encode_mask

# As in COCO, the data set's own ids are others: tables and truth hold contiguous ones.
SPACE = LabelSpace("test", ("background", "disc", "<b>square & co</b>", "ring"), (0, 2, 5, 7))
HEIGHT, WIDTH = 60, 96


class RunFolder:
    """Writes a run stage by stage, so that tests can stop in the middle."""

    def __init__(
        self,
        root: Path,
        images: int = 6,
        *,
        truth: bool = True,
        train_labels: tuple[int, ...] = (1, 2),
        **report: int,
    ) -> None:
        self.root = root
        self.uri = str(root)
        self.ids = [f"img-{i}" for i in range(images)]
        self.stages: list[dict[str, str]] = []
        self.truth: dict[str, Any] = {}
        rng = np.random.default_rng(0)
        (root / "data").mkdir(parents=True)
        rows = []
        for i, image_id in enumerate(self.ids):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            yy, xx = np.mgrid[:HEIGHT, :WIDTH]
            disc = (yy - 30) ** 2 + (xx - 24 - 6 * i) ** 2 < 300
            mask[disc] = 1
            mask[20:50, 70:90] = 2
            mask[:2] = SPACE.ignore
            photo = rng.integers(0, 60, (HEIGHT, WIDTH, 3)) + SPACE.palette[mask % 255] // 2 + 60
            Image.fromarray(photo.astype(np.uint8)).save(root / "data" / f"{image_id}.jpg")
            (root / "data" / f"{image_id}.png").write_bytes(encode_mask(mask, SPACE))
            self.truth[image_id] = mask
            rows.append(
                ManifestRow(
                    image_id=image_id,
                    uri=f"{image_id}.jpg",
                    labels=(1, 2) if i < images - 1 else train_labels,
                    height=HEIGHT,
                    width=WIDTH,
                    split="val" if i < images - 1 else "train",
                    ground_truth_uri=f"{image_id}.png" if truth else None,
                )
            )
        uri = str(root / "data" / "manifest.parquet")
        write_manifest(uri, rows, SPACE, source="test", exif="ignore")
        config = {
            "name": "test",
            "report": {"gallery": 4, **report},
            "data": {"held_out_split": "val", "train_split": "train"},
        }
        (root / "resolved.yaml").write_text(yaml.safe_dump(config))
        self.write_record()

    def write_record(self, **fields: Any) -> None:
        record = {
            "name": "test run",
            "started": "2026-11-01T10:00:00",
            "command": "pmm run recipes/test.yaml --set data.root='<script>'",
            "machine": {"cpus": 2, "memory_bytes": 2 * 1024**3},
            "versions": {"ray": "2.60.0"},
            "manifest": "data/manifest.parquet",
            "stages": self.stages,
            **fields,
        }
        (self.root / "run.json").write_text(json.dumps(record))

    def stage(
        self,
        name: str,
        rows: list[dict[str, Any]] | None = None,
        schema: Any = tables.MASKS,
        errors: list[ErrorRow] | None = None,
        *,
        finish: bool = True,
        **summary: Any,
    ) -> StageFolder:
        folder = StageFolder.below(self.uri, name, f"{len(self.stages):08x}")
        Path(folder.uri).mkdir()
        entry = {"stage": name, "hash": folder.hash, "folder": f"{name}-{folder.hash}"}
        self.stages.append(entry)
        if rows:
            for number, part in enumerate((rows[::2], rows[1::2])):
                tables.write_rows(folder.path(f"part-{number}.parquet"), part, schema)
        if errors:
            tables.write_errors(folder.errors_uri, "x", errors)
        if finish:
            write_index(folder.uri, scan_parts(folder.uri)[0])
            values = {"images": len(self.ids), "seconds": 12.5, "images_per_second": 3.25}
            values |= {"errors": len(errors or [])} | summary
            folder.finish(Summary(stage=name, hash=folder.hash, **values))
        self.write_record()
        return folder

    def cams(self) -> None:
        h, w = HEIGHT // 4, WIDTH // 4
        rows = []
        for image_id in self.ids:
            cam = np.zeros((2, h, w), "<f2")
            for k in (0, 1):
                cam[k] = (self.truth[image_id][::4, ::4] == k + 1) * 0.9
            shape = {"height": HEIGHT, "width": WIDTH, "cam_height": h, "cam_width": w}
            rows.append(
                {"image_id": image_id, "labels": [1, 2], "cam": cam.tobytes(), **shape},
            )
        self.stage("make_cams", rows, tables.CAMS)

    def masks(self, name: str, shift: int) -> dict[str, Any]:
        """A masks stage whose masks are the truth moved by `shift` times the image's number."""
        made, rows = {}, []
        for i, image_id in enumerate(self.ids):
            mask = np.roll(self.truth[image_id], shift * i, axis=1)
            mask[mask == SPACE.ignore] = 0
            made[image_id] = mask
            rows.append(
                {
                    "image_id": image_id,
                    "height": HEIGHT,
                    "width": WIDTH,
                    "mask_png": encode_mask(mask, SPACE),
                    "foreground": float((mask > 0).mean()),
                    "labels": np.unique(mask).tolist(),
                    "round": 0,
                }
            )
        self.stage(name, rows)
        return made

    def evaluate(self, masks: dict[str, Any], masks_stage: str, title: str, split: str) -> float:
        total = np.zeros((SPACE.num_classes, SPACE.num_classes), np.int64)
        rows = []
        images = self.ids[:-1] if split == "val" else self.ids[-1:]
        for image_id in (i for i in images if i in masks):
            one = confusion_matrix(
                self.truth[image_id], masks[image_id], SPACE.num_classes, SPACE.ignore
            )
            total += one
            cells, counts = to_sparse(one)
            rows.append(
                {
                    "image_id": image_id,
                    "split": split,
                    "cells": cells.tolist(),
                    "counts": counts.tolist(),
                }
            )
        mean, absent = mean_iou(total)
        values = [None if np.isnan(v) else float(v) for v in iou(total)]
        self.stage(
            f"evaluate-{masks_stage}-{split}",
            rows,
            tables.EVALUATION,
            images=len(rows),
            metrics={"mean_iou": mean, "pixel_accuracy": float(np.trace(total) / total.sum())},
            details={
                "title": title,
                "split": split,
                "masks_stage": masks_stage,
                "class_iou": dict(zip(SPACE.names, values, strict=True)),
                "excluded": [SPACE.names[i] for i in absent],
            },
            pixel_labels_used=True,
        )
        return mean

    def train(
        self,
        name: str,
        steps: int = 40,
        details: Mapping[str, Any] | None = None,
        **measured: float,
    ) -> None:
        log = EventLog(self.uri, name)
        for step in range(steps):
            loss = 2.0 / (1 + step / 8) + 0.1 * (step % 3)
            rate = 0.01 * (1 - step / steps)
            log.write("train_step", stage=name, step=step, loss=loss, learning_rate=rate)
        about = {"steps": steps, **(details or {})}
        self.stage(name, details=about, metrics={"loss": 0.1, **measured})
