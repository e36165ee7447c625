"""Ray: connect or start, ask what there is, refuse a demand that it can never meet."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from pmm_ray.config import RuntimeConfig
from pmm_ray.runtime.cluster.placement import place
from pmm_ray.runtime.cluster.startup import refuse_start
from pmm_ray.runtime.core import storage
from pmm_ray.runtime.core.errors import OF_A_NAME, CannotRunError, MayPassError
from pmm_ray.runtime.core.progress import console_text
from pmm_ray.runtime.core.resources import ClusterResources

# One thread per task: Ray owns the cores (OpenCV is told in the worker, it ignores these).
THREAD_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_MAX_DEFAULT_STORE = 2 * 1024**3
SCRATCH_ADVICE = "set runtime.scratch to a folder on this node's disk that this user may write to"


@contextlib.contextmanager
def connect(
    address: str, config: RuntimeConfig, run_dir: str | None = None
) -> Iterator[ClusterResources]:
    """Connect to Ray for the length of a `with` block.

    Args:
        address: `auto` uses the cluster of `RAY_ADDRESS` (set inside `ray job submit`) or, where
            there is none, starts a Ray on this machine; `local` always starts one; anything else
            is passed to Ray.
        config: CPUs and object store of a Ray that is started here.
        run_dir: where Ray's own log lines go (`logs/ray.log`) instead of the console.

    A Ray that is already initialised in this process is used and left running.
    """
    import ray

    _quiet(run_dir)
    if ray.is_initialized():
        yield _resources(config, local=False)
        return
    local = address == "local" or (address == "auto" and not os.environ.get("RAY_ADDRESS"))
    refuse_start(local, address)
    options: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "configure_logging": True,
        "runtime_env": {"env_vars": dict(THREAD_ENVIRONMENT)},
    }
    # Ray's default tries an image that runs a node out of memory again for ever
    os.environ.setdefault("RAY_task_oom_retries", "2")
    if local:
        # Workers of a Ray of our own need not give way to everything else on the machine.
        os.environ.setdefault("RAY_worker_niceness", "0")
        options |= {"address": "local", "include_dashboard": False}
        options |= {"num_cpus": config.cpus} if config.cpus else {}
        options["object_store_memory"] = config.object_store_bytes or _default_store()
    else:
        options["address"] = None if address == "auto" else address
    # ray.init installs a SIGTERM handler of its own; ours turns it into a resumable exit
    in_main = threading.current_thread() is threading.main_thread()
    on_terminate = signal.getsignal(signal.SIGTERM) if in_main else None
    with _native_stderr_to(run_dir):
        try:
            ray.init(**options)
        except Exception as error:  # Ray says with a bare one that a node took too long to start
            what = "start Ray on this machine" if local else f"connect to Ray at {address!r}"
            raise MayPassError(
                f"cannot {what}: {error} (`pmm doctor` looks for the cause)"
            ) from error
        import ray.data
        import ray.train

        _quiet(run_dir)
        _quiet_raylet()
        if on_terminate is not None:
            signal.signal(signal.SIGTERM, on_terminate)
        try:
            yield _resources(config, local=local)
        finally:
            node = ray._private.worker._global_node
            session = Path(node.get_session_dir_path()) if local else None
            ray.shutdown()
            if session is not None and run_dir is not None:
                # on a full disk the run ends with its own words, not with those about its logs
                with contextlib.suppress(OSError):
                    _keep_logs(session, run_dir)


def one_thread() -> None:
    """Tell OpenCV, which ignores OMP_NUM_THREADS, that Ray owns the cores."""
    import cv2

    cv2.setNumThreads(0)


def inference_process(gpus: float = 0.0) -> None:
    """Settings of a process that maps images of many sizes; call it before a model is made.

    oneDNN keeps compiled kernels for every input size it has seen, 1,024 of them: with photographs
    of all sizes a process grows by gigabytes. A small cache keeps it flat at the same speed.

    Args:
        gpus: that the process has. Where it is a part of one, it gets that part of its memory: more
            is out of memory here, not in a process beside it.
    """
    if 0 < gpus < 1:
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_per_process_memory_fraction(gpus)
    one_thread()
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def _default_store() -> int:
    """Ray's own rule (30 % of memory, what /dev/shm holds), capped: our blocks are small."""
    import psutil

    limits = [int(psutil.virtual_memory().available * 0.3), _MAX_DEFAULT_STORE]
    with contextlib.suppress(FileNotFoundError):
        limits.append(int(shutil.disk_usage("/dev/shm").free * 0.8))
    return max(min(limits), 80 * 1024**2)


