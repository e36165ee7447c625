"""Masks of the same CAMs from one node and from three: is anything but the clock different?

    python benchmarks/nodes.py RECIPE RUN [--set key=value]...

Copies a run that has CAMs, without its masks, once for each case, and runs the recipe's mask stage
again: with a Ray of its own on two CPUs, and on a cluster of a head without CPUs and three nodes of
one CPU each (raylets of one machine, which share its cores: the seconds compare nothing but
overhead). Prints the seconds, a digest of the masks table, and the mean IoU where there is truth.
"""

from __future__ import annotations

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.index import read_all


def run_masks(recipe: str, source: Path, place: Path, options: list[str]) -> tuple[float, str, int]:
    """(seconds, digest of the table, rows) of the mask stage in a copy of the run."""
    left_out = shutil.ignore_patterns("make_masks-*", "evaluate-*", "*segment*", "lease.json")
    shutil.copytree(source, place, ignore=left_out)
    command = [sys.executable, "-m", "pmm_ray.cli", "run", recipe, "--run-dir", str(place)]
    started = time.monotonic()
    subprocess.run([*command, "--only", "make_masks", *options], check=True, stdout=sys.stderr)
    seconds = time.monotonic() - started
    [folder] = place.glob("make_masks-????????")
    table = read_all(str(folder))
    return seconds, tables.content_hash(table), table.num_rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe")
    parser.add_argument("run", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    given = parser.parse_args()
    options = [word for setting in given.settings for word in ("--set", setting)]
    # sockets lie below it, and their paths have a limit of 107 bytes
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="pmm-", dir="/tmp")
    os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", secrets.token_hex(16)
    found = {}
    with tempfile.TemporaryDirectory(prefix="pmm-nodes-") as name:
        local = ["--address", "local", "--set", "runtime.cpus=2"]
        found["one node"] = run_masks(given.recipe, given.run, Path(name) / "one", options + local)
        from ray.cluster_utils import Cluster

        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        try:
            for _ in range(3):
                cluster.add_node(num_cpus=1)
            there = ["--address", cluster.address]
            place = Path(name) / "three"
            found["three nodes"] = run_masks(given.recipe, given.run, place, options + there)
        finally:
            cluster.shutdown()
            shutil.rmtree(os.environ["RAY_TMPDIR"], ignore_errors=True)
    for case, (seconds, digest, rows) in found.items():
        print(f"{case:11}  {rows} masks  {seconds:6.1f} s with start-up  sha256 {digest[:16]}")
    same = len({digest for _, digest, _ in found.values()}) == 1
    print(f"identical masks: {same}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
