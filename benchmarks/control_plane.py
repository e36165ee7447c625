"""How many cores can one driver keep busy with mask chunks?

    python benchmarks/control_plane.py --cores 8 64 512 1000 2048 --image-seconds 0.06
    python benchmarks/control_plane.py --ids 1000000    # a resume: seconds and memory, no Ray

What is real: the driver, Ray (GCS, raylet, object store), `run_table_stage` and its Ray Data plan,
the chunks, reading the manifest's rows, committing parts, the lease. What is simulated: making a
mask, which is a sleep of `--image-seconds`; and the cores: an actor process takes `--per-actor`
calls at once, each standing for one core that takes one chunk at a time. Masks run as tasks in the
real stage, one process a core; here they are actor calls, as thousands of processes do not fit on
one machine. The network between nodes is not there, and the simulated cores' processes share this
machine's cores with the driver, which is to the driver's disadvantage.

Utilisation is sleep divided by cores and wall time, from the moment when every core had time to
finish its first chunk until chunks run out.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pmm_ray.config import RunConfig
from pmm_ray.labels import VOC12
from pmm_ray.runtime.cluster.connect import connect
from pmm_ray.runtime.core import lease, tables
from pmm_ray.runtime.core.events import EventLog, read_events
from pmm_ray.runtime.core.index import index_file
from pmm_ray.runtime.core.manifest import (
    EXIF_KEY,
    LABEL_SPACE_KEY,
    SOURCE_KEY,
    open_manifest,
)
from pmm_ray.runtime.core.progress import Progress
from pmm_ray.runtime.core.resources import ClusterResources, Pool
from pmm_ray.runtime.core.stage import StageFolder
from pmm_ray.runtime.mapping.chunks import make_chunks
from pmm_ray.runtime.mapping.ledger import Ledger
from pmm_ray.runtime.mapping.table_stage import auto_batch, run_table_stage
from pmm_ray.runtime.mapping.workers import InputRow, Worker

SINCE_JOURNAL = 900
"""Parts that a killed run has committed since it wrote its journal: half a minute's."""
ROW = pa.schema([("image_id", pa.string()), ("seconds", pa.float32())])


def sleeping_worker(image_seconds: float) -> Worker:
    """Stands for the mask worker: the same time for each row, no computation."""

    def worker(rows: Sequence[InputRow]) -> Iterator[dict[str, Any]]:
        for row in rows:
            yield {"image_id": row["manifest"]["image_id"], "seconds": image_seconds}
        time.sleep(image_seconds * len(rows))

    return worker


def concurrent_actors(calls: int) -> None:
    """Let every actor of the product's pools take so many calls at once."""
    import ray.data

    ray.data.ActorPoolStrategy = partial(
        ray.data.ActorPoolStrategy,
        max_concurrent_calls_per_actor=calls,
        enable_true_multi_threading=True,
    )


def make_manifest(uri: str, rows: int) -> None:
    """A manifest of many photographs that are not there."""
    ids = pa.array([f"i{i:08d}" for i in range(rows)])
    table = pa.table(
        [
            ids,
            pc.binary_join_element_wise(ids, "jpg", "."),
            pa.ListArray.from_arrays(np.arange(rows + 1, dtype=np.int32), np.ones(rows, np.int16)),
            np.full(rows, 480, np.int32),
            np.full(rows, 640, np.int32),
            pa.repeat("train", rows),
            pa.nulls(rows, pa.string()),
        ],
        schema=tables.MANIFEST,
    )
    about = {LABEL_SPACE_KEY: VOC12.to_json(), EXIF_KEY: "ignore", SOURCE_KEY: "benchmark"}
    with pq.ParquetWriter(uri, table.schema.with_metadata(about), compression="zstd") as writer:
        writer.write_table(table, row_group_size=tables.MANIFEST_ROW_GROUP)


def commit(ledger: Ledger, folder: StageFolder, ids: list[str]) -> None:
    """What a task does with a chunk, and what it says to the driver."""
    name = tables.chunk_name(ids)
    rows = [{"image_id": image_id, "seconds": 0.06} for image_id in ids]
    size = tables.write_rows(tables.part_uri(folder.uri, name), rows, ROW)
    ledger.add({"part": name, "done": json.dumps(ids), "failed": "[]", "bytes": size})


