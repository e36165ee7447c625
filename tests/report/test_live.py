"""Where a run is, read from its folder while it goes on."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from pmm_ray.commands.watch import lines, watch
from pmm_ray.report.live import look
from pmm_ray.runtime.core import events, lease, storage, tables
from pmm_ray.runtime.core.errors import CannotRunError, ErrorRow
from pmm_ray.runtime.core.events import Board, EventLog, read_events

START = 1_000_000.0


def write(run_dir: Path, *rows: tuple[float, str, dict[str, Any]]) -> None:
    (run_dir / "events").mkdir(exist_ok=True)
    with open(run_dir / "events" / "driver.jsonl", "a") as file:
        for after, event, fields in rows:
            row = {"time": START + after, "host": "head", "pid": 1, "event": event, **fields}
            file.write(json.dumps(row) + "\n")


def chunk(stage: str, images: int, **more: Any) -> dict[str, Any]:
    nothing = {"errors": 0, "pool_seconds": 0.0, "producer_pool_seconds": 0.0, "kinds": {}}
    return {"stage": stage, "images": images, **nothing, **more}


def write_errors(run_dir: Path, name: str, *kinds: str) -> Path:
    """Error rows (`kind@host`) of the stage of the fixture, as one part."""
    folder = run_dir / "make_cams-1a2b3c4d" / "errors"
    rows = [
        ErrorRow(f"{name}-{number}", "make_cams", kind, "bad", host=host)
        for number, (kind, host) in enumerate(text.split("@") for text in kinds)
    ]
    tables.write_errors(str(folder), name, rows)
    return folder / f"part-{name}.parquet"


def beat(run_dir: Path, after: float) -> None:
    """A driver holds the run, and said so then."""
    held = {"host": "head", "heartbeat": START + after, "attempt": "a", "pid": 1}
    (run_dir / "lease.json").write_text(json.dumps(held))


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    record = {"name": "night", "finished": None, "stages": []}
    (tmp_path / "run.json").write_text(json.dumps(record))
    start = {"images": 100, "done": 20, "workers": 2, "cpus": 0.0, "gpus": 1.0}
    start["hash"] = "1a2b3c4d"
    write_errors(tmp_path, "a", "decode@gpu-1", "decode@gpu-1", "missing@gpu-2")
    write(
        tmp_path,
        (0, "nodes", {"nodes": 3, "cpus": 64, "gpus": 4}),
        (0, "stage_start", {"stage": "make_cams", "producer_gpus": None, **start}),
        (
            10,
            "chunk",
            chunk("make_cams", 20, pool_seconds=15.0, passes=4, views=50, pixels=60, room=80),
        ),
        (
            20,
            "chunk",
            chunk(
                "make_cams",
                20,
                errors=3,
                pool_seconds=15.0,
                kinds={"decode@gpu-1": 2, "missing@gpu-2": 1},
            ),
        ),
        (20, "machine_fault", {"stage": "make_cams", "text": "CUDA error", "host": "gpu-2"}),
        (30, "nodes", {"nodes": 3, "cpus": 64, "gpus": 4}),
    )
    beat(tmp_path, 35)
    return tmp_path


def test_images_rate_eta_busy_share_errors_and_cost(run_dir: Path) -> None:
    now = look(str(run_dir), START + 40)
    [stage] = now.stages
    assert (stage.done, stage.total, stage.errors, stage.finished) == (60, 100, 3, False)
    assert stage.rate == pytest.approx(1.0)
    assert stage.seconds_left == pytest.approx(40)
    assert stage.busy == pytest.approx(30 / 80)
    assert (stage.filled, stage.views) == (0.75, 12.5)
    assert now.errors["make_cams", "decode", "gpu-1"] == 2
    assert now.held_by == "head"
    assert now.core_hours == pytest.approx(40 * 64 / 3600)
    assert now.gpu_hours == pytest.approx(40 * 4 / 3600)
    said = "\n".join(lines(now, 0.05, 1.0))
    for part in (
        "night: driver on head, last event 10 s ago, 3 nodes",
        "make_cams: 60/100 images, 1.0/s, ETA 40 s, 3 errors, GPUs 38% busy, passes 75% full,"
        " 12.5 views",
        "2 decode in make_cams on gpu-1",
        "gpu-2: CUDA error (1 times)",
        "0.71 core-hours, 0.04 GPU-hours, cost 0.08",
    ):
        assert part in said


def test_a_watchers_clock_that_is_behind_makes_no_stage_faster(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pmm_ray.report.live.beats", lambda *_: True)
    for behind in (5, 29, 100):
        now = look(str(run_dir), START + 30 - behind)
        [stage] = now.stages
        assert stage.rate == pytest.approx(40 / 30)
        assert stage.busy == pytest.approx(30 / 60)
        assert now.age == 0
        assert now.gpu_hours == pytest.approx(30 * 4 / 3600)


def test_a_run_that_ends_while_one_looks_at_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record: dict[str, Any] = {"name": "night", "finished": None, "stages": []}
    (tmp_path / "run.json").write_text(json.dumps(record))
    beat(tmp_path, 20)

    def end(seconds: float) -> None:
        (tmp_path / "run.json").write_text(json.dumps(record | {"finished": "now"}))
        (tmp_path / "lease.json").unlink()

    monkeypatch.setattr(lease.time, "sleep", end)
    now = look(str(tmp_path), START)
    assert (now.finished, now.held_by) == (True, "")


def test_nothing_works_on_what_was_left(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "train_segmenter-r0"
    step = {"stage": name, "step": 10, "images_per_second": 8.0, "loader_wait": 0.25}
    write(
        run_dir,
        (61, "training_start", {"stage": name, "steps": 50, "batch_size": 4, "gpus": 0}),
        (70, "train_step", step),
    )

    def shown(after: float) -> list[str]:
        return [line for line in lines(look(str(run_dir), START + after)) if "/" in line[:30]]

    beat(run_dir, 70)
    # mapping was left for the training
    assert [stage.rate for stage in look(str(run_dir), START + 71).stages] == [0, 2]
    # nothing was heard for long
    beat(run_dir, 1000)
    assert [stage.rate for stage in look(str(run_dir), START + 1001).stages] == [0, 0]
    # another driver is there, and has begun nothing
    beat(run_dir, 80)
    write(run_dir, (75, "cluster", {}))
    training = look(str(run_dir), START + 81).stages[1]
    assert (training.rate, training.seconds_left, training.busy) == (0, None, None)
    write(run_dir, (82, "training_start", {"stage": name, "steps": 50, "batch_size": 4}))
    write(run_dir, (90, "train_step", step))
    assert look(str(run_dir), START + 91).stages[1].rate == 2
    # nobody is
    (run_dir / "lease.json").unlink()
    assert shown(91) == [
        "  make_cams: 60/100 images, 3 errors, passes 75% full, 12.5 views",
        f"  {name}: 10/50 steps",
    ]


def test_nodes_that_nobody_speaks_of_are_not_paid_for_ever(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "_SECOND_LOOK_SECONDS", 0.01)
    late = look(str(run_dir), START + 36_000)
    assert late.gpu_hours == pytest.approx((30 + 60) * 4 / 3600)
    assert late.held_by == ""


def test_a_second_attempt_begins_anew_and_withdrawn_rows_are_taken_back(run_dir: Path) -> None:
    assert look(str(run_dir), START + 40).stages[0].errors == 3
    start = {"images": 100, "done": 60, "workers": 2, "cpus": 1.0, "gpus": 0.0}
    again = {"stage": "make_cams", "producer_gpus": None, "hash": "1a2b3c4d", **start}
    said = {"stage": "make_cams", "node": "n", "of_host": "gpu-2", "why": "sick", "withdrawn": 5}
    withdrawn = write_errors(run_dir, "b", *["internal@gpu-2"] * 5)
    write(
        run_dir,
        (50, "stage_start", again),
        (55, "chunk", chunk("make_cams", 10, errors=5, kinds={"internal@gpu-2": 5})),
        (56, "node_avoided", said),
    )
    assert look(str(run_dir), START + 60).errors["make_cams", "internal", "gpu-2"] == 5
    withdrawn.unlink()
    now = look(str(run_dir), START + 60)
    [stage] = now.stages
    # those of the first attempt stand
    assert (stage.done, stage.errors, stage.gpus) == (65, 3, False)
    assert now.errors == {
        ("make_cams", "decode", "gpu-1"): 2,
        ("make_cams", "missing", "gpu-2"): 1,
    }
    assert now.avoided == ["gpu-2: sick"]
    # --retry-errors
    (run_dir / "make_cams-1a2b3c4d" / "errors" / "part-a.parquet").unlink()
    now = look(str(run_dir), START + 60)
    assert (now.stages[0].errors, now.errors.total()) == (0, 0)


def test_errors_of_a_run_whose_events_name_no_folder_are_counted(run_dir: Path) -> None:
    events = run_dir / "events" / "driver.jsonl"
    events.write_text(events.read_text().replace('"hash"', '"of_a_later_version"'))
    assert look(str(run_dir), START + 40).errors.total() == 0
    entry = {"stage": "make_cams", "hash": "1a2b3c4d", "folder": "make_cams-1a2b3c4d"}
    record = {"name": "night", "finished": None, "stages": [entry]}
    (run_dir / "run.json").write_text(json.dumps(record))
    write_errors(run_dir, "b", "decode@gpu-1").write_bytes(b"PAR1 damaged")
    assert look(str(run_dir), START + 40).errors.total() == 3


def test_before_ray_is_connected_nothing_is_paid_for(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"name": "night", "stages": []}))
    write(tmp_path, (0, "lease", {}))
    now = look(str(tmp_path), START + 1)
    assert (now.nodes, now.core_hours, now.gpu_hours) == (0, 0.0, 0.0)


def test_a_run_without_events_tells_no_age(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"name": "night", "stages": []}))
    assert lines(look(str(tmp_path)))[0] == "night: stopped, no event yet, 0 nodes"


def test_the_busy_share_is_of_the_first_pools_workers_that_are_there(run_dir: Path) -> None:
    name = "predict_masks-r1"
    start = {"images": 1000, "done": 0, "workers": 96, "cpus": 0.9, "gpus": 0.0}
    worked = chunk(name, 10, pool_seconds=300.0, producer_pool_seconds=20.0)
    write(
        run_dir,
        (100, "stage_start", {"stage": name, "producer_gpus": 1.0, **start}),
        (101, "chunk", worked),
    )
    beat(run_dir, 105)
    # a run of an older version does not tell how many GPUs there are
    assert look(str(run_dir), START + 110).stages[-1].busy is None
    write(
        run_dir,
        (100, "pools_resized", {"stage": name, "workers": [4, 96]}),
        (108, "chunk", worked),
        (110, "pools_resized", {"stage": name, "workers": [8, 96]}),
        (115, "chunk", worked),
    )
    beat(run_dir, 115)
    stage = look(str(run_dir), START + 120).stages[-1]
    assert stage.busy == pytest.approx(60 / (10 * 4 + 10 * 8))
    assert stage.gpus


def test_a_training_tells_its_steps(run_dir: Path) -> None:
    name = "train_segmenter-r0"
    write(
        run_dir,
        (60, "stage_end", {"stage": "make_cams"}),
        (61, "training_start", {"stage": name, "steps": 50, "batch_size": 4, "gpus": 0}),
        (
            70,
            "train_step",
            {"stage": name, "step": 10, "images_per_second": 8.0, "loader_wait": 0.25},
        ),
    )
    first, second = look(str(run_dir), START + 71).stages
    assert first.finished
    assert (second.done, second.total, second.rate) == (10, 50, 2.0)
    assert second.seconds_left == pytest.approx(20)
    assert second.busy == pytest.approx(0.75)
    assert not second.gpus


def test_the_command_ends_with_the_run(run_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # the driver of this run is long gone
    assert watch(str(run_dir), every=1000) == 0
    assert "night: stopped" in capfd.readouterr().err
    assert watch(str(run_dir / "nowhere"), once=True) == 1


def bucket_log(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> EventLog:
    """A log that writes as for a bucket."""
    monkeypatch.setattr(events, "FLUSH_SECONDS", 0.3)
    log = EventLog(str(run_dir), "driver")
    log._remote = True
    return log


def wait_for(run_dir: Path, count: int) -> None:
    deadline = time.monotonic() + 20
    while len(list(read_events(str(run_dir)))) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_events_reach_a_bucket_without_being_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = bucket_log(tmp_path, monkeypatch)
    log.write("first")
    wait_for(tmp_path, 1)
    for number in range(5):
        log.write("more", number=number)
    wait_for(tmp_path, 6)
    # the same object with more lines, not one for each half minute
    assert len(list((tmp_path / "events").iterdir())) == 1
    monkeypatch.setattr(events, "_OBJECT_BYTES", 10)
    log.write("large")
    log.flush()
    log.write("next")
    log.flush()
    assert len(list((tmp_path / "events").iterdir())) == 2
    assert [row["event"] for row in read_events(str(tmp_path))] == [
        "first",
        *["more"] * 5,
        "large",
        "next",
    ]


def test_a_bucket_that_fails_for_a_while_gets_all_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, whole, failures = bucket_log(tmp_path, monkeypatch), storage.write_bytes, []

    def failing(uri: str, data: bytes) -> None:
        if len(failures) < 2:
            failures.append(uri)
            raise CannotRunError("the store fails")
        whole(uri, data)

    monkeypatch.setattr(storage, "write_bytes", failing)
    log.write("first")
    wait_for(tmp_path, 1)
    assert len(failures) == 2


def test_curves_reach_a_bucket_while_it_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, int] = {}
    monkeypatch.setattr(events, "FLUSH_SECONDS", 0.0)
    monkeypatch.setattr(storage, "write_bytes", lambda uri, data: written.update({uri: len(data)}))
    board = Board("s3://bucket/run", "train_classifier", 0)
    board.add({"loss": 1.0}, 1)
    [(uri, first)] = written.items()
    assert uri.startswith("s3://bucket/run/tensorboard/train_classifier/events.out.")
    board.add({"loss": 0.5}, 2)
    assert written[uri] > first
    board.close()
    local = Board(str(tmp_path), "train_classifier", 0)
    local.add({"loss": 1.0}, 1)
    local.close()
    assert list((tmp_path / "tensorboard" / "train_classifier").iterdir())
