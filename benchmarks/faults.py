"""Break a run of make_masks in every way we know, and print what it cost.

    python benchmarks/faults.py [--only NAME]... [--write docs/reference/reliability.md]

Every fault hits real processes of a real `pmm run`. The masks table that remains is compared, by a
hash over its sorted rows, with that of a run nobody disturbed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from pmm_ray.runtime import tables
from pmm_ray.runtime.index import read_all

IMAGES = 24
# Many iterations make a mask of these small images take about as long as one of a photograph.
RECIPE = f"""
name: faults
data: {{source: shapes, images: {IMAGES}, classes: 3, size: 64}}
classifier: {{epochs: 2, batch_size: 6, resize_long: [48, 72], crop_size: 48, output_stride: 16}}
cams: {{scales: [1.0], flip: false}}
masks: {{alpha: 2, batch_size: 1, crf: {{iterations: 4000}}}}
evaluate: {{ladder: []}}
runtime: {{object_store_bytes: 150000000}}
"""
WAIT_SECONDS = 600
Command = subprocess.Popen[str]


@dataclass
class Run:
    """A run folder and the commands that were started in it."""

    recipe: Path
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    address: str = "local"

    def start(self) -> Command:
        command = [sys.executable, "-m", "pmm_ray.cli", "run", str(self.recipe)]
        command += ["--run-dir", str(self.folder), "--until", "make_masks"]
        command += ["--address", self.address]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | self.environment
        return subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )

    def finish(self) -> None:
        """Run the command to its end."""
        self.wait(self.start())

    def wait(self, process: Command, code: int = 0) -> str:
        """What a command printed; it must end by itself, and with this code."""
        _, printed = process.communicate(timeout=WAIT_SECONDS)
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

    @property
    def masks_folder(self) -> Path:
        [found] = self.folder.glob("make_masks-*")
        return found

    def table(self) -> str:
        """Hash over the sorted rows of the masks table."""
        return tables.content_hash(read_all(str(self.masks_folder)))


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
    """From the fault (or, where it takes one, the next command) to the next finished image."""
    same_table: bool
    message: str = ""


class Bench:
    """An undisturbed run, and copies of it from before its masks."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.recipe = folder / "recipe.yaml"
        self.recipe.write_text(RECIPE)
        self.whole = Run(self.recipe, folder / "whole")
        self.whole.finish()
        self.expected = self.whole.table()
        self._count = 0

    def fresh(self, folder: Path | None = None) -> Run:
        """A run that has the same CAMs and no mask yet."""
        self._count += 1
        folder = folder or self.folder / f"run-{self._count}"
        skip = shutil.ignore_patterns("make_masks*", "evaluate-*", "logs")
        shutil.copytree(self.whole.folder, folder, ignore=skip, dirs_exist_ok=True)
        return Run(self.recipe, folder)

    def outcome(
        self,
        run: Run,
        fault: str,
        lost: str,
        before: dict[str, int],
        since_ns: int,
        by_itself: bool,
        message: str = "",
    ) -> Outcome:
        """Compare the finished run with the undisturbed one."""
        after = run.parts
        later = [when for name, when in after.items() if name not in before and when > since_ns]
        return Outcome(
            fault=fault,
            lost=lost,
            by_itself=by_itself,
            again=sum(after.get(name) != when for name, when in before.items()),
            recovery_seconds=(min(later) - since_ns) / 1e9 if later else float("nan"),
            same_table=run.table() == self.expected,
            message=message,
        )

    def driver_ends(self, fault: str, how: signal.Signals, code: int, text: str) -> Outcome:
        """The driver gets a signal; the same command goes on."""
        run = self.fresh()
        process = run.start()
        run.wait_for_parts(process, 6)
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(how)
        printed = run.wait(process, code)
        if text not in printed:
            raise AssertionError(f"it did not say {text!r}: {printed}")
        psutil.wait_procs(family, timeout=60)
        before = run.parts
        since = time.time_ns()
        run.finish()
        return self.outcome(run, fault, "the images in work", before, since, False, text)


