"""What a person reads while a run goes on, and what is kept of it."""

from __future__ import annotations

import contextlib
import io
import os
import threading
import time
from pathlib import Path

import pytest

from pmm_ray.runtime.core.errors import CannotRunError
from pmm_ray.runtime.core.events import EventLog, read_events
from pmm_ray.runtime.core.progress import Progress, StageProgress, console_text, format_seconds
from pmm_ray.runtime.core.resources import ClusterResources


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (187, "3:07"), (7384, "2:03:04")]
)
def test_seconds_are_readable(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_a_line_counts_images_errors_and_what_is_left() -> None:
    progress = StageProgress("make_masks", 100, 40, "images")
    assert progress.line().startswith("make_masks: 40/100 images")
    progress.advance(10, 2)
    time.sleep(0.25)
    progress.advance(10)
    line = progress.line()
    assert "60/100 images" in line
    assert "2 errors" in line
    # the rate counts from the first result, so that start-up and earlier attempts do not
    assert 0 < progress.rate <= 10 / 0.25
    progress.set_done(100, "loss 0.41")
    assert progress.line().endswith("ETA 0 s, 2 errors, loss 0.41")


def test_a_log_file_gets_a_heartbeat() -> None:
    stream = io.StringIO()
    progress = Progress(heartbeat_seconds=0.02, stream=stream)
    with progress.stage("make_cams", 5) as stage:
        deadline = time.monotonic() + 20
        while stream.getvalue().count("make_cams: 0/5") < 2:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        stage.advance(5)
    assert stream.getvalue().splitlines()[-1].startswith("make_cams: 5/5 images")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def wait_for(stream: io.StringIO, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in stream.getvalue():
        assert time.monotonic() < deadline, stream.getvalue()
        time.sleep(0.01)


def test_a_narrow_terminal_shows_all_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    stream = Terminal()
    with Progress(stream=stream).stage("predict_masks-r1", 10582) as stage:
        stage.set_note("waits for nodes: none with 4 GPUs")
        wait_for(stream, "none with 4 GPUs")


def test_a_terminal_that_cannot_write_over_a_line_gets_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with Progress(heartbeat_seconds=0.02, stream=stream).stage("make_cams", 5):
        wait_for(stream, "make_cams: 0/5 images, 0.0/s, ETA -\n")
    assert "\x1b" not in stream.getvalue()
    assert "\r" not in stream.getvalue()


@pytest.mark.filterwarnings("error")  # a thread that ends with a traceback
def test_the_end_of_a_reader_ends_the_heartbeat_and_then_the_stage() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    stream = console_text(writing)
    progress = Progress(heartbeat_seconds=0.02, stream=stream)
    with pytest.raises(BrokenPipeError):
        progress.message("a")
    stage = progress.stage("make_cams", 5)
    stage.__enter__()
    for thread in threading.enumerate():
        if thread.name == "progress":
            thread.join(20)
            assert not thread.is_alive()
    with pytest.raises(BrokenPipeError):
        stage.__exit__(None, None, None)
    with contextlib.suppress(BrokenPipeError):
        stream.close()


def test_events_are_lines_in_order_and_a_torn_one_is_passed_over(tmp_path: Path) -> None:
    log = EventLog(str(tmp_path), "driver")
    log.write("stage_start", stage="make_cams", images=3)
    log.write("chunk", stage="make_cams", images=1)
    with open(tmp_path / "events" / "driver.jsonl", "a") as file:
        file.write('{"time": 1, "ev')
    rows = list(read_events(str(tmp_path)))
    assert [row["event"] for row in rows] == ["stage_start", "chunk"]
    assert rows[0]["images"] == 3
    assert [row["event"] for row in read_events(str(tmp_path), "chunk")] == ["chunk"]


def test_a_torn_line_takes_no_other_along(tmp_path: Path) -> None:
    file = tmp_path / "events" / "driver.jsonl"
    EventLog(str(tmp_path), "driver").write("chunk", images=1)
    file.write_text(file.read_text() + '{"time": 1, "ev')
    log = EventLog(str(tmp_path), "driver")
    log.write("stage_start", stage="make_cams")
    log.write("broken_part", text="two\u2028lines\x85of it")
    rows = list(read_events(str(tmp_path)))
    assert [row["event"] for row in rows] == ["chunk", "stage_start", "broken_part"]
    assert rows[-1]["text"] == "two\u2028lines\x85of it"
    assert len(file.read_text().split("\n")) == 5


def test_a_request_that_can_never_be_met_is_refused_by_name() -> None:
    cluster = ClusterResources(cpus=4, gpus=0, nodes=1, local=True)
    cluster.require("a worker", cpus=4)
    with pytest.raises(
        CannotRunError, match="training needs 8 CPUs and 1 GPUs, and there is room for 0"
    ):
        cluster.require("training", cpus=8, gpus=1)
    assert cluster.default_train_workers() == 2
    assert ClusterResources(1, 0, 1, True).default_train_workers() == 1
    assert ClusterResources(96, 8, 1, False).default_train_workers() == 8
    assert ClusterResources(96, 8, 1, False).default_actors() == 8
