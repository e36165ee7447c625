"""Submit a command to a cluster over HTTP, follow its log, and end with its own exit code.

`ray job submit` ends with 1 for every failure and with 0 for a job that was stopped; Ray's Jobs API
knows both, so this asks it. A lost connection does not end the job: this follows the log again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pmm_ray.runtime.cluster.startup import working_dir_fault
from pmm_ray.runtime.core.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_TRY_AGAIN,
    CannotRunError,
)

# A head that answers nothing for this long is gone, and its jobs with it.
HEAD_LOST_SECONDS = 120.0
_RETRY_SECONDS = 2.0
# Ray's client waits for an answer for ever.
_REQUEST_SECONDS = 60.0

Write = Callable[[str], Any]


def cluster_address() -> str | None:
    """The cluster that the environment names: `RAY_API_SERVER_ADDRESS`, else `RAY_ADDRESS`."""
    return os.environ.get("RAY_API_SERVER_ADDRESS") or os.environ.get("RAY_ADDRESS") or None


def submit(
    command: Sequence[str],
    *,
    working_dir: str = ".",
    submission_id: str | None = None,
    env: Mapping[str, str] | None = None,
    wait: bool = True,
) -> int:
    """Run a command on the cluster of the environment, or here if there is none.

    Args:
        command: program and arguments; it is started on the head node, in the working folder.
        working_dir: folder that is sent to every node (what `.gitignore` and `.rayignore` name
            is left out), or a uri of an archive.
        submission_id: name of the job. If the cluster already knows it, this submits nothing and
            that job is followed.
        env: environment variables of the job's processes on every node.
        wait: follow the job to its end.

    Returns:
        The command's own exit code; 130 if the job was stopped or following it was interrupted;
        75 if the job's process was killed or the head is lost; 0 at once without `wait`.

    Raises:
        CannotRunError: no cluster answers at the address, the token is missing or wrong, or there
            is no such program.
    """
    if cluster_address() is None:
        return _run_here(command, env or {})
    job = submission_id or f"pmm-{uuid.uuid4().hex[:12]}"
    try:
        client = _client()
        known = bool(submission_id) and job in [own.submission_id for own in client.list_jobs()]
    except _connection_errors() as error:
        raise CannotRunError(
            f"cannot submit to {cluster_address()}: {error}. RAY_API_SERVER_ADDRESS is the "
            "dashboard's address, such as http://127.0.0.1:8265; a cluster with tokens also needs "
            "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH."
        ) from error
    if not known:
        runtime_env = {"working_dir": working_dir, "env_vars": _STOP | dict(env or {})}
        _submit(client, job, shlex.join(command), runtime_env)
    _say(f"{'following' if known else 'submitted'} {job}; stop it with `ray job stop {job}`")
    return follow(client, job) if wait else EXIT_DONE


# Ray gives a job that is stopped three seconds; a training wants to save a checkpoint
_STOP = {"RAY_JOB_STOP_WAIT_TIME_S": "60"}


def _submit(client: Any, job: str, entrypoint: str, runtime_env: Mapping[str, Any]) -> None:
    """Submit, waiting for a head that has just started and has no agent yet."""
    import requests

    started = time.monotonic()
    told = False
    while True:
        try:
            client.submit_job(
                entrypoint=entrypoint, submission_id=job, runtime_env=dict(runtime_env)
            )
            return
        except requests.Timeout as error:
            raise CannotRunError(
                f"the head does not answer; it may have taken the job all the same: submit again "
                f"with --submission-id {job}, which then follows it"
            ) from error
        except _connection_errors() as error:
            patient = time.monotonic() - started < HEAD_LOST_SECONDS
            if not patient or "again later" not in str(error):
                large = working_dir_fault(str(runtime_env["working_dir"]))
                raise CannotRunError(
                    f"the cluster did not take the job: {large or error}"
                ) from error
        if not told:
            told = True
            _say(
                "the head takes no jobs yet: waiting. If that lasts, another Ray on its"
                " machine holds its port; see `ray start --dashboard-agent-listen-port`"
            )
        time.sleep(_RETRY_SECONDS)


def _print(text: str) -> None:
    print(text, end="", flush=True)


def follow(client: Any, job: str, write: Write = _print) -> int:
    """Show a job's log until the job ends; returns its exit code, see `submit`."""
    try:
        return asyncio.run(_follow(client, job, write))
    except KeyboardInterrupt:
        _say(f"the job goes on; follow it again with --submission-id {job}")
        return EXIT_INTERRUPTED


