"""What `faults.py` breaks and measures: a small recipe, run undisturbed once and then again."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.errors import ErrorRow
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.index import read_all

IMAGES = 24
# Many iterations make a mask of these small images take about as long as one of a photograph.
RECIPE = f"""
name: faults
data: {{source: shapes, images: {IMAGES}, classes: 3, size: 64}}
classifier: {{epochs: 12, batch_size: 6, resize_long: [48, 72], crop_size: 48, output_stride: 16}}
cams: {{scales: [1.0], flip: false}}
masks: {{alpha: 2, tasks: 2, batch_size: 1, crf: {{iterations: 4000}}}}
evaluate: {{ladder: []}}
runtime: {{object_store_bytes: 150000000}}
"""
WAIT_SECONDS = 900
Command = subprocess.Popen[str]

# Python runs a `sitecustomize` that it finds on its path before anything else. This one lets a
# worker process of a real run come to grief, with no hook in the product: at one image, or at
# all images of a node (`sick`), where another takes its time (`slow`).
HOOK = """
import ctypes, os, sys, time

action = os.environ.get("FAULT_ACTION")
if action and any(argument.endswith("default_worker.py") for argument in sys.orig_argv):
    from pmm_ray.runtime.mapping import workers

    def sick():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    accidents = {
        "segfault": lambda: ctypes.string_at(0),
        "hang": lambda: time.sleep(10**6),
        "sick": sick,
        "slow": lambda: time.sleep(2),
    }
    inner = workers.row_by_row

    def row_by_row(stage, function):
        def broken(row):
            at_image = row["manifest"]["image_id"] == os.environ.get("FAULT_IMAGE")
            if stage == "make_masks" and (at_image or action in ("sick", "slow")):
                open(os.environ["FAULT_MARK"], "a").close()
                accidents[action]()
            return function(row)

        return inner(stage, broken)

    workers.row_by_row = row_by_row
"""


@dataclass
class Run:
    """A run folder and the commands that were started in it."""

    recipe: Path
    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    address: str = "local"
    settings: tuple[str, ...] = ()

    def start(self) -> Command:
        command = [sys.executable, "-m", "pmm_ray.cli", "run", str(self.recipe)]
        command += ["--run-dir", str(self.folder), "--until", "make_masks"]
        command += ["--address", self.address]
        for setting in self.settings:
            command += ["--set", setting]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | dict(self.environment)
        return subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def finish(self) -> str:
        """Run the command to its end; returns what it printed."""
        return self.wait(self.start())

    def wait(self, process: Command, code: int = 0) -> str:
        """What a command printed; it must end by itself, and with this code."""
        try:
            _, printed = process.communicate(timeout=WAIT_SECONDS)
        finally:
            end(process)
        if process.returncode != code:
            raise AssertionError(f"exit code {process.returncode}, not {code}:\n{printed}")
        return printed

    @property
    def parts(self) -> dict[str, int]:
        """Committed parts of the masks table and when each was written, ns."""
        found = {}
        for part in self.folder.glob("make_masks-*/part-*.parquet"):
            with contextlib.suppress(FileNotFoundError):
                found[part.name] = part.stat().st_mtime_ns
        return found

    def wait_for_parts(self, process: Command, count: int) -> dict[str, int]:
        """Wait until so many parts are committed."""
        deadline = time.monotonic() + WAIT_SECONDS
        while len(self.parts) < count:
            if process.poll() is not None:
                raise AssertionError(f"it ended too early: {process.communicate()[1]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no {count} parts within {WAIT_SECONDS} s")
            time.sleep(0.02)
        return self.parts

    def steps(self) -> list[tuple[int, float]]:
        """Steps of the classifier's training, and when each was done, seconds."""
        events = read_events(str(self.folder), "train_step")
        return [(event["step"], event["time"]) for event in events]

    def wait_for_step(self, process: Command, step: int) -> None:
        """Wait until the training has done so many steps."""
        deadline = time.monotonic() + WAIT_SECONDS
        while not any(done >= step for done, _ in self.steps()):
            if process.poll() is not None:
                raise AssertionError(f"it ended too early: {process.communicate()[1]}")
            if time.monotonic() > deadline:
                raise AssertionError(f"no step {step} within {WAIT_SECONDS} s")
            time.sleep(0.05)

    @property
    def masks_folder(self) -> Path:
        [found] = self.folder.glob("make_masks-*")
        return found

    def rows(self) -> list[dict[str, Any]]:
        """The rows of the masks table by image id, read through its index."""
        rows = read_all(str(self.masks_folder)).to_pylist()
        return sorted(rows, key=lambda row: str(row["image_id"]))

    def errors(self) -> list[ErrorRow]:
        return tables.read_errors(str(self.masks_folder / "errors"))


@dataclass(frozen=True)
class Outcome:
    """What a fault did."""

    fault: str
    lost: str
    """In words; the finished images that were computed again are counted, see `again`."""
    by_itself: bool
    """Whether the run went on without another command."""
    again: int
    """Finished images that were computed again."""
    recovery_seconds: float
    """Of a run that goes on by itself, the longest time without a finished image from the fault
    on; else from the start of the next command to its first finished image."""
    same_table: bool
    message: str = ""


