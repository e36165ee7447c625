"""Break a run of make_masks in every way we know, and print what it cost.

    python benchmarks/faults.py [--only NAME]... [--write docs/reference/reliability.md]

Every fault hits real processes of a real `pmm run`. The masks table that remains is compared, row
for row, with that of a run nobody disturbed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from fault_bench import (
    IMAGES,
    WAIT_SECONDS,
    Bench,
    Outcome,
    as_table,
    can_mount,
    commit,
    end,
    family,
    machine,
    small_disk,
    title,
)
from fault_buckets import expired_credentials
from fault_links import clock_off, link_cut_in_masks, link_cut_in_training, slow_link, why_not
from fault_nodes import idle_node, lost_node, lost_node_fused, sick_node

from pmm_ray.runtime.core.errors import EXIT_TRY_AGAIN

IN_WORK = "the images in work"
STALL_SECONDS = 20
# what was finished and not yet told to the driver is made again: at most one for each task
MADE_AGAIN = {"sigkill_worker": 1, "lost_node": 2, "lost_node_fused": 2, "link_cut_in_masks": 2}


def driver_ends(bench: Bench, fault: str, stop: Callable[[int], None], code: int) -> Outcome:
    """The driver gets a signal; the same command goes on."""
    run = bench.fresh()
    process = run.start()
    run.wait_for_parts(process, 6)
    started = family(process)
    stop(process.pid)
    printed = run.wait(process, code)
    if code == 130 and "run the same command again" not in printed:
        raise AssertionError(f"it did not say how to go on: {printed}")
    psutil.wait_procs(started, timeout=60)
    before = run.parts
    since = time.time_ns()
    run.finish()
    return bench.outcome(run, fault, IN_WORK, before, since, False, printed)


def sigkill_driver(bench: Bench) -> Outcome:
    """The process that runs `pmm run` is killed."""

    def stop(pid: int) -> None:
        os.kill(pid, signal.SIGKILL)

    return driver_ends(bench, "SIGKILL of the driver", stop, -signal.SIGKILL)


def interrupt(bench: Bench) -> Outcome:
    """Ctrl-C: a terminal sends it to all processes of the command."""

    def stop(pid: int) -> None:
        os.killpg(pid, signal.SIGINT)

    return driver_ends(bench, "Ctrl-C", stop, 130)


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
        busy = [child for child in family(process) if title(child).startswith("ray::Map")]
    since = time.time_ns()
    busy[0].kill()
    run.wait(process)
    return bench.outcome(run, "SIGKILL of a worker process", "its image", before, since, True)


def sigkill_raylet(bench: Bench) -> Outcome:
    """The raylet of the only node is killed: the driver cannot go on, the next command does."""
    run = bench.fresh()
    process = run.start()
    run.wait_for_parts(process, 6)
    started = family(process)
    [raylet] = [child for child in started if title(child).split("/")[-1] == "raylet"]
    raylet.kill()
    try:
        _, printed = process.communicate(timeout=WAIT_SECONDS)
    finally:
        end(process)
    if process.returncode == 0:
        raise AssertionError("the command went on without its raylet")
    psutil.wait_procs(started, timeout=60)
    before = run.parts
    since = time.time_ns()
    run.finish()
    fault = "SIGKILL of the raylet of a single machine"
    message = f"exit code {process.returncode}: {printed.strip()[-1000:]}"
    return bench.outcome(run, fault, IN_WORK, before, since, False, message)


def full_disk(bench: Bench) -> Outcome:
    """The run folder's file system fills up; space is made; the same command goes on."""
    mount = bench.folder / "small-disk"
    mount.mkdir()
    size = sum(f.stat().st_size for f in bench.whole.folder.rglob("*") if f.is_file())
    with small_disk(mount, size + 10_000_000):
        run = bench.fresh(mount / "run")
        filler = mount / "filler"
        process = run.start()
        run.wait_for_parts(process, 4)
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        printed = run.wait(process, EXIT_TRY_AGAIN)
        if "the disk is full" not in printed or str(run.folder) not in printed:
            raise AssertionError(f"no clear word about the disk: {printed}")
        before = run.parts
        filler.unlink()
        since = time.time_ns()
        run.finish()
        line = next(line for line in printed.splitlines() if "the disk is full" in line)
        line = line.replace(str(run.folder), "RUN")
        return bench.outcome(run, "full disk", IN_WORK, before, since, False, line)


