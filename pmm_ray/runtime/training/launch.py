"""Run a training on Ray Train: start the workers, show progress, resume, report.

Ray Train places, connects and replaces the workers. The checkpoints are our own files (see
`train_checkpoint`): Ray's record of its checkpoints is not written atomically, so a driver killed
at the wrong moment could not resume, and it is refused by any other version of Ray.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from pmm_ray.config import AffinityConfig, ClassifierConfig, SegmenterConfig
from pmm_ray.runtime.cluster.connect import scratch_folder
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import BudgetExceededError, CannotRunError, error_budget
from pmm_ray.runtime.core.stage import Summary
from pmm_ray.runtime.training.reporter import Reporter

if TYPE_CHECKING:
    from pmm_ray.runtime.core.progress import StageProgress
    from pmm_ray.runtime.core.resources import ClusterResources
    from pmm_ray.runtime.core.stage import RunContext, StageFolder
    from pmm_ray.runtime.training.job import TrainingJob, TrainingTask

VALIDATION = ("mean_average_precision", "cam_miou", "cam_threshold", "validation_miou")
"""Names of what trainings measure on held-out images."""
UNDERFITTING = "underfitting_share"
"""Name of the share of a training's images whose loss was limited (Eq. 10-13), over all steps."""
_FROM_PIXEL_LABELS = {"cam_miou", "validation_miou"}

_POLL_SECONDS = 0.5
_MOST_LOADER_PROCESSES = 8
# Ray Train's own settings: notice the end of a training soon, stay where the driver was started,
# and leave out what only its dashboard would show
_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}

# nobody takes this machine away with notice: one process less to start
_LOCAL_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def run_training(job: TrainingJob, context: RunContext, *, max_failures: int) -> None:
    """Train until the last step, going on from the newest checkpoint if there is one.

    Nothing is trained if the network is there already.

    Args:
        job: what is trained, with how many workers.
        context: of the run.
        max_failures: how often lost workers are replaced.

    The trained network is then at `job.model_uri` and the checkpoints are deleted.

    Raises:
        CannotRunError: the cluster is too small, the data cannot be trained on, workers failed
            too often, or nothing happened for `runtime.stall_seconds`.
        BudgetExceededError: too many images cannot be used.
    """
    if storage.exists(job.model_uri):
        # of a run that was killed just after it wrote the network
        storage.delete_folder(job.checkpoints_uri)
        return
    gpu = context.cluster.gpus >= 1
    cpus = job.threads + job.loader_processes
    context.cluster.require(
        f"{job.stage} with {job.workers} workers",
        cpus=job.workers * cpus,
        gpus=job.workers if gpu else 0,
    )
    import ray

    reporter = ray.remote(num_cpus=0)(Reporter).remote()
    fit = _Fit(_trainer(job, reporter, cpus, gpu, context.cluster.local, max_failures))
    images = job.steps * job.batch_size
    with context.progress.stage(job.stage, images, unit="images") as progress:
        while not fit.done(_POLL_SECONDS):
            _show(progress, reporter, job)
            _check_stall(progress, context.config.runtime.stall_seconds, job)
        _show(progress, reporter, job)
    ray.kill(reporter)
    values = fit.result(job.stage)
    errors = tables.read_errors(job.errors_uri)
    if len(errors) > job.error_budget:
        raise BudgetExceededError(job.stage, len(errors), job.error_budget, errors)
    if "stopped" in values:
        raise CannotRunError(values["stopped"])
    storage.delete_folder(job.checkpoints_uri)


def summarize(folder: StageFolder, job: TrainingJob, training: dict[str, float]) -> Summary:
    """The summary of a training whose network is written.

    Args:
        folder: of the stage.
        job: what was trained.
        training: what the workers said, as stored with the network.
    """
    return Summary(
        stage=folder.stage,
        hash=folder.hash,
        images=job.images,
        errors=len(tables.read_errors(job.errors_uri)),
        images_per_second=training["images_per_second"],
        metrics={"loss": training["loss"]}
        | {name: training[name] for name in (*VALIDATION, UNDERFITTING) if name in training},
        # scored against the held-out split's masks; a chosen step was also decided by that
        pixel_labels_used=bool(_FROM_PIXEL_LABELS & training.keys()),
        details={
            "checkpoint": job.model_uri,
            "workers": job.workers,
            "steps": job.steps,
            "batch_size": job.batch_size,
            "training_seconds": training["seconds"],
            "updates_skipped": training["skipped"],
            "loader_wait": training["loader_wait"],
        }
        | ({"chosen_step": training["chosen_step"]} if "chosen_step" in training else {}),
    )


