"""One writer per run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from pmm_ray.runtime.core import lease
from pmm_ray.runtime.core.errors import CannotRunError


def write_lease(run_dir: Path, **changes: object) -> None:
    me = psutil.Process()
    content = {
        "attempt": "other",
        "host": os.uname().nodename,
        "machine": lease._machine(),
        "pid": me.pid,
        "process_started": me.create_time(),
        "started": "2026-01-01 00:00:00",
        "heartbeat": time.time(),
    }
    (run_dir / "lease.json").write_text(json.dumps(content | changes))


def written_ago(run_dir: Path, seconds: float) -> None:
    when = time.time() - seconds
    os.utime(run_dir / "lease.json", (when, when))


def test_a_living_process_keeps_others_out(tmp_path: Path) -> None:
    with (
        lease.hold(str(tmp_path), "a"),
        pytest.raises(CannotRunError, match=f"in use by process {os.getpid()}"),
        lease.hold(str(tmp_path), "b"),
    ):
        pass


def test_a_dead_process_on_this_host_is_taken_over_at_once(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    write_lease(tmp_path, pid=dead.pid)
    with lease.hold(str(tmp_path), "b"):
        assert lease.holds(str(tmp_path), "b")


def test_another_machine_of_the_same_name_is_not_asked_for_its_process(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", "pass"])
    dead.wait()
    write_lease(tmp_path, pid=dead.pid, machine="another, also called this")
    with pytest.raises(CannotRunError, match="in use by"), lease.hold(str(tmp_path), "b"):
        pass


def test_a_reused_pid_is_another_process(tmp_path: Path) -> None:
    write_lease(tmp_path, process_started=1.0)
    with lease.hold(str(tmp_path), "b"):
        assert lease.holds(str(tmp_path), "b")


def test_a_holder_elsewhere_is_taken_over_when_its_heartbeat_is_old(tmp_path: Path) -> None:
    write_lease(tmp_path, host="elsewhere", machine="elsewhere")
    written_ago(tmp_path, lease.STALE_SECONDS / 2)
    with pytest.raises(CannotRunError, match="on elsewhere"), lease.hold(str(tmp_path), "b"):
        pass
    written_ago(tmp_path, lease.STALE_SECONDS + 1)
    with lease.hold(str(tmp_path), "b"):
        assert lease.holds(str(tmp_path), "b")
    assert not list(tmp_path.glob(".lease-*"))


@pytest.mark.parametrize("ahead", [-120.0, 120.0])
def test_the_clocks_of_two_hosts_may_differ(tmp_path: Path, ahead: float) -> None:
    """What counts is when the lease was written, not what its writer's clock said."""
    write_lease(tmp_path, host="elsewhere", machine="elsewhere", heartbeat=time.time() + ahead)
    with pytest.raises(CannotRunError, match="on elsewhere"), lease.hold(str(tmp_path), "b"):
        pass
    written_ago(tmp_path, lease.STALE_SECONDS + 1)
    with lease.hold(str(tmp_path), "b"):
        assert lease.holds(str(tmp_path), "b")


@pytest.mark.parametrize("ahead", [-120.0, 120.0])
def test_a_reader_with_another_clock_looks_twice(
    tmp_path: Path, ahead: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    monkeypatch.setattr(lease, "_SECOND_LOOK_SECONDS", 2.0)
    with lease.hold(str(tmp_path), "a"):
        found = lease.read_lease(str(tmp_path))
        assert found is not None
        assert lease.beats(str(tmp_path), found, time.time() + ahead)
    (tmp_path / "lease.json").write_text(json.dumps(found))
    assert not lease.beats(str(tmp_path), found, time.time() + ahead)


def test_a_torn_lease_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "lease.json").write_text('{"attempt": "a')
    with lease.hold(str(tmp_path), "b"):
        assert lease.holds(str(tmp_path), "b")


def test_the_heartbeat_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.02)
    with lease.hold(str(tmp_path), "a"):
        first = lease.read_lease(str(tmp_path))
        deadline = time.monotonic() + 10
        while lease.read_lease(str(tmp_path)) == first:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_lease_that_is_badly_read_once_is_not_lost(tmp_path: Path) -> None:
    with lease.hold(str(tmp_path), "a"):
        written = (tmp_path / "lease.json").read_text()
        (tmp_path / "lease.json").write_text(written[:10])
        later = threading.Timer(0.3, (tmp_path / "lease.json").write_text, (written,))
        later.start()
        assert lease.holds(str(tmp_path), "a")
        later.join()


def test_a_lease_that_is_gone_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.01)
    with lease.hold(str(tmp_path), "a"):
        (tmp_path / "lease.json").unlink()
        assert not lease.holds(str(tmp_path), "a")


RACER = """
import sys, time
from pmm_ray.runtime.core import lease
from pmm_ray.runtime.core.errors import CannotRunError
print("ready", flush=True)
sys.stdin.readline()
try:
    with lease.hold(sys.argv[1], sys.argv[2]):
        print("holds", flush=True)
        sys.stdin.readline()
except CannotRunError as error:
    print(f"refused {error}", flush=True)
"""


def test_of_processes_that_start_in_the_same_instant_one_holds(tmp_path: Path) -> None:
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(tmp_path / "run"), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )
        for name in "abcd"
    ]
    try:
        pipes = [(racer.stdin, racer.stdout) for racer in racers]
        assert all(out is not None and out.readline() == "ready\n" for _, out in pipes)
        for pipe, _ in pipes:
            assert pipe is not None
            pipe.write("go\n")
        said = [out.readline() for _, out in pipes if out is not None]
        [winner] = [n for n, line in enumerate(said) if line == "holds\n"]
        others = [line for n, line in enumerate(said) if n != winner]
        assert all(f"in use by process {racers[winner].pid} " in line for line in others)
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
            for pipe in (racer.stdin, racer.stdout):
                assert pipe is not None
                pipe.close()


def test_a_process_that_was_taken_over_does_not_take_the_folder_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.02)
    with lease.hold(str(tmp_path), "slept"):
        deadline = time.monotonic() + 10
        while any(thread.name == "lease" for thread in threading.enumerate()):
            assert time.monotonic() < deadline
            write_lease(tmp_path, attempt="awake", host="elsewhere", machine="elsewhere")
            time.sleep(0.02)
        taken = lease.read_lease(str(tmp_path))
        assert taken is not None
        assert taken["attempt"] == "awake"
        assert not lease.holds(str(tmp_path), "slept")
    assert lease.read_lease(str(tmp_path)) == taken
