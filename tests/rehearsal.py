"""A session that computes nothing: every stage leaves a table of ids and a fixed summary.

What is planned, in which order and under which hash is real; what stages make is not.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pmm_ray.config import RunConfig
from pmm_ray.config.backbones import BACKBONES
from pmm_ray.labels import COCO14, VOC12, LabelSpace
from pmm_ray.pipeline.steps import steps
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import ids_hash, scan_parts, write_index
from pmm_ray.runtime.core.manifest import ManifestRow, write_manifest
from pmm_ray.runtime.core.resources import ACCELERATOR, ClusterResources, Node
from pmm_ray.runtime.core.session import Session
from pmm_ray.runtime.core.stage import Stage, StageFolder, Summary
from pmm_ray.sources.datasets.coco_files import OBJECTS_KEY

_NODE = Node(8, 4, labels={ACCELERATOR: "L4"})
CLUSTER = ClusterResources(cpus=8, gpus=4, nodes=1, local=True, offered=(_NODE,))
TRAIN, HELD_OUT = 6, 4
"""Images of each split."""
METRICS = {"mean_iou": 0.5, "agreement": 0.5, "segmenter": 0.6, "supervision": 0.5}
_IDS = pa.schema([("image_id", pa.string())])


def planned(config: RunConfig) -> tuple[str, ...]:
    """Names of a recipe's stages, in order."""
    return tuple(step.name for step in steps(config))


def pinned_manifest(config: RunConfig, folder: str) -> None:
    """Write the manifest that stands for the recipe's data set; every image has truth."""
    data = config.data
    space = {"voc12": VOC12, "coco14": COCO14}.get(
        data.source, LabelSpace.from_names(("background", "disc", "bar", "ring", "star"))
    )
    splits = [data.train_split] * TRAIN + [data.held_out_split] * HELD_OUT
    rows = [
        ManifestRow(f"image-{n}", f"{n}.jpg", (1 + n % 4,), 40 + n, 50, split, f"{n}.png")
        for n, split in enumerate(splits)
    ]
    write_manifest(
        str(Path(folder) / "manifest.parquet"),
        rows,
        space,
        exif="ignore",
        source=data.source,
        metadata={OBJECTS_KEY: "objects"} if data.source == "coco14" else None,
    )


def ids_of(stage: str, config: RunConfig) -> list[str]:
    """The images that a stage's table holds."""
    train, held_out = (
        [f"image-{n}" for n in numbers]
        for numbers in (range(TRAIN), range(TRAIN, TRAIN + HELD_OUT))
    )
    base, _, subject = stage.partition("-")
    if base in ("make_base_cams", "make_base_masks", "make_affinity_labels"):
        return train
    if base == "predict_masks":
        return held_out if stage.endswith(f"-{config.data.held_out_split}") else train
    if base == "make_cams" and subject:
        return held_out
    return train + held_out


def rehearse(
    monkeypatch: pytest.MonkeyPatch, weights: Path, details: dict[str, Any] | None = None
) -> list[tuple[str, str]]:
    """From now on sessions compute nothing; returns the growing list of (stage, hash).

    Args:
        monkeypatch: undoes it.
        weights: an empty folder, for files that stand for public weights.
        details: more details of every summary.
    """
    files = {file for row in BACKBONES.values() for file in row.files.values()}
    for file in (file for file in files if ":" not in file):
        (weights / file).write_bytes(file.encode())
    monkeypatch.setenv("PMM_WEIGHTS", str(weights))
    monkeypatch.setattr("pmm_ray.nets.trial.try_training", lambda section: None)
    monkeypatch.setattr("pmm_ray.commands.ablate.build_report", lambda run_dir: run_dir)
    monkeypatch.setattr("pmm_ray.report.build_report", lambda run_dir: run_dir)
    monkeypatch.setattr("pmm_ray.report.print_stage_table", lambda run_dir, console: None)
    monkeypatch.setattr(Session, "cluster", property(lambda session: CLUSTER))
    seen: list[tuple[str, str]] = []
    real = Session.do

    def do(session: Session, stage: Stage) -> StageFolder:
        def leave(context: Session, folder: StageFolder) -> Summary:
            if stage.name.startswith("table-"):
                return stage.run(context, folder)
            return _leave(folder, session.config, details or {}, stage)

        # a table's identity is what stands in it
        seen.append((stage.name, "" if stage.name.startswith("table-") else stage.hash))
        return real(session, replace(stage, run=leave))

    monkeypatch.setattr(Session, "do", do)
    return seen


def _leave(
    folder: StageFolder, config: RunConfig, details: dict[str, Any], stage: Stage
) -> Summary:
    if folder.stage == "import_data":
        pinned_manifest(config, folder.uri)
    else:
        rows = [{"image_id": image_id} for image_id in ids_of(folder.stage, config)]
        tables.write_rows(folder.path("part-0.parquet"), rows, _IDS)
        write_index(folder.uri, scan_parts(folder.uri)[0])
    held_out, train = config.data.held_out_split, config.data.train_split
    known: dict[str, Any] = {"update": True, "chosen": {"alpha": 3.0}, "alpha": 3.0}
    known |= {"split": train if "train" in folder.stage or "cyclic" in folder.stage else held_out}
    known |= {"masks_stage": _masks_of(folder.stage, held_out)}
    return Summary(
        stage=folder.stage,
        hash=folder.hash,
        images=TRAIN + HELD_OUT,
        metrics=METRICS,
        details=known
        | details
        | ({} if stage.images is None else {"took": ids_hash(stage.images)}),
    )


def _masks_of(stage: str, held_out: str) -> str:
    """The step whose masks an evaluation scores, by its name."""
    subject = stage.removeprefix("evaluate-").removesuffix("-train")
    if subject == "ppmg":
        return "make_masks"
    kind, _, name = subject.partition("-")
    if kind == "segmenter":
        return f"predict_masks-{name}-{held_out}"
    return f"predict_masks-{name}" if kind == "cyclic" else f"make_masks-{subject}"
