"""A fault of a bucket: an S3 server on loopback, behind a proxy that refuses when it is told to."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from fault_bench import WAIT_SECONDS, Bench, Command, Outcome

from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.errors import EXIT_TRY_AGAIN
from pmm_ray.runtime.core.index import read_all

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.system.faulty_proxy import (
    S3_SERVER,
    Fault,
    Proxy,
    environment_of,
    serving,
    standing_before,
)
from tests.system.test_runs_in_buckets import masks_of

_RUN = "s3://bucket/run"


def _start(bench: Bench, proxy: Proxy) -> Command:
    command = [sys.executable, "-m", "pmm_ray.cli", "run", str(bench.recipe), "--run-dir", _RUN]
    return subprocess.Popen(
        [*command, "--until", "make_masks", "--address", "local"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment_of(proxy) | {"OMP_NUM_THREADS": "1"},
    )


def _parts(proxy: Proxy) -> list[float]:
    """When parts of the masks were sent."""
    return [
        when
        for when, method, path, fault in proxy.seen
        if method == "PUT" and "/make_masks" in path and "/part-" in path and not fault
    ]


def expired_credentials(bench: Bench) -> Outcome:
    """A bucket answers that the credentials have expired, while masks are made."""
    with serving(*S3_SERVER) as port, standing_before(port) as proxy:
        first = _start(bench, proxy)
        deadline = time.monotonic() + WAIT_SECONDS
        while len(_parts(proxy)) < 4:
            if first.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"it made no masks: {first.communicate()[1]}")
            time.sleep(0.02)
        methods = ("GET", "HEAD", "PUT", "POST", "DELETE")
        proxy.faults = [Fault(method, "/", "expire") for method in methods]
        _, printed = first.communicate(timeout=WAIT_SECONDS)
        if first.returncode != EXIT_TRY_AGAIN or "Run the same command again" not in printed:
            raise AssertionError(f"exit code {first.returncode}: {printed}")
        proxy.faults.clear()
        before = {path for _, method, path, fault in proxy.seen if method == "PUT" and not fault}
        since, seen = time.monotonic(), len(proxy.seen)
        second = _start(bench, proxy)
        _, said = second.communicate(timeout=WAIT_SECONDS)
        if second.returncode:
            raise AssertionError(said)
        later = proxy.seen[seen:]
        again = [path for _, method, path, _ in later if method == "PUT" and path in before]
        found = dict(os.environ)
        os.environ.update(environment_of(proxy))
        storage._filesystem.cache_clear()
        try:
            same = masks_of(_RUN) == tables.content_hash(read_all(str(bench.whole.masks_folder)))
        finally:
            os.environ.clear()
            os.environ.update(found)
            storage._filesystem.cache_clear()
        return Outcome(
            fault="credentials of a bucket that expire during masks",
            lost="the images in work",
            by_itself=False,
            again=sum("/make_masks" in path and "/part-" in path for path in again),
            recovery_seconds=min(when for when in _parts(proxy) if when > since) - since,
            same_table=same,
            message=printed,
        )