class Bench:
    """An undisturbed run, and copies of it from before its masks.

    Args:
        folder: of all runs.
        opened: closes what faults share when the bench is not used any more.
    """

    def __init__(self, folder: Path, opened: contextlib.ExitStack) -> None:
        self.folder, self.opened = folder, opened
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(RECIPE)
        self.whole = Run(self.recipe, folder / "whole")
        self.whole.finish()
        self.expected = self.whole.rows()
        self._count = 0
        self.site: Any = None
        """Hosts of the link faults, once they are open."""

    def fresh(
        self, folder: Path | None = None, *, cams: bool = True, classifier: bool = True
    ) -> Run:
        """A run that has the same classifier and the same CAMs if wanted, and no mask yet."""
        self._count += 1
        folder = folder or self.folder / f"run-{self._count}"
        skip = ["make_masks*", "evaluate-*", "logs"]
        skip += () if cams and classifier else ("make_cams*",)
        skip += () if classifier else ("train_classifier*",)
        shutil.copytree(
            self.whole.folder, folder, ignore=shutil.ignore_patterns(*skip), dirs_exist_ok=True
        )
        return Run(self.recipe, folder)

    def outcome(
        self,
        run: Run,
        fault: str,
        lost: str,
        before: Mapping[str, int],
        since_ns: int,
        by_itself: bool,
        message: str = "",
        without: str = "",
        until_ns: int | None = None,
    ) -> Outcome:
        """Compare the finished run with the undisturbed one, row for row.

        Args:
            run: the one that was disturbed.
            fault: what happened.
            lost: what it cost, in words.
            before: parts that were finished when it happened.
            since_ns: when it happened, or when the next command was started.
            by_itself: whether the run went on without another command.
            message: what the command said.
            without: the image that has an error row instead.
            until_ns: when all was well again; None: see `Outcome.recovery_seconds`.
        """
        after, rows = run.parts, run.rows()
        later = sorted(t for name, t in after.items() if name not in before and t > since_ns)
        if until_ns is not None:
            recovery_ns = until_ns - since_ns
        elif by_itself:
            recovery_ns = max(b - a for a, b in pairwise([since_ns, *later]))
        else:
            recovery_ns = later[0] - since_ns
        on_disk = sorted(
            (row for part in sorted(run.masks_folder.glob("part-*")) for row in _read(part)),
            key=lambda row: str(row["image_id"]),
        )
        expected = [row for row in self.expected if row["image_id"] != without]
        return Outcome(
            fault=fault,
            lost=lost,
            by_itself=by_itself,
            again=sum(after.get(name) != when for name, when in before.items()),
            recovery_seconds=recovery_ns / 1e9,
            same_table=rows == expected and on_disk == expected,
            message=message,
        )

    @contextlib.contextmanager
    def accident(self, run: Run, action: str, image_id: str) -> Iterator[Path]:
        """Worker processes of the run come to grief at one image (see `HOOK`).

        Yields the file that is made when it happens first.
        """
        mark = self.folder / f"accident-{self._count}"
        with hooked(self.folder) as environment:
            own = {"FAULT_ACTION": action, "FAULT_IMAGE": image_id, "FAULT_MARK": str(mark)}
            run.environment = environment | own
            yield mark
            run.environment = {}


@contextlib.contextmanager
def hooked(place: Path) -> Iterator[dict[str, str]]:
    """An environment whose Ray workers have `HOOK`, in a folder below `place`."""
    with tempfile.TemporaryDirectory(dir=place) as folder:
        (Path(folder) / "sitecustomize.py").write_text(HOOK)
        path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH"))))
        yield {"PYTHONPATH": path}


def _read(part: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = tables.read_table(str(part)).to_pylist()
    return rows


def end(process: Command) -> None:
    """Kill a command that did not end, with all that it started."""
    if process.poll() is None:
        for one in (*family(process), process):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def family(process: Command) -> list[psutil.Process]:
    """Everything a command started."""
    return psutil.Process(process.pid).children(recursive=True)


def title(process: psutil.Process) -> str:
    """The first word of a command line; Ray's workers write what they do there."""
    try:
        return (process.cmdline() or [""])[0]
    except psutil.NoSuchProcess:
        return ""


def can_mount() -> bool:
    """Whether this process may mount a small file system, which the full disk needs."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


@contextlib.contextmanager
def small_disk(mount: Path, size: int) -> Iterator[None]:
    """A file system of `size` bytes in memory."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mount], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


def as_table(outcomes: list[Outcome]) -> str:
    """The outcomes in Markdown."""
    lines = [
        "| fault | what is lost | finished images made again | goes on | time to recover"
        " | same table |",
        "|---|---|---|---|---|---|",
    ]
    for o in outcomes:
        how = "by itself" if o.by_itself else "with the same command"
        same = "yes" if o.same_table else "**NO**"
        lines.append(
            f"| {o.fault} | {o.lost} | {o.again} | {how} | {o.recovery_seconds:.0f} s | {same} |"
        )
    return "\n".join(lines)


def commit() -> str:
    """The commit of this checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def machine() -> str:
    """What this ran on, in words."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    load = os.getloadavg()[2]
    name = names[0] if names else platform.machine()
    return f"{psutil.cpu_count()} cores ({name}), load over 15 minutes {load:.0f}"