def torn_parts(bench: Bench) -> Outcome:
    """A part is cut, in one a byte is wrong, and a third was half written."""
    run = bench.fresh()
    shutil.copytree(bench.whole.masks_folder, run.folder / bench.whole.masks_folder.name)
    folder = run.masks_folder
    for name in ("summary.json", "index.parquet"):
        (folder / name).unlink()
    first, second, third = sorted(folder.glob("part-*.parquet"))[:3]
    first.write_bytes(first.read_bytes()[: first.stat().st_size // 2])
    data = bytearray(second.read_bytes())
    data[len(data) // 2] ^= 1
    second.write_bytes(data)
    half = third.read_bytes()[:100]
    third.unlink()
    (folder / f".{third.name}.0badcafe.tmp").write_bytes(half)
    before = {n: t for n, t in run.parts.items() if n not in (first.name, second.name)}
    since = time.time_ns()
    printed = run.finish()
    if {path.name for path in folder.iterdir()} != {
        path.name for path in bench.whole.masks_folder.iterdir()
    }:
        raise AssertionError(f"files too many or too few: {sorted(folder.iterdir())}")
    fault = "a cut part, one with a wrong bit, a half-written one"
    # the two broken parts are still there when the run starts, and are written anew
    return bench.outcome(run, fault, "their images", before, since, False, printed)


def poison(bench: Bench) -> Outcome:
    """An image at which every process that takes it has a segmentation fault."""
    run = bench.fresh()
    bad = bench.expected[IMAGES // 2]["image_id"]
    run.settings = ("masks.batch_size=4",)
    with bench.accident(run, "segfault", bad) as mark:
        printed = run.finish()
    [error] = run.errors()
    if (error.image_id, error.kind) != (bad, "internal"):
        raise AssertionError(f"another error row: {error}")
    [row] = (run.masks_folder / "errors").glob("part-*")
    since, until = mark.stat().st_mtime_ns, row.stat().st_mtime_ns
    fault, lost = "an image whose process always crashes", "its mask: it is an error row"
    return bench.outcome(run, fault, lost, {}, since, True, printed, bad, until)


def stuck_worker(bench: Bench) -> Outcome:
    """An image at which a process hangs: the watchdog says so, and the next command goes on."""
    run = bench.fresh()
    run.settings = (f"runtime.stall_seconds={STALL_SECONDS}",)
    stuck = bench.expected[IMAGES // 2]["image_id"]
    with bench.accident(run, "hang", stuck):
        printed = run.wait(run.start(), EXIT_TRY_AGAIN)
    for said in ("no image finished for", "handed to workers", "What to do: ", stuck):
        if said not in printed:
            raise AssertionError(f"it did not say {said!r}: {printed}")
    before = run.parts
    since = time.time_ns()
    run.finish()
    fault = "a worker that hangs, once the watchdog has ended the run"
    return bench.outcome(run, fault, "its image", before, since, False, printed)


def stopped_training(bench: Bench) -> Outcome:
    """SIGTERM in mid-training, as of a spot notice, where no checkpoint is due for hours."""
    run = bench.fresh(classifier=False)
    run.settings = ("classifier.checkpoint_seconds=10000",)
    process = run.start()
    run.wait_for_step(process, 6)
    process.send_signal(signal.SIGTERM)
    printed = run.wait(process, 130)
    said = re.search(r"the training is saved at step (\d+)", printed)
    if said is None:
        raise AssertionError(f"it did not say that it is saved: {printed}")
    saved, before = int(said[1]), len(run.steps())
    since = time.time_ns()
    run.finish()
    after = run.steps()[before:]
    first, last = after[0][0], len(bench.whole.steps())
    # it may have saved once more after it said so
    through = [step for step, _ in after] == list(range(first, last + 1))
    if not through or not saved < first <= before + 1:
        raise AssertionError(f"it did not go on from step {saved}: {after}")
    fault, until = "SIGTERM to a training (spot notice)", int(after[0][1] * 1e9)
    lost = f"steps since the notice ({before - first + 1})"
    return bench.outcome(run, fault, lost, {}, since, False, printed, until_ns=until)


LINKS: dict[str, Callable[[Bench], Outcome]] = {
    function.__name__: function
    for function in (link_cut_in_masks, link_cut_in_training, slow_link, clock_off)
}
FAULTS: dict[str, Callable[[Bench], Outcome]] = {
    function.__name__: function
    for function in (
        sigkill_worker,
        lost_node,
        lost_node_fused,
        sick_node,
        idle_node,
        poison,
        sigkill_driver,
        sigkill_raylet,
        interrupt,
        full_disk,
        torn_parts,
        stuck_worker,
        stopped_training,
        expired_credentials,
        *LINKS.values(),
    )
}
PAGE_START, PAGE_END = "<!-- faults:start -->", "<!-- faults:end -->"


def sound(name: str, outcome: Outcome) -> bool:
    """Whether the masks are those of an undisturbed run and what was finished stayed."""
    return outcome.same_table and outcome.again <= MADE_AGAIN.get(name, 0)


def write_page(page: Path, table: str) -> None:
    """Replace what stands between the two marks of a page."""
    text = page.read_text()
    head, _, rest = text.partition(PAGE_START)
    _, _, tail = rest.partition(PAGE_END)
    note = (
        f"`python benchmarks/faults.py --write {page}`, {time.strftime('%Y-%m-%d')}, commit"
        f" {commit()}, {machine()}; {IMAGES} images, 2 tasks, one image a task."
    )
    page.write_text(f"{head}{PAGE_START}\n{note}\n\n{table}\n{PAGE_END}{tail}")


def main() -> None:
    """Parse the options, break things, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", choices=sorted(FAULTS), help="these faults")
    parser.add_argument("--write", type=Path, help="page whose marked part is replaced")
    options = parser.parse_args()
    chosen = options.only or list(FAULTS)
    reasons = {"full_disk": "" if can_mount() else "only root may mount a small disk"}
    reasons |= dict.fromkeys(LINKS, why_not())
    for name in [name for name in chosen if reasons.get(name)]:
        chosen.remove(name)
        print(f"{name} left out: {reasons[name]}", file=sys.stderr)
    outcomes: list[Outcome] = []
    failed: list[str] = []
    with (
        tempfile.TemporaryDirectory(prefix="pmm-faults-") as folder,
        contextlib.ExitStack() as opened,
    ):
        bench = Bench(Path(folder), opened)
        for name in chosen:
            try:
                outcomes.append(FAULTS[name](bench))
                print(outcomes[-1], file=sys.stderr, flush=True)
                if not sound(name, outcomes[-1]):
                    failed.append(name)
                if options.write:
                    write_page(options.write, as_table(outcomes))
            except (AssertionError, EOFError, OSError, subprocess.TimeoutExpired) as error:
                failed.append(name)
                print(f"{name}: {error}", file=sys.stderr, flush=True)
    print(as_table(outcomes))
    if failed:
        sys.exit(f"a table differs, or images were made again, or a run did not end: {failed}")


if __name__ == "__main__":
    main()
