"""Every fault is simulated; the machine that runs the tests is only asked once."""

from __future__ import annotations

import shutil
from collections import namedtuple
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from pmm_ray.commands.doctor import diagnose
from pmm_ray.runtime.cluster import doctor
from pmm_ray.runtime.cluster.doctor import Check

GIB = 1024**3
Usage = namedtuple("Usage", "total used free")


def break_import(monkeypatch: pytest.MonkeyPatch, name: str, error: Exception) -> None:
    real = doctor._import

    def fake(wanted: str) -> Any:
        if wanted == name:
            raise error
        return real(wanted)

    monkeypatch.setattr(doctor, "_import", fake)


def set_versions(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    def fake(name: str) -> str:
        if name not in versions:
            raise metadata.PackageNotFoundError(name)
        return versions[name]

    monkeypatch.setattr(doctor.metadata, "version", fake)


def set_disk(monkeypatch: pytest.MonkeyPatch, free: float) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(100 * GIB, 0, int(free)))


def fails(check: Check) -> bool:
    return check.fatal and not check.ok


def test_this_machine_can_run() -> None:
    checks = doctor.examine()
    assert [check for check in checks if fails(check)] == []
    assert len({check.name for check in checks}) == len(checks)
    assert all("\n" not in check.value + check.advice for check in checks)
    assert all(check.advice for check in checks if not check.ok)


def test_the_command_ends_as_others_do(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found = [Check("python", "3.10", False, "install a newer one", fatal=True), Check("ray", "2")]

    def interrupt() -> list[Check]:
        raise KeyboardInterrupt

    monkeypatch.setattr("pmm_ray.commands.doctor.examine", lambda: found)
    assert diagnose() == 1
    said = capfd.readouterr()
    assert "!!  python  3.10\n            -> install a newer one\nok  ray     2\n" in said.out
    assert said.err == "pmm: a run would fail here, see above: python\n"
    monkeypatch.setattr("pmm_ray.commands.doctor.examine", lambda: found[1:])
    assert diagnose() == 0
    monkeypatch.setattr("pmm_ray.commands.doctor.examine", interrupt)
    assert diagnose() == 130


def test_an_old_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.sys, "version_info", (3, 10, 4))
    assert fails(doctor.check_python())


def test_a_missing_library(monkeypatch: pytest.MonkeyPatch) -> None:
    set_versions(monkeypatch)
    check = doctor.check_library("numba", ("numba",))
    assert fails(check)
    assert check.value == "not installed"


def test_the_other_distribution_of_a_library_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    set_versions(monkeypatch, mmcv="2.2.0")
    check = doctor.check_library("mmcv", ("onedl-mmcv", "mmcv"))
    assert check == Check("mmcv", "2.2.0")


def test_a_torch_newer_than_tested_is_said_but_not_fatal(monkeypatch: pytest.MonkeyPatch) -> None:
    set_versions(monkeypatch, torch="2.99.0+cpu")
    check = doctor.check_library("torch", ("torch",))
    assert not check.ok
    assert not check.fatal
    assert "known to work: 2.13" in check.advice
    set_versions(monkeypatch, torch="2.13.1+cu130")
    assert doctor.check_library("torch", ("torch",)).ok


def test_opencv_5(monkeypatch: pytest.MonkeyPatch) -> None:
    set_versions(monkeypatch, **{"opencv-python": "5.0.0.93"})
    assert fails(doctor.check_library("opencv", ("opencv-python",)))


def test_missing_libgl(monkeypatch: pytest.MonkeyPatch) -> None:
    break_import(monkeypatch, "cv2", ImportError("libGL.so.1: cannot open shared object file"))
    check = doctor.check_opencv()
    assert fails(check)
    assert "libGL.so.1" in check.value
    assert "libgl1" in check.advice


def test_mmseg_that_asserts_on_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    error = AssertionError("MMCV==2.2.0 is used but incompatible.\nPlease install mmcv<2.2.0.")
    break_import(monkeypatch, "pmm_ray.nets.segmenter", error)
    check = doctor.check_mmseg()
    assert fails(check)
    assert check.value == "AssertionError: MMCV==2.2.0 is used but incompatible."


@pytest.mark.parametrize(
    ("broken", "fatal", "advice"),
    [
        (("lattice",), False, "masks.backend=pydensecrf"),
        (("lattice", "pydensecrf"), True, "pip install"),
        (("pydensecrf",), False, ""),
    ],
)
def test_crf_backends(
    monkeypatch: pytest.MonkeyPatch, broken: tuple[str, ...], fatal: bool, advice: str
) -> None:
    def solve(backend: str) -> float:
        if backend in broken:
            raise ModuleNotFoundError(f"No module named {backend!r}")
        return 0.1

    monkeypatch.setattr(doctor, "solve_small_crf", solve)
    lattice, pydensecrf = doctor.check_crf()
    assert fails(lattice) == fatal
    assert lattice.ok == ("lattice" not in broken)
    assert advice in lattice.advice
    assert pydensecrf.ok  # an optional extra
    assert ("pip install" in pydensecrf.advice) == ("pydensecrf" in broken)


def test_the_kernel_cache_has_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    from latticecrf.kernels import warm

    assert "kernels in" in doctor.check_crf_cache().value
    monkeypatch.setattr(warm, "cache_folder", lambda: None)
    check = doctor.check_crf_cache()
    assert not check.ok
    assert not check.fatal
    assert "LATTICECRF_CACHE_DIR" in check.advice


def test_a_numba_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    break_import(monkeypatch, "latticecrf.kernels.warm", OSError("libllvmlite.so"))
    assert not doctor.check_crf_cache().ok


def test_missing_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    break_import(monkeypatch, "pmm_ray.nets.weight_files", ImportError("no weights"))
    assert fails(doctor.check_weights())


@pytest.mark.parametrize(
    ("free", "ok", "fatal"), [(9, True, False), (2, False, False), (0.1, 0, 1)]
)
def test_disk(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, ok: bool, fatal: bool
) -> None:
    set_disk(monkeypatch, free * GIB)
    check = doctor.check_disk("disk", lambda: str(tmp_path))
    assert check.ok == bool(ok)
    assert fails(check) == bool(fatal)


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(doctor.os, "access", lambda *_: False)
    assert fails(doctor.check_disk("disk", lambda: str(tmp_path)))


def test_small_shared_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_disk(monkeypatch, 64 * 1024**2)
    check = doctor.check_shared_memory()
    assert not check.ok
    assert not check.fatal
    assert "--shm-size" in check.advice


def test_no_shared_memory_at_all(tmp_path: Path) -> None:
    assert doctor.check_shared_memory(tmp_path / "none").ok


@pytest.mark.parametrize(("available", "ok", "fatal"), [(8, 1, 0), (2, 0, 0), (0.5, 0, 1)])
def test_memory(monkeypatch: pytest.MonkeyPatch, available: float, ok: bool, fatal: bool) -> None:
    import psutil

    memory = namedtuple("Memory", "available total")(int(available * GIB), 16 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    check = doctor.check_memory()
    assert check.ok == bool(ok)
    assert fails(check) == bool(fatal)


def test_a_broken_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    break_import(monkeypatch, "torch", OSError("libcudart.so: cannot open shared object file"))
    assert fails(doctor.check_gpus())