def sigkill_driver(bench: Bench) -> Outcome:
    """The process that runs `pmm run` is killed."""
    return bench.driver_ends("SIGKILL of the driver", signal.SIGKILL, -signal.SIGKILL, "")


def interrupt(bench: Bench) -> Outcome:
    """Ctrl-C."""
    text = "run the same command again"
    return bench.driver_ends("Ctrl-C (SIGINT)", signal.SIGINT, 130, text)


def sigkill_worker(bench: Bench) -> Outcome:
    """A process that is making a mask is killed."""
    run = bench.fresh()
    process = run.start()
    before = run.wait_for_parts(process, 6)
    deadline = time.monotonic() + 60
    busy: list[psutil.Process] = []
    while not busy:
        if time.monotonic() > deadline:
            raise AssertionError("no worker was seen at work")
        busy = [child for child in _family(process) if _title(child).startswith("ray::Map")]
    since = time.time_ns()
    busy[0].kill()
    run.wait(process)
    return bench.outcome(run, "SIGKILL of a worker process", "its image", before, since, True)


def sigkill_raylet(bench: Bench) -> Outcome:
    """The raylet of the only node is killed: the driver cannot go on, the next command does."""
    run = bench.fresh()
    process = run.start()
    run.wait_for_parts(process, 6)
    family = _family(process)
    [raylet] = [child for child in family if _title(child).split("/")[-1].startswith("raylet")]
    raylet.kill()
    _, printed = process.communicate(timeout=WAIT_SECONDS)
    if process.returncode == 0:
        raise AssertionError("the command went on without its raylet")
    psutil.wait_procs(family, timeout=60)
    before = run.parts
    since = time.time_ns()
    run.finish()
    fault, lost = "SIGKILL of the raylet of a single node", "the images in work"
    return bench.outcome(run, fault, lost, before, since, False, printed.strip()[-300:])


def full_disk(bench: Bench) -> Outcome:
    """The run folder's file system fills up; space is made; the same command goes on."""
    mount = bench.folder / "small-disk"
    mount.mkdir()
    size = sum(f.stat().st_size for f in bench.whole.folder.rglob("*") if f.is_file())
    with _tmpfs(mount, size + 10_000_000):
        run = bench.fresh(mount / "run")
        filler = mount / "filler"
        process = run.start()
        run.wait_for_parts(process, 4)
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        printed = run.wait(process, 1)
        if "the disk is full" not in printed or str(run.folder) not in printed:
            raise AssertionError(f"no clear word about the disk: {printed}")
        before = run.parts
        filler.unlink()
        since = time.time_ns()
        run.finish()
        lost = "the images in work"
        line = next(line for line in printed.splitlines() if "the disk is full" in line)
        line = line.replace(str(run.folder), "RUN")
        return bench.outcome(run, "full disk", lost, before, since, False, line)


def torn_parts(bench: Bench) -> Outcome:
    """A part is cut, one is overwritten with noise, and temporary files were left behind."""
    run = bench.fresh()
    shutil.copytree(bench.whole.masks_folder, run.folder / bench.whole.masks_folder.name)
    folder = run.masks_folder
    for name in ("summary.json", "index.parquet"):
        (folder / name).unlink()
    first, second, third = sorted(folder.glob("part-*.parquet"))[:3]
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    second.write_bytes(os.urandom(second.stat().st_size))
    half = third.read_bytes()[:100]
    third.unlink()
    (folder / f".{third.name}.0badcafe.tmp").write_bytes(half)
    before = {n: t for n, t in run.parts.items() if n not in (first.name, second.name)}
    since = time.time_ns()
    run.finish()
    names = {path.name for path in folder.glob("*.parquet")}
    if names != {path.name for path in bench.whole.masks_folder.glob("*.parquet")}:
        raise AssertionError(f"files too many or too few: {sorted(names)}")
    fault = "a cut part, a part of noise and a half-written one"
    # the two broken parts are still there when the run starts, and are written anew
    return bench.outcome(run, fault, "their images", before, since, False)


