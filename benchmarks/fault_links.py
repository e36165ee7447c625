"""Faults of the links and clocks of hosts: three Ray nodes and a bucket, with their own addresses.

The hosts are those of tests/system/hosts.py; they need root and iproute2.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

from fault_bench import Bench, Outcome

from pmm_ray.runtime.core import storage

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.system.hosts import Hosts, why_not
from tests.system.test_hosts import (
    CLOCK,
    CUT_SECONDS,
    Site,
    ended,
    found,
    masks_of,
    second_driver,
    trained,
    wait_for,
    whole_again,
)

__all__ = ["clock_off", "link_cut_in_masks", "link_cut_in_training", "slow_link", "why_not"]

_SLOW_MEGABITS = 2


@contextlib.contextmanager
def site() -> Iterator[tuple[Site, str]]:
    """The hosts, and a digest of the masks of a run on them that nothing happened to."""
    hosts = Hosts(
        f"pmm{os.getpid() % 10_000}",
        f"10.203.{os.getpid() % 200}",
        ("head", "one", "two", "bucket"),
    )
    folder = Path(tempfile.mkdtemp(prefix="pmm-", dir="/tmp"))  # for sockets: short paths
    it = Site(hosts, folder)
    before = {name: os.environ.get(name) for name in it.environment}
    try:
        hosts.open()
        it.open()
        os.environ.update(it.environment)
        storage._filesystem.cache_clear()
        ended(it.submit("s3://bucket/whole", folder / "whole"), folder / "whole")
        yield it, masks_of("s3://bucket/whole")
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        storage._filesystem.cache_clear()
        it.close()
        hosts.close()
        shutil.rmtree(folder, ignore_errors=True)


def _site(bench: Bench) -> tuple[Site, str]:
    """The one of a bench; all link faults share it."""
    if bench.site is None:
        bench.site = bench.opened.enter_context(site())
    made: tuple[Site, str] = bench.site
    return made


def _parts(run_dir: str) -> dict[str, int]:
    """Parts of the masks and when each was written, ns."""
    folders = [name for name in storage.list_folders(run_dir) if name.startswith("make_masks-")]
    listed = [storage.list_versions(f"{run_dir}/{name}", ".parquet") for name in folders]
    return {
        uri: when for versions in listed for uri, (_, when) in versions.items() if "/part-" in uri
    }


def _cut(
    bench: Bench, name: str, host: str, fault: str, ready: Callable[[str, str], bool]
) -> Outcome:
    """Cut the link of a host for a minute, once `ready` says so of the run and what it printed."""
    place, expected = _site(bench)
    run_dir, log = f"s3://bucket/{name}", bench.folder / name
    process = place.submit(run_dir, log)
    wait_for(lambda: ready(run_dir, log.read_text(errors="replace")), process, log)
    before, since = _parts(run_dir), time.time_ns()
    place.hosts.cut(host)
    time.sleep(CUT_SECONDS)
    place.hosts.mend(host)
    whole_again(place)
    ended(process, log)
    after = _parts(run_dir)
    later = sorted(when for uri, when in after.items() if uri not in before and when > since)
    return Outcome(
        fault=fault,
        lost="the images in work" if before else "steps since the checkpoint",
        by_itself=True,
        again=sum(after.get(uri) != when for uri, when in before.items()),
        recovery_seconds=max(b - a for a, b in pairwise([since, *later])) / 1e9,
        same_table=masks_of(run_dir) == expected,
    )


def link_cut_in_masks(bench: Bench) -> Outcome:
    """Nothing reaches a node for a minute while it makes masks."""
    fault = f"a node's link cut for {CUT_SECONDS} s during masks"
    return _cut(bench, "masks", "one", fault, lambda run_dir, _: len(_parts(run_dir)) >= 3)


def link_cut_in_training(bench: Bench) -> Outcome:
    """Nothing reaches a node for a minute while it trains; the time is up to the first mask."""
    fault = f"a node's link cut for {CUT_SECONDS} s during a training"
    return _cut(bench, "training", "two", fault, lambda _, said: trained(said))


def slow_link(bench: Bench) -> Outcome:
    """All that goes to a node passes slowly, from the start of a run to its end."""
    place, expected = _site(bench)
    run_dir, log = "s3://bucket/slow", bench.folder / "slow"
    place.hosts.slow("one", _SLOW_MEGABITS)
    try:
        ended(place.submit(run_dir, log), log)
    finally:
        place.hosts.slow("one", 0)
    gaps = [(b - a) / 1e9 for a, b in pairwise(sorted(_parts(run_dir).values()))]
    fault = f"a node's link of {_SLOW_MEGABITS} Mbit/s"
    return Outcome(fault, "nothing", True, 0, max(gaps), masks_of(run_dir) == expected)


def clock_off(bench: Bench) -> Outcome:
    """A second driver, two minutes ahead, wants a run that is alive."""
    place, expected = _site(bench)
    run_dir, log = "s3://bucket/clock", bench.folder / "clock"
    process = place.submit(run_dir, log)
    wait_for(lambda: found(run_dir, "lease.json"), process, log)
    (bench.folder / "clock-hook").mkdir()
    (bench.folder / "clock-hook" / "sitecustomize.py").write_text(CLOCK)
    answer = second_driver(place, run_dir, bench.folder / "clock-hook", 120)
    if "is in use by process" not in answer:
        raise AssertionError(f"it took the run over: {answer}")
    ended(process, log)
    fault = "a second driver, its clock 120 s ahead"
    same = masks_of(run_dir) == expected
    return Outcome(fault, "nothing: it is refused", True, 0, 0.0, same, answer)
