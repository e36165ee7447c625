"""Run a training on Ray Train: start the workers, show progress, resume, report.

Ray Train places, connects and replaces the workers. The checkpoints are our own files (see
`checkpoint`): Ray's record of its checkpoints is not written atomically, so a driver killed
at the wrong moment could not resume, and any other version of Ray refuses it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from typing import TYPE_CHECKING, Any

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import BudgetExceededError, CannotRunError
from pmm_ray.runtime.training.reporter import Reporter

if TYPE_CHECKING:
    from pmm_ray.runtime.core.progress import StageProgress
    from pmm_ray.runtime.core.stage import RunContext
    from pmm_ray.runtime.training.job import TrainingJob

_POLL_SECONDS = 0.5
# Ray Train's own settings: notice the end of a training soon, stay where the driver was started,
# and leave out what only its dashboard would show
_TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
}

# this machine is not taken away with notice: one process less to start
_LOCAL_ENVIRONMENT = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}


def run_training(job: TrainingJob, context: RunContext) -> None:
    """Train until the last step, going on from the newest checkpoint if there is one.

    It trains nothing if the network exists already.

    Args:
        job: what is trained, with how many workers.

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
    context.cluster.require(
        f"{job.stage} with {job.workers} workers",
        cpus=job.workers * job.cpus,
        gpus=job.workers if gpu else 0,
    )
    import ray

    reporter = ray.remote(num_cpus=0)(Reporter).remote()
    try:
        fit = _Fit(_trainer(job, reporter, gpu, context.cluster.local))
        images = job.steps * job.config.batch_size
        with context.progress.stage(job.stage, images, unit="images") as progress:
            while not fit.done(_POLL_SECONDS):
                _show(progress, reporter, job)
                _check_stall(progress, context.config.runtime.stall_seconds, job)
            _show(progress, reporter, job)
    finally:
        ray.kill(reporter)
    values = fit.result(job.stage)
    errors = tables.read_errors(job.errors_uri)
    if len(errors) > job.error_budget:
        raise BudgetExceededError(job.stage, len(errors), job.error_budget, errors)
    if "stopped" in values:
        raise CannotRunError(values["stopped"])
    storage.delete_folder(job.checkpoints_uri)


def _trainer(job: TrainingJob, reporter: Any, gpu: bool, local: bool) -> Any:
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
            resources_per_worker={"CPU": job.cpus, **({"GPU": 1} if gpu else {})},
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=job.checkpoints_uri,
            failure_config=FailureConfig(max_failures=job.config.max_failures),
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
        progress.set_done(step * job.config.batch_size, note=f"loss {loss:.3f}" if step else "")


def _check_stall(progress: StageProgress, seconds: float, job: TrainingJob) -> None:
    if time.monotonic() - progress.last_change > seconds:
        raise CannotRunError(
            f"{job.stage}: no step was finished for {seconds:.0f} s while {job.workers} workers "
            f"({job.cpus} CPUs each) were asked for: see the Ray logs, "
            "or raise runtime.stall_seconds"
        )
