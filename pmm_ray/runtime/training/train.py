"""A stage's training from its task to its summary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, error_budget
from pmm_ray.runtime.core.index import read_index
from pmm_ray.runtime.core.selection import section_name
from pmm_ray.runtime.core.stage import Summary
from pmm_ray.runtime.training.job import TrainingJob
from pmm_ray.runtime.training.launch import run_training
from pmm_ray.runtime.training.sampling import BatchPlan
from pmm_ray.runtime.training.workers import count_workers, plan_workers

if TYPE_CHECKING:
    from pmm_ray.config import RunConfig, TrainingConfig
    from pmm_ray.runtime.core.stage import RunContext, StageFolder
    from pmm_ray.runtime.training.task import TrainingTask

UNDERFITTING = "underfitting_share"
"""Name of the share of a training's images whose loss was limited (Eq. 10-13), over all steps."""
_METRICS = (
    *("loss", "mean_average_precision", "cam_miou", "cam_threshold", "validation_miou"),
    UNDERFITTING,
)
_FROM_PIXEL_LABELS = {"cam_miou", "validation_miou"}


def masks_identity(recipe: RunConfig, masks: StageFolder) -> tuple[Any, ...]:
    """What a training on finished masks depends on beside its section; part of its identity."""
    return (recipe.seed, masks.hash, len(read_index(masks.uri)), recipe.data.train_split)


def train(task: TrainingTask[Any], context: RunContext, folder: StageFolder) -> Summary:
    """Train a stage's network and say what came out.

    Args:
        folder: of the stage: `model.pt` is written here, and error rows of images that had to be
            substituted.

    Raises:
        CannotRunError: see `training_job` and `run_training`.
        BudgetExceededError: too many images cannot be used.
    """
    job = training_job(task, context, folder)
    task.check()
    if task.notice is not None:
        context.progress.message(f"{folder.stage}: {task.notice}")
    if job.steps:
        run_training(job, context)
    else:
        task.save_untrained(job.model_uri)
    training: dict[str, Any] = task.trained(job.model_uri)
    details = {
        "checkpoint": job.model_uri,
        "workers": job.workers,
        "steps": job.steps,
        "batch_size": job.config.batch_size,
        "training_seconds": training["seconds"],
        "updates_skipped": training["skipped"],
        "loader_wait": training["loader_wait"],
    }
    if by_step := training.get("workers"):
        details |= {"workers": by_step[-1][1], "workers_by_step": by_step}
    more = ("chosen_step", "validation_images")
    return Summary(
        stage=folder.stage,
        hash=folder.hash,
        images=len(task.rows().column("image_id").unique()),
        errors=len(tables.read_errors(job.errors_uri)),
        images_per_second=training["images_per_second"],
        metrics={name: training[name] for name in _METRICS if name in training},
        # scored against the held-out split's masks; a chosen step was also decided by that
        pixel_labels_used=bool(_FROM_PIXEL_LABELS & training.keys()),
        details=details | {name: int(training[name]) for name in more if name in training},
    )


def training_job(task: TrainingTask[Any], context: RunContext, folder: StageFolder) -> TrainingJob:
    """The job of a task: what its workers need to know.

    Raises:
        CannotRunError: no images; or see `plan_workers`.
    """
    config: TrainingConfig = task.config
    images = task.rows().num_rows
    if images < 1:
        known = context.manifest.splits
        there = ", ".join(f"{name} ({count})" for name, count in known.items())
        raise CannotRunError(
            f"{folder.stage}: no image of split {task.split!r} (data.train_split) has a label or "
            f"mask to learn from; the data set has {there or 'no images'}. Labels of a folder of "
            "photographs are in its labels.csv"
        )
    section = section_name(folder.stage)
    workers = plan_workers(section, config, context.cluster)
    asked = count_workers(section, config, context.cluster)
    plan = BatchPlan(task.seed, images, config.batch_size, asked)
    return TrainingJob(
        task=task,
        run_dir=storage.absolute(context.run_dir),
        attempt=context.attempt,
        model_uri=storage.absolute(folder.path("model.pt")),
        checkpoints_uri=storage.absolute(folder.path("train")),
        errors_uri=storage.absolute(folder.errors_uri),
        error_budget=error_budget(context.config.errors.budget, images),
        fingerprint=f"{folder.hash}-{images}-{asked}",
        images=images,
        steps=config.steps(plan.steps_per_epoch),
        workers=workers.count,
        passes=workers.passes,
        loader_processes=workers.loader_processes,
        runtime=context.config.runtime,
    )
