"""Submitting to a head that has no agent for jobs yet, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.job_submission import JobStatus

from pmm_ray.runtime.cluster import submit as submitting
from pmm_ray.runtime.cluster.submit import follow, stop_own_job, submit
from pmm_ray.runtime.core.errors import EXIT_DONE, EXIT_TRY_AGAIN, CannotRunError

BUSY = "No available agent to submit job, please try again later."


class Head(HTTPServer):
    """Answers as a dashboard does; the first `refusals` submissions are refused with `reason`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answers)
        self.refusals = 0
        self.reason = BUSY
        self.silent_seconds = 0.0
        self.submitted: list[dict[str, Any]] = []


class Answers(BaseHTTPRequestHandler):
    server: Head

    def do_GET(self) -> None:
        version = {"version": "4", "ray_version": ray.__version__, "ray_commit": "none"}
        self.answer(200, json.dumps(version))

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(self.server.silent_seconds)
        if self.server.refusals:
            self.server.refusals -= 1
            self.answer(500, self.server.reason)
            return
        self.server.submitted.append(body)
        name = body["submission_id"]
        self.answer(200, json.dumps({"job_id": name, "submission_id": name}))

    def answer(self, status: int, text: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the tests' output is not a log."""


@pytest.fixture
def dumb_head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    """Takes connections and never says a word, as a head does whose machine swaps."""
    server = Head()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(submitting, "_REQUEST_SECONDS", 0.2)
    yield server
    server.server_close()


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    server = Head()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(submitting, "_RETRY_SECONDS", 0.05)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def send(**options: Any) -> int:
    return submit(["python", "a b.py"], working_dir="https://host/code.zip", wait=False, **options)


@pytest.mark.usefixtures("dumb_head")
def test_a_head_that_never_answers_is_not_waited_for() -> None:
    with pytest.raises(CannotRunError, match=r"cannot submit to .*timed out"):
        send()


def test_a_submission_without_an_answer_may_have_been_taken(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submitting, "_REQUEST_SECONDS", 0.2)
    head.silent_seconds = 0.6
    with pytest.raises(CannotRunError, match="submit again with --submission-id pmm-"):
        send()


def test_a_head_without_an_agent_is_waited_for_and_the_reason_told_once(
    head: Head, capfd: pytest.CaptureFixture[str]
) -> None:
    head.refusals = 3
    assert send(env={"KEY": "value"}) == 0
    [job] = head.submitted
    assert job["entrypoint"] == "python 'a b.py'"
    # a stop leaves a training the time to save a checkpoint
    assert job["runtime_env"]["env_vars"] == {"KEY": "value", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    said = capfd.readouterr().err
    assert said.count("takes no jobs yet") == 1
    assert "--dashboard-agent-listen-port" in said
    assert job["submission_id"] in said


def test_a_head_that_stays_without_an_agent_ends_the_wait(
    head: Head, monkeypatch: pytest.MonkeyPatch
) -> None:
    head.refusals = 1_000_000
    monkeypatch.setattr(submitting, "HEAD_LOST_SECONDS", 0.3)
    with pytest.raises(CannotRunError, match="again later"):
        send()
    assert not head.submitted


def test_any_other_refusal_is_final(head: Head) -> None:
    head.refusals, head.reason = 1, "the entrypoint is not allowed"
    with pytest.raises(CannotRunError, match="entrypoint is not allowed"):
        send()
    assert not head.submitted


def test_a_job_stops_itself_and_a_command_outside_of_one_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, str]] = []

    class Client:
        def __init__(self, address: str) -> None:
            self.address = address

        def stop_job(self, job: str) -> None:
            asked.append((self.address, job))

    context = SimpleNamespace(dashboard_url="10.0.0.1:8265")
    monkeypatch.setattr("ray.init", lambda **options: nullcontext(context))
    monkeypatch.setattr("ray.job_submission.JobSubmissionClient", Client)
    monkeypatch.setattr(submitting, "_STOPPED_SECONDS", 0.0)
    monkeypatch.delenv(submitting.JOB_ENVIRONMENT, raising=False)
    stop_own_job()
    assert asked == []
    about = {"runtime_env": {}, "metadata": {"job_submission_id": "coco14-1"}}
    monkeypatch.setenv(submitting.JOB_ENVIRONMENT, json.dumps(about))
    stop_own_job()
    assert asked == [("http://10.0.0.1:8265", "coco14-1")]