def resume(options: argparse.Namespace, place: Path) -> None:
    """What a driver does before it sends a chunk, with so many ids of which half have a row."""
    manifest, ids, size = str(place / "manifest.parquet"), options.ids, options.batch or 100
    folder = StageFolder.below(str(place), "masks", "00000000")
    if options.prepare:
        make_manifest(manifest, ids)
        ledger = Ledger(folder, ROW)
        for start in range(0, ids // 2, size):
            if start // size == ids // 2 // size - SINCE_JOURNAL:
                ledger._write_journal()
            commit(ledger, folder, [f"i{i:08d}" for i in range(start, start + size)])
        return
    steps: dict[str, float] = {}
    begun = time.monotonic()

    def step(name: str) -> None:
        steps[name] = round(time.monotonic() - begun, 1)

    open_manifest(manifest)
    step("manifest opened")
    images = index_file(manifest)
    ledger = Ledger(folder, ROW)
    assert not ledger.scan()
    step("folder read")
    todo = ledger.uncommitted(images.ids)
    assert len(todo) == ids - ids // 2
    chunks = make_chunks(todo, {"manifest": images}, size)
    step("chunks made")
    assert len(ledger.index(images.ids)) == ids // 2
    step("index made")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{ids} ids, {ids // 2 // size} parts, {len(chunks)} chunks: {steps} s, {peak:.0f} MB")


def measure(options: argparse.Namespace, cores: int, folder: Path) -> dict[str, float]:
    """One point of the curve."""
    calls = max(1, min(options.per_actor, cores // 2))
    actors = -(-cores // calls)
    batch = options.batch or auto_batch(10**6, cores, options.image_seconds)
    rows = min(options.most_rows, int(options.seconds * cores / options.image_seconds))
    rows = max(rows, batch * cores * 3)
    manifest = str(folder / "manifest.parquet")
    make_manifest(manifest, rows)
    run_dir = str(folder / "run")
    config = RunConfig.model_validate({"runtime": {"cpus": 4}})
    concurrent_actors(calls)
    attempt = uuid.uuid4().hex
    with connect("local", config.runtime, run_dir), lease.hold(run_dir, attempt):
        context = SimpleNamespace(
            run_dir=run_dir,
            config=config,
            manifest=open_manifest(manifest),
            cluster=ClusterResources(cpus=cores, gpus=0, nodes=1, local=True),
            events=EventLog(run_dir, "driver"),
            progress=Progress(stream=io.StringIO()),
            attempt=attempt,
        )
        spent = resource.getrusage(resource.RUSAGE_SELF)
        started = time.monotonic()
        run_table_stage(
            context,
            StageFolder.below(run_dir, "masks", "00000000"),
            inputs={"manifest": index_file(manifest)},
            factory=partial(sleeping_worker, options.image_seconds),
            schema=ROW,
            # small shares: what an actor holds of a CPU must not be what bounds their number
            pool=Pool(actors, actors=True, cpus=0.02),
            batch_size=batch,
        )
        wall = time.monotonic() - started
        now = resource.getrusage(resource.RUSAGE_SELF)
    chunks = list(read_events(run_dir, "chunk"))
    chunk_seconds = batch * options.image_seconds
    begin = chunks[0]["time"] + chunk_seconds
    last_sent = chunks[-1]["time"] - 2 * chunk_seconds
    window = [c for c in chunks if begin < c["time"] <= last_sent]
    slept = sum(c["images"] for c in window) * options.image_seconds
    seconds = window[-1]["time"] - window[0]["time"] if len(window) > 1 else float("nan")
    return {
        "cores": actors * calls,
        "processes": actors,
        "rows": rows,
        "rows_per_chunk": batch,
        "chunks_per_second": len(window) / seconds,
        "utilisation": slept / (actors * calls * seconds),
        "whole": rows * options.image_seconds / (actors * calls * wall),
        "window": seconds,
        "driver_cpu_ms_per_chunk": (now.ru_utime - spent.ru_utime + now.ru_stime - spent.ru_stime)
        * 1e3
        / len(chunks),
        "driver_mb": now.ru_maxrss / 1024,
    }


def main() -> None:
    """Measure every point in a process of its own and print the curve."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cores", type=int, nargs="+", default=[8, 64, 512, 1000, 2048])
    parser.add_argument("--image-seconds", type=float, default=0.06, help="of one mask, measured")
    parser.add_argument("--per-actor", type=int, default=64, help="cores that an actor stands for")
    parser.add_argument("--seconds", type=float, default=45, help="aimed-at length of each point")
    parser.add_argument("--most-rows", type=int, default=4_000_000)
    parser.add_argument("--batch", type=int, help="rows per chunk; default: the stage's own")
    parser.add_argument("--ids", type=int, help="a resume with so many ids, without Ray")
    parser.add_argument("--prepare", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--place", help=argparse.SUPPRESS)
    parser.add_argument("--point", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.point:
        with tempfile.TemporaryDirectory(prefix="pmm-control-") as place:
            print(json.dumps(measure(options, options.cores[0], Path(place))))
        return
    if options.place:
        resume(options, Path(options.place))
        return
    if options.ids:
        with tempfile.TemporaryDirectory(prefix="pmm-control-") as place:
            command = [sys.executable, *sys.argv, "--place", place]
            subprocess.run([*command, "--prepare"], check=True)
            subprocess.run(command, check=True)
        return
    os.environ.setdefault("RAY_worker_niceness", "0")
    print(
        "cores  processes  rows/chunk  chunks/s  utilisation  with start and end  driver ms/chunk"
    )
    for cores in options.cores:
        command = [sys.executable, __file__, "--point", "--cores", str(cores)]
        for name in ("image_seconds", "per_actor", "seconds", "most_rows", "batch"):
            value = getattr(options, name)
            command += [f"--{name.replace('_', '-')}", str(value)] if value is not None else []
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        p = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{p['cores']:5}  {p['processes']:9}  {p['rows_per_chunk']:10}  "
            f"{p['chunks_per_second']:8.1f}  {p['utilisation']:11.1%}  {p['whole']:18.1%}  "
            f"{p['driver_cpu_ms_per_chunk']:15.1f}"
            f"   ({p['rows']} rows, window {p['window']:.0f} s, driver {p['driver_mb']:.0f} MB)",
            flush=True,
        )


if __name__ == "__main__":
    main()
