"""Compiled kernels on disk: where, shared by racing processes, damaged files, no place at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pmm_ray.method.crf import cache
from pmm_ray.method.crf.warm import cache_status, warm_up

# Uses one small kernel, so that a cold cache costs a second and not the whole engine.
PROBE = """
import numpy as np
from pmm_ray.method.crf.updates import lower
from pmm_ray.method.crf.cache import cache_folder
rows = np.arange(8, dtype=np.float32)
lower(rows, 2, np.ones(4, np.float32))
print(cache_folder(), rows.tolist(), sum(lower.stats.cache_hits.values()))
"""
EXPECTED = "[-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]"


def start(**environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", PROBE],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output


def test_processes_that_start_together_share_one_cache(tmp_path: Path) -> None:
    processes = [start(PMM_CACHE_DIR=str(tmp_path)) for _ in range(3)]
    for process in processes:
        output = finish(process)
        assert EXPECTED in output
        assert str(tmp_path) in output
    files = list(tmp_path.glob("*/updates.lower-*.kernel"))
    assert len(files) == 1
    assert not list(tmp_path.glob("*/*.tmp"))
    assert finish(start(PMM_CACHE_DIR=str(tmp_path))).endswith(" 1\n")

    files[0].write_bytes(files[0].read_bytes()[:-5])
    output = finish(start(PMM_CACHE_DIR=str(tmp_path)))
    assert EXPECTED in output
    assert output.endswith(" 0\n")
    assert finish(start(PMM_CACHE_DIR=str(tmp_path))).endswith(" 1\n")


def test_an_unusable_place_is_passed_over(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    output = finish(start(PMM_CACHE_DIR=str(blocked), XDG_CACHE_HOME=str(tmp_path / "xdg")))
    assert str(tmp_path / "xdg" / "pmm-ray") in output
    nowhere = str(blocked)
    output = finish(start(PMM_CACHE_DIR=nowhere, XDG_CACHE_HOME=nowhere, TMPDIR=nowhere))
    assert EXPECTED in output


def test_a_folder_of_another_user_is_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PMM_CACHE_DIR", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert cache.cache_folder.__wrapped__() is None


def test_warm_up_completes_and_is_reported() -> None:
    assert warm_up() > 0.0
    status = cache_status()
    if status.folder is not None:
        assert status.warm
        assert status.kernels > 0
        assert status.size > 0
