"""What tests of trainings and their networks share: masks, a job, the loop in this process."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pmm_ray.config import ClassifierConfig, RuntimeConfig, TrainingConfig
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.nets.registry import build_classifier
from pmm_ray.runtime.core import lease, storage, tables
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.manifest import Manifest
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.training.job import TrainingJob
from pmm_ray.runtime.training.reporter import Phase
from pmm_ray.runtime.training.task import TrainingTask
from pmm_ray.runtime.training.worker import _Worker


def untrained_classifier(folder: Path) -> str:
    """A classifier of three classes that has learnt nothing; returns its file."""
    config = ClassifierConfig(weights="none")
    uri = str(folder / "model.pt")
    meta = {"config": config.model_dump(mode="json"), "num_foreground": 3}
    model = build_classifier(config, 3)
    save_model(uri, "classifier", model, meta | {"label_space": "", "training": {}})
    return uri


def truth_masks(manifest: Manifest, folder: Path) -> str:
    """The truth as pseudo-masks; returns their folder."""
    rows = []
    for row in tables.read_table(manifest.uri).to_pylist():
        png = storage.read_bytes(manifest.locate(row["ground_truth_uri"]))
        kept = {name: row[name] for name in ("image_id", "height", "width", "labels")}
        rows.append({**kept, "mask_png": png, "foreground": 0.5, "round": 0})
    tables.write_rows(str(folder / "part-0.parquet"), rows, tables.MASKS)
    return str(folder)


def photographs_of(manifest: Manifest) -> Photographs:
    return Photographs(manifest.root, manifest.apply_exif, 10**7, manifest.label_space)


def task_fields(manifest: Manifest, config: TrainingConfig, **more: Any) -> dict[str, Any]:
    """What every task is made of, here of the training split of a manifest."""
    fields: dict[str, Any] = {"config": config, "stage": "stage", "seed": 3, "split": "train"}
    fields |= {"manifest_uri": manifest.uri, "photographs": photographs_of(manifest)}
    return fields | more


def training_job(task: TrainingTask[Any], run_dir: Path, **changes: Any) -> TrainingJob:
    """A job of one CPU worker that writes a checkpoint after every step.

    `images` and `steps` have to be among the changes; those that are no field of a job are of the
    task's section.
    """
    folder = StageFolder.below(str(run_dir), "stage", "0")
    section = {"batch_size": 4, "amp": False, "checkpoint_seconds": 1e-9, "max_failures": 0}
    values: dict[str, Any] = {
        "run_dir": str(run_dir),
        "attempt": (lease.read_lease(str(run_dir)) or {"attempt": "a"})["attempt"],
        "model_uri": folder.path("model.pt"),
        "checkpoints_uri": folder.path("train"),
        "errors_uri": folder.errors_uri,
        "error_budget": 10,
        "fingerprint": "f",
        "workers": 1,
        "passes": changes.get("accumulate", 1),
        "loader_processes": 0,
        "runtime": RuntimeConfig(scratch=str(run_dir)),
    }
    fields = {field.name for field in dataclasses.fields(TrainingJob)}
    values |= {name: value for name, value in changes.items() if name in fields}
    section |= {name: value for name, value in changes.items() if name not in fields}
    task = dataclasses.replace(task, config=task.config.model_copy(update=section))
    return TrainingJob(task=task, **values)


def train(job: TrainingJob, rank: int = 0) -> dict[str, Any]:
    """Run the loop here, in a process group of its workers; nobody listens to its reports."""
    remote = SimpleNamespace(remote=lambda *_: None)
    reporter = SimpleNamespace(update=remote, failed=remote, saved=remote)
    phase = Phase(reporter, rank)
    held = lease.read_lease(job.run_dir) is not None
    with contextlib.nullcontext() if held else lease.hold(job.run_dir, job.attempt):
        return _Worker(job, reporter, rank, job.workers, torch.device("cpu"), phase).run()


def losses(run_dir: Path) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in read_events(str(run_dir), "train_step")]