def _resources(config: RuntimeConfig, *, local: bool) -> ClusterResources:
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    # a Ray of our own is this machine, which does not change
    look = None if local else partial(_resources, config, local=local)
    return replace(place(alive, config, local=local), look=look)


class _RunLog(logging.FileHandler):
    """The log of a run; a folder that is gone costs lines, not the work."""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(OSError):
            super().emit(record)


def _quiet(run_dir: str | None) -> None:
    """Send Ray's log lines to `RUN/logs/ray.log` and keep them off the console.

    Called again after `ray.init` and after importing ray.data and ray.train, each of which
    installs handlers of its own.
    """
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    from ray.util.annotations import RayDeprecationWarning

    warnings.filterwarnings("ignore", category=RayDeprecationWarning)
    # advice for those who write pipelines: "the operator only received 1 input(s)"
    warnings.filterwarnings("ignore", category=UserWarning, module=r"ray\.")
    for name in ("ray", "ray.data", "ray.train"):
        logger = logging.getLogger(name)
        for old in list(logger.handlers):
            if isinstance(old, _RunLog) or not isinstance(old, logging.FileHandler):
                logger.removeHandler(old)
                old.close()
        logger.propagate = name != "ray"
    root = logging.getLogger("ray")
    if run_dir is None or storage.is_remote(run_dir):
        root.addHandler(logging.NullHandler())
        return
    log = Path(run_dir) / "logs" / "ray.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    handler = _RunLog(log, delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    # on a full disk every line would become a traceback on the console
    logging.raiseExceptions = False


def _quiet_raylet() -> None:
    """Send what raylets tell the driver ("task failed, will be retried") to Ray's log."""
    from ray._private import worker

    def to_log(batch: dict[str, Any], ignore_prefix: bool) -> None:
        for line in batch["lines"]:
            logging.getLogger("ray").warning("(%s) %s", batch.get("pid"), line)

    # Ray prints these lines to stdout and has no switch for them (`log_to_driver` is another)
    worker.print_to_stdstream = to_log


@contextlib.contextmanager
def _native_stderr_to(run_dir: str | None) -> Iterator[None]:
    """Send what Ray's C++ writes to file descriptor 2 into the run folder.

    Of a run in a bucket: into a temporary file, which stays where the process dies. Python's
    `sys.stderr` keeps writing where it did.
    """
    if run_dir is None:
        yield
        return
    sys.stderr.flush()
    console, python_stderr = os.dup(2), sys.stderr
    remote = storage.is_remote(run_dir)
    if remote:
        log, name = tempfile.mkstemp(prefix="pmm-ray-native-", suffix=".log")
    else:
        name = str(Path(run_dir) / "logs" / "ray-native.log")
        log = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(log, 2)
    os.close(log)
    sys.stderr = console_text(os.dup(console))
    try:
        yield
    finally:
        sys.stderr.close()
        sys.stderr = python_stderr
        os.dup2(console, 2)
        os.close(console)
        if remote:
            Path(name).unlink(missing_ok=True)


def _keep_logs(session: Path, run_dir: str) -> None:
    """Copy what workers printed into the run folder; a local Ray's session folder is temporary."""
    if storage.is_remote(run_dir):
        return
    target = Path(run_dir) / "logs" / session.name
    for log in (session / "logs").glob("worker-*.err"):
        if log.stat().st_size:
            target.mkdir(parents=True, exist_ok=True)
            shutil.copy2(log, target / log.name)


def scratch_folder(config: RuntimeConfig) -> Path:
    """A folder on this node's own disk, by default one of this user.

    Raises:
        CannotRunError: this user may not make it or write there.
    """
    own = Path(tempfile.gettempdir()) / f"pmm-ray-{os.getuid()}"
    folder = Path(config.scratch).expanduser() if config.scratch else own
    with in_scratch():
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "not writable", str(folder))
    return folder


@contextlib.contextmanager
def in_scratch() -> Iterator[None]:
    """Name the setting where a system refuses a scratch folder: another user's, a read-only disk.

    Raises:
        CannotRunError: so it is.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in OF_A_NAME:
            raise
        raise CannotRunError(f"{error.filename}: {error.strerror}: {SCRATCH_ADVICE}") from error
