"""Compiled kernels on disk: where, shared by racing processes, damaged files, no place at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from latticecrf.kernels import cache
from latticecrf.kernels.warm import cache_status, warm_up

# Uses one small kernel, so that a cold cache costs a second and not the whole engine.
PROBE = """
import numpy as np
from latticecrf.mean_field.binary_updates import lower
from latticecrf.kernels.cache import cache_folder
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
    processes = [start(LATTICECRF_CACHE_DIR=str(tmp_path)) for _ in range(3)]
    hits = []
    for process in processes:
        output = finish(process)
        assert EXPECTED in output
        assert str(tmp_path) in output
        hits.append(output.split()[-1])
    # one compiled, the others waited for it
    assert sorted(hits) == ["0", "1", "1"]
    files = list(tmp_path.glob("*/mean_field.binary_updates.lower-*.kernel"))
    assert len(files) == 1
    assert not list(tmp_path.glob("*/*.tmp")) + list(tmp_path.glob("*/*.lock"))
    assert finish(start(LATTICECRF_CACHE_DIR=str(tmp_path))).endswith(" 1\n")

    files[0].write_bytes(files[0].read_bytes()[:-5])
    output = finish(start(LATTICECRF_CACHE_DIR=str(tmp_path)))
    assert EXPECTED in output
    assert output.endswith(" 0\n")
    assert finish(start(LATTICECRF_CACHE_DIR=str(tmp_path))).endswith(" 1\n")


def test_an_unusable_place_is_passed_over(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    output = finish(start(LATTICECRF_CACHE_DIR=str(blocked), XDG_CACHE_HOME=str(tmp_path / "xdg")))
    assert str(tmp_path / "xdg" / "latticecrf") in output
    nowhere = str(blocked)
    output = finish(start(LATTICECRF_CACHE_DIR=nowhere, XDG_CACHE_HOME=nowhere, TMPDIR=nowhere))
    assert EXPECTED in output


def test_a_folder_of_another_user_is_never_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATTICECRF_CACHE_DIR", str(tmp_path / "mine"))
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


# In a process of its own: other tests load kernels, too.
COMPLETE = """
import importlib, pkgutil
import numpy as np
import latticecrf as crf
from latticecrf.kernels.cache import KERNEL_ROOMS
from latticecrf.kernels.warm import warm_up

def loaded():
    modules = [importlib.import_module(m.name)
               for room in KERNEL_ROOMS
               for path in [importlib.import_module("latticecrf." + room).__path__]
               for m in pkgutil.iter_modules(path, f"latticecrf.{room}.")]
    return {(m.__name__, name, str(signature))
            for m in modules for name, kernel in vars(m).items()
            for signature in getattr(kernel, "overloads", ())}

warm_up()
before = loaded()
noise = np.random.default_rng(0).integers(0, 256, (160, 170, 3), dtype=np.uint8)
scores = np.random.default_rng(1).random((40, 160, 170), np.float32)
for parameters in (crf.CrfParameters.ppmg(), crf.CrfParameters.segmentation()):
    for image in (noise, noise // 64):
        solver = crf.DenseCrf(image, parameters)
        for count in (1, 2, 3, 4, 5, 8, 12):
            solver.binary(scores[:count], scores[:count])
        for count in (1, 2, 3, 5, 9, 16, 20, 21, 24, 40):
            solver.joint(scores[:count])
print(len(before), sorted(loaded() - before))
"""


def test_a_warm_process_lacks_no_kernel_whatever_it_is_asked() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", COMPLETE], capture_output=True, text=True, check=True
    ).stdout
    count, missing = answer.split(" ", 1)
    assert int(count) > 50
    assert missing.strip() == "[]"
