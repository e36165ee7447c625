"""Run a training on Ray Train: start the workers, show progress, resume, report.

Ray Train places, connects and replaces the workers. The checkpoints are our own files (see
`checkpoint`): Ray's record of its checkpoints is not written atomically, so a driver killed
at the wrong moment could not resume, and any other version of Ray refuses it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pmm_ray.runtime.core import lease, storage, tables
from pmm_ray.runtime.core.errors import cannot_run, require_budget
from pmm_ray.runtime.core.resources import away_from
from pmm_ray.runtime.training.clock import Clock
from pmm_ray.runtime.training.interruptions import Drains, save_at_once
from pmm_ray.runtime.training.losses import Losses
from pmm_ray.runtime.training.reporter import make_reporter
from pmm_ray.runtime.training.workers import fitted

if TYPE_CHECKING:
    from pmm_ray.runtime.core.progress import StageProgress
    from pmm_ray.runtime.core.resources import ClusterResources
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

    It trains nothing if the network exists already. After a lost worker or node it begins again at
    the newest checkpoint, at most `max_failures` times; a node whose device fails twice is avoided.

    The trained network is then at `job.model_uri` and the checkpoints are deleted.

    Raises:
        CannotRunError: the cluster is too small, the data cannot be trained on, workers failed
            too often, no node came for `runtime.nodes_seconds`, preparing the data made no progress
            for `runtime.prepare_seconds`, no step was done for `runtime.stall_seconds`, or another
            run has taken the folder over.
        BudgetExceededError: too many images cannot be used.
    """
    # it is there if a run was killed just after it wrote the network
    values = {} if storage.exists(job.model_uri) else _train(job, context)
    errors = tables.read_errors(job.errors_uri)
    require_budget(job.stage, errors, job.error_budget, job.images)
    if "stopped" in values:
        raise cannot_run(values["stopped"], values["may_pass"])
    lease.require(context.run_dir, context.attempt)
    storage.delete_folder(job.checkpoints_uri)


def _train(job: TrainingJob, context: RunContext) -> dict[str, Any]:
    """What the workers return at the end, after as many attempts as it takes."""
    import ray

    context.events.write(
        "training_start",
        stage=job.stage,
        hash=job.fingerprint.partition("-")[0],  # of the stage's folder
        steps=job.steps,
        batch_size=job.config.batch_size,
        workers=job.workers,
        cpus=job.cpus,
        gpus=int(context.cluster.gpus >= 1),
    )
    reporter = make_reporter()
    losses = Losses(job, context)
    # numbered here: a reporter whose process restarts has forgotten how many there were
    requests = itertools.count(1)
    try:
        images = job.steps * job.config.batch_size
        with context.progress.stage(job.stage, images, unit="images") as progress:
            values = None
            while values is None:
                if job.config.elastic:
                    job = fitted(job, context)
                losses.begin(job)
                values = _attempt(job, context, reporter, progress, losses, requests)
            return values
    finally:
        ray.kill(reporter)


def _attempt(
    job: TrainingJob,
    context: RunContext,
    reporter: Any,
    progress: StageProgress,
    losses: Losses,
    requests: Iterator[int],
) -> dict[str, Any] | None:
    """What the workers return; None: some were lost, and the training may begin again."""
    reporter.begin.remote()
    fit = _Fit(_trainer(job, reporter, context.cluster))
    clock = Clock(job, context.config.runtime)
    drains = Drains(context.cluster.local)
    try:
        while not fit.done(_POLL_SECONDS):
            _show(progress, reporter, job, clock)
            if context.lost.is_set():
                lease.require(context.run_dir, context.attempt)
            clock.check()
            if leaving := drains.new():
                context.events.write("nodes_drained", stage=job.stage, nodes=leaving)
                context.progress.message(
                    f"{job.stage}: {len(leaving)} nodes are taken away soon: a checkpoint is saved"
                )
                reporter.ask_to_save.remote(next(requests))
    except KeyboardInterrupt:
        save_at_once(reporter, next(requests), job.steps, context.progress)
        raise
    _show(progress, reporter, job, clock, ended=True)
    if fit.error is None:
        return fit.values
    losses.add(fit.error)
    return None


def _trainer(job: TrainingJob, reporter: Any, cluster: ClusterResources) -> Any:
    gpu = cluster.gpus >= 1
    environment = _TRAIN_ENVIRONMENT | (_LOCAL_ENVIRONMENT if cluster.local else {})
    for name, value in environment.items():
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
            label_selector=away_from({}, list(cluster.avoided)) or None,
        ),
        run_config=RunConfig(
            name="ray",
            storage_path=job.checkpoints_uri,
            # a loss is ours to judge, see `losses`
            failure_config=FailureConfig(max_failures=0),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


class _Fit:
    """`trainer.fit()` in a thread: it would take the process's SIGINT handler in the main one."""

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.values: dict[str, Any] = {}
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="training", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.values = self._trainer.fit().return_value
        # handed to the driver's thread, which judges it
        except BaseException as error:
            self.error = error

    def done(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()


def _show(
    progress: StageProgress, reporter: Any, job: TrainingJob, clock: Clock, ended: bool = False
) -> None:
    import ray

    # a busy machine may answer late: the next poll shows more
    with contextlib.suppress(ray.exceptions.GetTimeoutError, ray.exceptions.RayActorError):
        state = ray.get(reporter.state.remote(), timeout=_POLL_SECONDS * 4)
        progress.advance(0, max(0, state.errors - progress.errors))
        done = max(progress.done, state.step * job.config.batch_size)
        waits = clock.look(state)
        if ended or state.step >= job.steps:  # workers that leave are not waited for
            waits = ""
        loss = f"loss {state.loss:.3f}" if state.step else ""
        trouble = f"no checkpoint: {state.trouble}" if state.trouble else ""
        progress.set_done(done, note=", ".join(filter(None, (loss, waits, trouble))))