def lost_node(bench: Bench) -> Outcome:
    """Of a head and two worker nodes one is killed, and another added later."""
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(16)}
    os.environ.update(token)
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="pmm-", dir="/tmp")  # short: socket paths
    os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray spells it so
    from ray.cluster_utils import Cluster

    store = {"object_store_memory": 100_000_000}
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False} | store
    )
    try:
        nodes = [cluster.add_node(num_cpus=1, **store) for _ in range(2)]
        cluster.wait_for_nodes()
        run = bench.fresh()
        run.environment, run.address = token, cluster.address
        process = run.start()
        before = run.wait_for_parts(process, 6)
        since = time.time_ns()
        cluster.remove_node(nodes[0], allow_graceful=False)
        run.wait_for_parts(process, 10)
        cluster.add_node(num_cpus=1, **store)
        run.wait(process)
        fault = "SIGKILL of a node's raylet and all its processes, another node added"
        return bench.outcome(run, fault, "its images in work", before, since, True)
    finally:
        cluster.shutdown()
        shutil.rmtree(os.environ.pop("RAY_TMPDIR"), ignore_errors=True)
        for name in (*token, "RAY_worker_niceness"):
            os.environ.pop(name, None)


FAULTS: dict[str, Callable[[Bench], Outcome]] = {
    function.__name__: function
    for function in (
        sigkill_worker,
        lost_node,
        sigkill_driver,
        sigkill_raylet,
        interrupt,
        full_disk,
        torn_parts,
    )
}


def can_mount() -> bool:
    """Whether this process may mount a small file system, which the full disk needs."""
    return os.geteuid() == 0 and shutil.which("mount") is not None


@contextlib.contextmanager
def _tmpfs(mount: Path, size: int) -> Iterator[None]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", mount], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", mount], check=True)


def _family(process: Command) -> list[psutil.Process]:
    return psutil.Process(process.pid).children(recursive=True)


def _title(process: psutil.Process) -> str:
    try:
        return (process.cmdline() or [""])[0]
    except psutil.NoSuchProcess:
        return ""


def as_table(outcomes: list[Outcome]) -> str:
    """The outcomes in Markdown."""
    lines = [
        "| fault | what is lost | finished images made again | goes on | next mask after"
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


PAGE_START, PAGE_END = "<!-- faults:start -->", "<!-- faults:end -->"


def write_page(page: Path, table: str) -> None:
    """Replace what stands between the two marks of a page."""
    text = page.read_text()
    head, _, rest = text.partition(PAGE_START)
    _, _, tail = rest.partition(PAGE_END)
    note = (
        f"`python benchmarks/faults.py --write {page.name}`, {time.strftime('%Y-%m-%d')}, commit"
        f" {commit()}, {psutil.cpu_count()} cores ({platform.machine()}), load"
        f" {os.getloadavg()[1]:.0f}; {IMAGES} images, 2 tasks, one image a task."
    )
    page.write_text(f"{head}{PAGE_START}\n{note}\n\n{table}\n{PAGE_END}{tail}")


def main() -> None:
    """Parse the options, break things, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=sorted(FAULTS), help="these faults")
    parser.add_argument("--write", type=Path, help="page whose marked part is replaced")
    options = parser.parse_args()
    chosen = options.only or list(FAULTS)
    if not can_mount() and "full_disk" in chosen:
        chosen.remove("full_disk")
        print("full_disk left out: only root may mount a small disk", file=sys.stderr)
    outcomes: list[Any] = []
    with tempfile.TemporaryDirectory(prefix="pmm-faults-") as folder:
        bench = Bench(Path(folder))
        for name in chosen:
            outcomes.append(FAULTS[name](bench))
            print(outcomes[-1], file=sys.stderr, flush=True)
    table = as_table(outcomes)
    print(table)
    if options.write:
        write_page(options.write, table)
    if not all(o.same_table and o.again == 0 for o in outcomes):
        sys.exit("a table differs")


if __name__ == "__main__":
    main()
