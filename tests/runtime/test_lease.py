"""One writer per run folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from pmm_ray.runtime import lease
from pmm_ray.runtime.errors import CannotRunError


def write_lease(run_dir: Path, **changes: object) -> None:
    me = psutil.Process()
    content = {
        "attempt": "other",
        "host": os.uname().nodename,
        "pid": me.pid,
        "process_started": me.create_time(),
        "started": "2026-01-01 00:00:00",
        "heartbeat": time.time(),
    }
    (run_dir / "lease.json").write_text(json.dumps(content | changes))


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


def test_a_reused_pid_is_another_process(tmp_path: Path) -> None:
    write_lease(tmp_path, process_started=1.0)
    with lease.hold(str(tmp_path), "b"):
        assert lease.holds(str(tmp_path), "b")


def test_a_holder_elsewhere_is_taken_over_when_its_heartbeat_is_old(tmp_path: Path) -> None:
    write_lease(tmp_path, host="elsewhere", heartbeat=time.time() - lease.STALE_SECONDS / 2)
    with pytest.raises(CannotRunError, match="on elsewhere"), lease.hold(str(tmp_path), "b"):
        pass
    write_lease(tmp_path, host="elsewhere", heartbeat=time.time() - lease.STALE_SECONDS - 1)
    with lease.hold(str(tmp_path), "b"):
        assert lease.holds(str(tmp_path), "b")


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