def test_a_lost_head_or_a_killed_job_is_to_be_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitting, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(submitting, "HEAD_LOST_SECONDS", 0.05)

    async def logs(job: str) -> AsyncIterator[str]:
        yield "a line\n"

    def gone(job: str) -> Any:
        raise ConnectionError("refused")

    lost = SimpleNamespace(tail_job_logs=logs, get_job_status=gone)
    assert follow(lost, "a", write=lambda text: None) == EXIT_TRY_AGAIN
    killed = SimpleNamespace(
        tail_job_logs=logs,
        get_job_status=lambda job: JobStatus.FAILED,
        get_job_logs=lambda job: "a line\n",
        get_job_info=lambda job: SimpleNamespace(
            status=JobStatus.FAILED, driver_exit_code=-9, message="killed"
        ),
    )
    assert follow(killed, "a", write=lambda text: None) == EXIT_TRY_AGAIN
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert submit(["python", "-c", kill]) == EXIT_TRY_AGAIN


def test_a_log_that_breaks_off_after_hours_is_followed_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submitting, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(submitting, "HEAD_LOST_SECONDS", 0.2)
    connections, shown, answers = [], [], iter([ConnectionError("reset"), JobStatus.SUCCEEDED])

    async def logs(job: str) -> AsyncIterator[str]:
        connections.append(job)
        yield "line 1\n"
        if len(connections) == 1:
            await asyncio.sleep(0.4)
            raise RuntimeError("WebSocket connection closed with close code 1006")
        yield "line 2\n"

    def status(job: str) -> JobStatus:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    client = SimpleNamespace(
        tail_job_logs=logs,
        get_job_status=status,
        get_job_logs=lambda job: "line 1\nline 2\n",
        get_job_info=lambda job: SimpleNamespace(status=JobStatus.SUCCEEDED, driver_exit_code=0),
    )
    assert follow(client, "a", write=shown.append) == EXIT_DONE
    assert (len(connections), "".join(shown)) == (2, "line 1\nline 2\n")


def test_a_job_that_says_nothing_is_followed_while_its_head_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submitting, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(submitting, "HEAD_LOST_SECONDS", 0.1)
    answers = [JobStatus.RUNNING] * 40 + [JobStatus.SUCCEEDED]

    async def idle(job: str) -> AsyncIterator[str]:
        raise RuntimeError("a proxy closed the connection")
        yield ""

    client = SimpleNamespace(
        tail_job_logs=idle,
        get_job_status=lambda job: answers.pop(0),
        get_job_logs=lambda job: "",
        get_job_info=lambda job: SimpleNamespace(status=JobStatus.SUCCEEDED, driver_exit_code=0),
    )
    assert follow(client, "a", write=lambda text: None) == EXIT_DONE
    assert not answers


def test_a_connection_that_died_without_a_word_is_no_quiet_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(submitting, "_RETRY_SECONDS", 0.01)
    monkeypatch.setattr(submitting, "HEAD_LOST_SECONDS", 0.1)
    connections, shown = [], []

    async def logs(job: str) -> AsyncIterator[str]:
        connections.append(job)
        yield "line 1\n"
        if len(connections) < 4:
            await asyncio.Event().wait()
        yield "line 2\n"

    quiet = SimpleNamespace(
        tail_job_logs=logs,
        get_job_status=lambda job: (
            JobStatus.SUCCEEDED if len(connections) > 3 else JobStatus.RUNNING
        ),
        get_job_logs=lambda job: "line 1\nline 2\n",
        get_job_info=lambda job: SimpleNamespace(status=JobStatus.SUCCEEDED, driver_exit_code=0),
    )
    assert ends_soon(quiet, shown.append) == EXIT_DONE
    assert "".join(shown) == "line 1\nline 2\n"

    async def dead(job: str) -> AsyncIterator[str]:
        yield "line 1\n"
        await asyncio.Event().wait()

    def gone(job: str) -> Any:
        raise ConnectionError("no route")

    lost = SimpleNamespace(tail_job_logs=dead, get_job_status=gone)
    assert ends_soon(lost, shown.append) == EXIT_TRY_AGAIN


def ends_soon(client: Any, write: Any) -> int:
    """The exit code of following a job; raises TimeoutError where that does not end."""

    async def followed() -> int:
        return await asyncio.wait_for(submitting._follow(client, "a", write), 20)

    return asyncio.run(followed())


def test_a_command_on_this_machine_hears_of_sigterm(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    ready = tmp_path / "ready"
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    child = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))\n"
        f"open({str(ready)!r}, 'w').close()\n"
        "time.sleep(5)\n"
    )

    def stop() -> None:
        deadline = time.monotonic() + 20
        while not ready.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    stopper = threading.Thread(target=stop)
    stopper.start()
    try:
        assert submit(["python", "-c", child]) == 130
        stopper.join()
        # whoever asked us hears of the next one again
        assert heard == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