async def _follow(client: Any, job: str, write: Write) -> int:
    log = _Log(write)
    while True:
        # a log that breaks off or is silent says nothing of the head: its status does
        with contextlib.suppress(TimeoutError, *_connection_errors()):
            await log.tail(client, job)
        try:
            status = client.get_job_status(job)
            if status.is_terminal():
                log.show(client.get_job_logs(job))
                return _exit_code(client.get_job_info(job))
            log.failing_since = None
        except _connection_errors() as error:
            log.failing_since = log.failing_since or time.monotonic()
            if time.monotonic() - log.failing_since > HEAD_LOST_SECONDS:
                lost = str(error) or type(error).__name__
                _say(f"the head node does not answer: {lost}. If it is gone, so is the job: start")
                _say("the cluster and submit the same command again, the run goes on from there")
                return EXIT_TRY_AGAIN
        await asyncio.sleep(_RETRY_SECONDS)


# where Ray tells a job's process its name
JOB_ENVIRONMENT = "RAY_JOB_CONFIG_JSON_ENV_VAR"
_STOPPED_SECONDS = 60.0


def stop_own_job() -> None:
    """Stop the Ray job that this process is the entrypoint of; outside of one do nothing.

    Returns only where Ray does not end this process within a minute.
    """
    about = json.loads(os.environ.get(JOB_ENVIRONMENT, "{}")).get("metadata", {})
    job = about.get("job_submission_id")
    if job is None:
        return
    import ray
    from ray.job_submission import JobSubmissionClient

    with ray.init(address="auto", log_to_driver=False) as context:
        client = JobSubmissionClient(f"http://{context.dashboard_url}")
    _say("another attempt would end in the same way: the job is stopped")
    client.stop_job(job)
    time.sleep(_STOPPED_SECONDS)


class _Log:
    """What has been shown of a job's log, which every connection sends from its first line."""

    def __init__(self, write: Write) -> None:
        self._write = write
        self._shown = 0
        self.failing_since: float | None = None
        """Since when the head has not answered, on `time.monotonic`; None: it answers."""

    async def tail(self, client: Any, job: str) -> None:
        """Show the log until it ends; raises TimeoutError where nothing comes for long.

        A connection that died without a word (a laptop that slept) is as silent as a quiet job.
        """
        seen, pieces = 0, aiter(client.tail_job_logs(job))
        while True:
            async with asyncio.timeout(HEAD_LOST_SECONDS):
                text = await anext(pieces, None)
            if text is None:
                return
            self.show(text, seen)
            seen += len(text)

    def show(self, text: str, start: int = 0) -> None:
        """Write what is new in a piece of the log that begins at character `start`."""
        fresh = text[max(0, self._shown - start) :]
        if fresh:
            self._write(fresh)
            self._shown = start + len(text)
            self.failing_since = None


def _exit_code(info: Any) -> int:
    status, code = str(info.status.value), info.driver_exit_code
    if status == "SUCCEEDED":
        return EXIT_DONE
    if status == "STOPPED":
        _say("the job was stopped; submit the same command again to go on")
        return EXIT_INTERRUPTED
    if code is not None and 0 < code < 256:
        return int(code)
    _say(f"the job's process ended without an exit code: {info.message}")
    return EXIT_TRY_AGAIN


def _run_here(command: Sequence[str], env: Mapping[str, str]) -> int:
    _say("neither RAY_API_SERVER_ADDRESS nor RAY_ADDRESS is set: running on this machine")
    # `python` means the cluster's there and this one here
    program = sys.executable if command[0] in ("python", "python3") else command[0]
    try:
        process = subprocess.Popen([program, *command[1:]], env=os.environ | dict(env))
    except OSError as error:
        raise CannotRunError(f"cannot start {program}: {error.strerror}") from error
    previous = signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    try:
        while True:
            try:
                code = process.wait()
            except KeyboardInterrupt:
                continue  # the terminal has told the command as well, which ends in its own way
            return code if code >= 0 else EXIT_TRY_AGAIN
    finally:
        signal.signal(signal.SIGTERM, previous)


def _client() -> Any:
    from ray.job_submission import JobSubmissionClient

    class Client(JobSubmissionClient):
        def _do_request(self, *args: Any, **options: Any) -> Any:
            return super()._do_request(*args, **{"timeout": _REQUEST_SECONDS} | options)

    return Client()


def _connection_errors() -> tuple[type[Exception], ...]:
    import aiohttp
    import requests
    from ray.exceptions import AuthenticationError, RpcError

    # Ray's client raises the last three for what the head answers
    return (
        AuthenticationError,
        RpcError,  # of an address without http://
        aiohttp.ClientError,
        requests.RequestException,
        ConnectionError,
        RuntimeError,
        ValueError,
    )


def _say(text: str) -> None:
    print(f"pmm: {text}", file=sys.stderr, flush=True)