def training_job(
    config: ClassifierConfig | SegmenterConfig | AffinityConfig,
    context: RunContext,
    folder: StageFolder,
    task: TrainingTask,
    *,
    images: int,
    epochs: int | None = None,
    steps: int | None = None,
    validate_every: int | None = None,
    choose_by: str | None = None,
) -> TrainingJob:
    """The job of a stage: its section, its folder and its task put together.

    Args:
        config: the stage's section.
        context, folder: of the stage.
        task: what is trained.
        images: of the training split.
        epochs, steps: the length of the training; one of them.
        validate_every, choose_by: see `TrainingJob`.

    Raises:
        CannotRunError: no images, or the batch cannot be split evenly over the workers.
    """
    from pmm_ray.runtime.training.job import TrainingJob
    from pmm_ray.runtime.training.sampling import BatchPlan, split_workers

    if images < 1:
        split, known = context.config.data.train_split, context.manifest.splits
        there = ", ".join(f"{name} ({count})" for name, count in known.items())
        raise CannotRunError(
            f"{folder.stage}: no image of split {split!r} (data.train_split) has a label or mask "
            f"to learn from; the data set has {there or 'no images'}. Labels of a folder of "
            "photographs are in its labels.csv"
        )
    workers = split_workers(
        config.workers, context.cluster.default_train_workers(), config.batch_size
    )
    plan = BatchPlan(context.config.seed, images, config.batch_size, workers)
    if steps is None:
        assert epochs is not None, "epochs or steps"
        steps = epochs * plan.steps_per_epoch
    options: dict[str, Any] = {}
    if isinstance(config, SegmenterConfig):
        options["optimizer"] = config.optimizer
    if isinstance(config, ClassifierConfig | SegmenterConfig):
        names = ("accumulate", "clip_norm", "channels_last", "compile")
        options |= {name: getattr(config, name) for name in names}
        share = config.batch_size // workers
        if share % config.accumulate:
            raise CannotRunError(
                f"{folder.stage}: a worker's {share} images cannot be split evenly over "
                f"{config.accumulate} passes: change accumulate, batch_size or workers"
            )
    return TrainingJob(
        stage=folder.stage,
        task=task,
        run_dir=storage.absolute(context.run_dir),
        model_uri=storage.absolute(folder.path("model.pt")),
        checkpoints_uri=storage.absolute(folder.path("train")),
        errors_uri=storage.absolute(folder.errors_uri),
        error_budget=error_budget(context.config.errors.budget, images),
        fingerprint=f"{folder.hash}-{images}-{workers}",
        seed=context.config.seed,
        images=images,
        steps=steps,
        batch_size=config.batch_size,
        momentum=config.momentum,
        amp=config.amp,
        workers=workers,
        threads=config.threads_per_worker,
        loader_processes=loader_processes(config, context.cluster, workers),
        checkpoint_seconds=config.checkpoint_seconds,
        scratch=scratch_folder(context.config.runtime),
        validate_every=validate_every,
        choose_by=choose_by,
        **options,
    )


def loader_processes(
    config: ClassifierConfig | SegmenterConfig | AffinityConfig,
    cluster: ClusterResources,
    workers: int,
) -> int:
    """Decoding processes of each worker: as asked, or enough that a GPU need not wait.

    A CPU worker decodes itself: a process more would take the CPU that it computes on.
    """
    if config.loader_processes != "auto":
        return config.loader_processes
    if cluster.gpus < 1:
        return 0
    spare = int(cluster.cpus / workers) - config.threads_per_worker
    return max(0, min(_MOST_LOADER_PROCESSES, spare))


def _trainer(
    job: TrainingJob, reporter: Any, cpus: int, gpu: bool, local: bool, max_failures: int
) -> Any:
    for name, value in (_TRAIN_ENVIRONMENT | (_LOCAL_ENVIRONMENT if local else {})).items():
        os.environ.setdefault(name, value)
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pmm_ray.runtime.training.worker import train_worker

    storage.make_folder(job.checkpoints_uri)
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": job, "reporter": reporter},
        scaling_config=ScalingConfig(
            num_workers=job.workers,
            use_gpu=gpu,
            resources_per_worker={"CPU": cpus, **({"GPU": 1} if gpu else {})},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=job.checkpoints_uri,
            failure_config=FailureConfig(max_failures=max_failures),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


class _Fit:
    """`trainer.fit()` in a thread: it would take the process's SIGINT handler in the main one."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self._values: dict[str, Any] = {}
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._values = self._trainer.fit().return_value
        # handed to the driver's thread, which raises it
        except BaseException as error:
            self._error = error

    def done(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def result(self, stage: str) -> dict[str, Any]:
        if self._error is None:
            return self._values
        reason = str(self._error).strip().splitlines()
        raise CannotRunError(
            f"{stage}: the training failed: {reason[-1] if reason else self._error!r}"
        ) from self._error


def _show(progress: StageProgress, reporter: Any, job: TrainingJob) -> None:
    import ray

    # a busy machine may answer late: the next poll shows more
    with contextlib.suppress(ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
        step, loss, errors = ray.get(reporter.state.remote(), timeout=_POLL_SECONDS * 4)
        progress.advance(0, errors - progress.errors)
        progress.set_done(step * job.batch_size, note=f"loss {loss:.3f}" if step else "")


def _check_stall(progress: StageProgress, seconds: float, job: TrainingJob) -> None:
    if time.monotonic() - progress.last_change > seconds:
        raise CannotRunError(
            f"{job.stage}: no step was finished for {seconds:.0f} s while {job.workers} workers "
            f"({job.threads + job.loader_processes} CPUs each) were asked for: see the Ray logs, "
            "or raise runtime.stall_seconds"
        )
