"""What another attempt may mend has an exit code of its own, wherever it is found out."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from pmm_ray.config import ConfigError, load_recipe
from pmm_ray.runtime.core import lease, storage, tables
from pmm_ray.runtime.core.errors import (
    BudgetExceededError,
    CannotRunError,
    MayPassError,
    cannot_run,
)
from pmm_ray.runtime.core.guard import guarded
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.resources import ClusterResources
from pmm_ray.runtime.mapping.tasks import reason

FULL = OSError(errno.ENOSPC, "No space left on device", "part-1")
BROKEN = OSError(errno.EIO, "Input/output error", "part-1")
THROTTLED = OSError("AWS Error SLOW_DOWN during GetObject")
DENIED = OSError("AWS Error ACCESS_DENIED during HeadObject")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("masks.alpha is no number"), 1),
        (CannotRunError("no stage is called 'x'"), 1),
        (PermissionError(errno.EACCES, "Permission denied", "runs"), 1),
        (OSError(errno.EROFS, "Read-only file system", "runs"), 1),
        (BudgetExceededError("make_masks", 11, 10, []), 3),
        (MayPassError("no node came"), 75),
        (FULL, 75),
        (BROKEN, 75),
        (THROTTLED, 75),
        (DENIED, 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_end_has_its_code(error: BaseException, code: int) -> None:
    def body(progress: Progress) -> None:
        raise error

    assert guarded(body) == code


def test_a_recipe_on_a_disk_that_fails_may_be_read_later(capfd: pytest.CaptureFixture[str]) -> None:
    # Linux gives EIO for the page that no process has
    assert guarded(lambda progress: load_recipe("/proc/self/mem")) == 75
    assert "cannot read the recipe /proc/self/mem: Input/output error" in capfd.readouterr().err
    assert guarded(lambda progress: load_recipe("/no/recipe.yaml")) == 1


GUARDED = """import sys, time
from rich.table import Table
from pmm_ray.report.console import plain_console, print_whole
from pmm_ray.runtime.core.errors import CannotRunError, MayPassError
from pmm_ray.runtime.core.guard import guarded

def body(progress):
    {body}

sys.exit(guarded(body))
"""
IN_A_STAGE = """progress.heartbeat_seconds = 0.01
    with progress.stage("make_cams", 1):
        time.sleep(0.2)"""


@pytest.mark.parametrize(
    ("output", "body", "code"),
    [
        ("stdout", "print('a', flush=True)", 141),
        ("stdout", "print('a')", 141),
        ("stdout", "print_whole(Table('stage'), plain_console())", 141),
        ("stderr", "progress.message('a')", 141),
        ("stderr", IN_A_STAGE, 141),
        # a failure keeps its own
        ("stderr", "raise MayPassError('no node came')", 75),
        ("stdout", "print('a'); raise CannotRunError('no stage')", 1),
    ],
)
def test_what_nobody_reads_ends_quietly(output: str, body: str, code: int) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-c", GUARDED.format(body=body)]
    outputs = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, output: writing}
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, check=False, env=buffered, **outputs)
    os.close(writing)
    assert done.returncode == code
    assert (done.stdout or b"") == b""
    assert (done.stderr or b"") == (b"pmm: no stage\n" if code == 1 else b"")


def test_a_pipe_that_is_not_the_output_is_no_reader_s_end() -> None:
    def body(progress: Progress) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    assert guarded(body) == 75


def test_a_working_folder_that_was_deleted_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert guarded(lambda progress: progress.message(str(Path("runs").absolute()))) == 1
    assert "pmm: the working folder was deleted: change to another" in capfd.readouterr().err


def test_a_full_disk_without_a_name_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    def body(progress: Progress) -> None:
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(b"a")

    assert guarded(body) == 75
    assert "pmm: the disk is full. Free some space" in capfd.readouterr().err


def test_names_in_letters_that_the_console_lacks_are_said(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text("image_id,labels\na,кот\n", encoding="utf-8")
    plain = ("LC_ALL=C", "PYTHONUTF8=0", "PYTHONCOERCECLOCALE=0")
    pmm = ["env", *plain, sys.executable, "-m", "pmm_ray.cli"]
    made = [*pmm, "data", "import", "folder", str(tmp_path), "--out", str(tmp_path / "out")]
    done = subprocess.run(made, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert rb"\u043a\u043e\u0442" in done.stdout
    done = subprocess.run([*pmm, "report", "/кот"], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(rb"pmm: /")
    assert b"Traceback" not in done.stderr


@pytest.mark.parametrize("reach", [storage.exists, storage.read_bytes, tables.read_table])
def test_a_name_that_is_not_utf_8_is_said(
    reach: Callable[[str], object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    name = os.fsdecode(bytes(tmp_path) + b"/\xe9")
    assert guarded(lambda progress: void(reach(name))) == 1
    assert rf"{tmp_path}/\xe9: a name that is not UTF-8: rename it" in capfd.readouterr().err


@pytest.mark.parametrize("reach", [storage.exists, storage.make_folder, tables.read_table])
def test_a_name_that_is_too_long_is_said(
    reach: Callable[[str], object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    long = str(tmp_path / ("x" * 300))
    assert guarded(lambda progress: void(reach(long))) == 1
    said = capfd.readouterr().err
    assert f"{long}: File name too long: choose another place" in said


def void(made: object) -> None:
    """Takes what a body of `guarded` does not give back."""


def told(error: Exception) -> CannotRunError:
    """What the driver raises of an error of a task."""
    why = reason(error)
    return cannot_run(why["failure"], why["may_pass"])


@pytest.mark.parametrize("error", [FULL, BROKEN, THROTTLED, DENIED, MayPassError("no node came")])
def test_what_may_pass_in_a_task_may_pass_in_the_driver(error: Exception) -> None:
    assert isinstance(told(error), MayPassError)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("weights"),
        PermissionError(errno.EACCES, "Permission denied", "part-1"),
        CannotRunError("another run took over"),
        CannotRunError("a class is called 'the store fails'"),
    ],
)
def test_what_another_attempt_would_not_mend_stays_so(error: Exception) -> None:
    assert not isinstance(told(error), MayPassError)
    assert str(error) in str(told(error))


def test_a_bucket_that_no_task_can_reach_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(uri: str) -> None:
        raise OSError("When resolving region for bucket 'photos': curlCode: 28")

    monkeypatch.setattr(
        storage, "pafs", SimpleNamespace(FileSystem=SimpleNamespace(from_uri=fails))
    )
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    storage._filesystem.cache_clear()
    with pytest.raises(MayPassError, match="cannot reach s3://photos") as unreachable:
        storage.read_bytes("s3://photos/a.jpg")
    assert isinstance(told(unreachable.value), MayPassError)


def test_a_dead_jobs_hold_passes_and_a_cluster_that_is_too_small_does_not(tmp_path: Path) -> None:
    with lease.hold(str(tmp_path), "a"), pytest.raises(MayPassError, match="is in use by"):
        lease.hold(str(tmp_path), "b").__enter__()
    with pytest.raises(CannotRunError) as error:
        ClusterResources(4, 0, 1, True).require("training", cpus=8)
    assert not isinstance(error.value, MayPassError)
