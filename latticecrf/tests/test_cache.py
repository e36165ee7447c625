"""Compiled kernels on disk: where, shared by racing processes, damaged files, no place at all."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from latticecrf.kernels import cache, warm
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


def start(code: str = PROBE, warnings: str = "error", **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", warnings, "-c", code],
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


@pytest.fixture
def no_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Neither a chosen folder nor a home; the folder for temporary files."""
    monkeypatch.delenv("LATTICECRF_CACHE_DIR", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_user_without_a_home_has_a_cache(no_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    private = no_place / f"latticecrf-{os.getuid()}"
    assert cache.cache_folder.__wrapped__().parent == private
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/absent")
    assert cache.cache_folder.__wrapped__() is None
    monkeypatch.setenv("LATTICECRF_CACHE_DIR", str(no_place / "chosen"))
    assert cache.cache_folder.__wrapped__().parent == no_place / "chosen"


def test_a_temporary_folder_into_which_others_write_is_not_used(
    no_place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    private = no_place / f"latticecrf-{os.getuid()}"
    private.mkdir()
    for mode, used in ((0o777, False), (0o770, False), (0o755, True)):
        private.chmod(mode)
        assert (cache.cache_folder.__wrapped__() is not None) == used
    private.rename(no_place / "elsewhere")
    private.symlink_to(no_place / "elsewhere")
    assert cache.cache_folder.__wrapped__() is None


# A disk that is only read, also for root.
READ_ONLY = """
import errno, os, tempfile
def refuse(*_, **__):
    raise OSError(errno.EROFS, "Read-only file system", "/a/name/" + os.urandom(4).hex())
os.access = lambda *_: False
tempfile.NamedTemporaryFile = refuse
"""


def test_a_cache_on_a_disk_that_is_only_read_is_used(tmp_path: Path) -> None:
    chosen = {"LATTICECRF_CACHE_DIR": str(tmp_path / "baked"), "XDG_CACHE_HOME": "/dev/null"}
    finish(start(**chosen))
    output = finish(start(READ_ONLY + PROBE, **chosen))
    assert str(tmp_path / "baked") in output
    assert output.endswith(" 1\n")
    # Two more kernels, one warning.
    more = "lower(rows[::2], 1, rows[:2])\nlower(rows, 2, rows[::2])\n"
    process = start(READ_ONLY + PROBE + more, warnings="always", **chosen)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    assert errors.count("cannot be kept in") == 1
    assert "Read-only file system" in errors


def test_a_file_that_cannot_be_saved_leaves_nothing(tmp_path: Path) -> None:
    limit = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
    process = start(limit + PROBE, warnings="always", LATTICECRF_CACHE_DIR=str(tmp_path))
    output, errors = process.communicate()
    assert EXPECTED in output, errors
    assert "File too large" in errors
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_warming_up_needs_neither_locks_nor_a_file_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")

    touched = []
    monkeypatch.setattr(warm, "_touch_all", lambda: touched.append(1))
    monkeypatch.setattr(warm, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(fcntl, "flock", refuse)
    warm.warm_up()
    assert warm.cache_status().warm
    monkeypatch.setattr(warm, "cache_folder", lambda: tmp_path / "absent")
    warm.warm_up()
    assert len(touched) == 2


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
from latticecrf.pydensecrf.densecrf import DenseCRF2D

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
for count in (17, 21, 25, 33):  # one is implied; some are frozen after the first iteration
    solver = crf.DenseCrf(noise[:20, :30], crf.CrfParameters(2, 3.0, 3.0, 80.0, 13.0, 4.0))
    for frozen in (1, count // 2, count - 2):
        mixed = np.full((count, 20, 30), 1 / count, np.float32)
        mixed[-frozen:] = 5e-4
        solver.joint(mixed)
for image in (noise, noise[:20, :30]):
    for count in (1, 2, 3, 5, 9, 17, 21):
        drop_in = DenseCRF2D(image.shape[1], image.shape[0], count)
        drop_in.addPairwiseGaussian(3, 3, normalization=1)
        drop_in.addPairwiseBilateral(80, 13, image, np.full(count, -4))
        drop_in.inference(2)
        posterior = drop_in.startInference()[0]
        drop_in.stepInference(posterior, None, None)
        drop_in.klDivergence(posterior)
print(len(before), sorted(loaded() - before))
"""


def test_a_warm_process_lacks_no_kernel_whatever_it_is_asked() -> None:
    answer = subprocess.run(
        [sys.executable, "-c", COMPLETE], capture_output=True, text=True, check=True
    ).stdout
    count, missing = answer.split(" ", 1)
    assert int(count) > 50
    assert missing.strip() == "[]"
