"""The mask stage beside a bare process pool, beside the usual script, at 10x the rows, resumed.

    python benchmarks/masks_pipeline.py pool      # throughput, against multiprocessing.Pool
    python benchmarks/masks_pipeline.py script    # against pydensecrf per class, one PNG each
    python benchmarks/masks_pipeline.py memory    # peak memory at 500 and 5,000 rows
    python benchmarks/masks_pipeline.py resume    # 82,081 rows: all done, half done
    python benchmarks/masks_pipeline.py sweep     # 12 combinations of parameters against one
    python benchmarks/masks_pipeline.py latency   # photographs that take time to be read

Photographs and CAMs: `--voc` a VOC2012 folder and `--cams` a folder of ID.npz (keys, cam); default:
the shared ones. They are repeated under other ids to get the rows that are asked for. Both sides of
a comparison run in this process tree, one after the other, with `--workers` processes each.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from masks_data import Clock, Rates, make_tables, peak_bytes, run_in, runtime, shared
from masks_resume import resume
from masks_script import script_mask, start_script
from PIL import Image

from latticecrf import CrfParameters, DenseCrf
from latticecrf.kernels.warm import warm_up
from pmm_ray.config import MasksConfig
from pmm_ray.method.cams import smooth, upsample_cam
from pmm_ray.method.masks import proportional_masks
from pmm_ray.runtime.cluster.connect import connect, one_thread
from pmm_ray.runtime.core import storage, tables
from pmm_ray.runtime.core.index import index_file, read_index
from pmm_ray.runtime.core.manifest import open_manifest
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.mapping.chunks import make_chunks
from pmm_ray.runtime.mapping.table_stage import auto_batch
from pmm_ray.runtime.mapping.tasks import Output, run_chunk
from pmm_ray.runtime.rows.cams import Cams
from pmm_ray.runtime.rows.masks import mask_parameters
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.stages import make_masks, sweep_masks
from pmm_ray.stages.make_masks import mask_factory


def stage_side(context: RunContext, cams: str, name: str) -> tuple[Rates, StageFolder]:
    """The stage as it is, on the cluster that is connected."""
    folder = StageFolder.below(context.run_dir, name, "00000000")
    clock = context.events
    assert isinstance(clock, Clock)
    clock.begin()
    make_masks.run(
        MasksConfig(),
        context,
        folder,
        cams=Cams(index_file(cams), "0"),
    )
    return clock.rates(context.cluster.default_tasks()), folder


def start_worker(factory: Callable[[], Any], output: Output) -> None:
    """A pool process gets ready: what a Ray task does at its first chunk."""
    global WORKER, OUTPUT
    one_thread()
    WORKER, OUTPUT = factory(), output


def pool_chunk(chunk: str) -> dict[str, Any]:
    """What a Ray task does with a chunk: read, map, commit."""
    return run_chunk(chunk, WORKER, OUTPUT)


def pool_side(context: RunContext, cams: str, name: str, workers: int) -> Rates:
    """The same work in a multiprocessing.Pool."""
    folder = StageFolder.below(context.run_dir, name, "00000000")
    index = index_file(cams)
    inputs = {"cams": index, "manifest": index_file(context.manifest.uri)}
    chunks = make_chunks(
        index.image_ids, inputs, auto_batch(len(index), workers, make_masks.IMAGE_SECONDS)
    )
    output = Output(folder.uri, tables.MASKS, name, context.run_dir, context.attempt)
    factory = mask_factory(MasksConfig(), context, name, "ppmg")
    clock = Clock(context.run_dir)
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(workers, start_worker, (factory, output)) as pool:
        for counts in pool.imap_unordered(pool_chunk, chunks):
            if counts["failure"]:
                sys.exit(counts["failure"])
            clock.chunk(counts["images"])
    return clock.rates(workers)


def against_pool(options: argparse.Namespace, folder: Path) -> None:
    """Throughput of the stage and of a bare pool, alternating."""
    manifest, cams = make_tables(folder, options, options.rows or 600)
    sides: dict[str, list[Rates]] = {"stage": [], "pool": []}
    with (
        connect("local", runtime(options), str(folder / "run")) as cluster,
        run_in(folder / "run", manifest, cluster) as context,
    ):
        for turn in range(options.repeats):
            sides["stage"].append(stage_side(context, cams, f"stage-{turn}")[0])
            sides["pool"].append(pool_side(context, cams, f"pool-{turn}", options.workers))
            for name, found in sides.items():
                show(name, found[-1])
    stage, pool = sides["stage"], sides["pool"]
    wall = median(stage, "images_per_second") / median(pool, "images_per_second")
    cpu = median(pool, "cpu_seconds") / median(stage, "cpu_seconds")
    print(f"stage / pool: {wall:.3f}x by the clock, {cpu:.3f}x by CPU time (goal 0.9x)")


def show(name: str, rates: Rates) -> None:
    """One line."""
    print(
        f"{name:6} {rates.images_per_second:6.2f} images/s, {rates.cpu_seconds * 1e3:6.1f} CPU ms"
        f" an image, first chunk after {rates.first_chunk:.1f} s",
        flush=True,
    )


def median(found: Sequence[Rates], field: str) -> float:
    """Of one of their numbers."""
    return statistics.median(getattr(rates, field) for rates in found)


def against_script(options: argparse.Namespace, folder: Path) -> None:
    """The stage, the script, and the CRF engines alone, on the same images."""
    rows = options.rows or 600
    manifest, cams = make_tables(folder, options, rows)
    (folder / "script").mkdir()
    with (
        connect("local", runtime(options), str(folder / "run")) as cluster,
        run_in(folder / "run", manifest, cluster) as context,
    ):
        stage, done = stage_side(context, cams, "stage")
    show("stage", stage)
    stems = sorted({image_id[:-4] for image_id in index_file(manifest).image_ids})
    jobs = [(stem, options.voc, options.cams, str(folder / "script")) for stem in stems]
    clock = Clock(str(folder / "run"))
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(options.workers, start_script) as pool:
        for _ in pool.imap_unordered(script_mask, jobs):
            clock.chunk(1)
    script = clock.rates(options.workers)
    show("script", script)
    differing, pixels = differences(done.uri, folder / "script")
    engine = engine_ratio(options, stems)
    wall = stage.images_per_second / script.images_per_second
    cpu = script.cpu_seconds / stage.cpu_seconds
    print(f"stage / script: {wall:.2f}x by the clock, {cpu:.2f}x by CPU time;", end=" ")
    print(f"{differing} of {pixels} px differ; the engines alone: {engine:.2f}x")
    print(f"pipeline / engine: {wall / engine:.3f} by the clock, {cpu / engine:.3f} by CPU time")


def differences(stage: str, script: Path) -> tuple[int, int]:
    """(pixels where stage and script differ, pixels)."""
    differing = pixels = 0
    for part in read_index(stage).parts:
        for row in tables.read_table(part).to_pylist():
            ours = np.array(Image.open(io.BytesIO(row["mask_png"])))
            theirs = np.array(Image.open(script / f"{row['image_id'][:-4]}.png"))
            differing += int((ours != theirs).sum())
            pixels += ours.size
    return differing, pixels


def engine_ratio(options: argparse.Namespace, stems: Sequence[str]) -> float:
    """pydensecrf with an object per class over our engine: CPU seconds of all images."""
    ours = theirs = 0.0
    parameters = CrfParameters.ppmg()
    warm_up()
    for stem in stems:
        bgr = cv2.imread(str(Path(options.voc) / "JPEGImages" / f"{stem}.jpg"))
        image = np.ascontiguousarray(bgr[..., ::-1])
        cam = np.load(Path(options.cams) / f"{stem}.npz")["cam"]
        u = smooth(upsample_cam(cam, *image.shape[:2]))
        b = (1 - u) ** 11
        start = time.thread_time()
        DenseCrf(image, parameters).binary(u, b)
        ours += time.thread_time() - start
        start = time.thread_time()
        for k in range(len(u)):
            DenseCrf(image, parameters, "pydensecrf").binary(u[k : k + 1], b[k : k + 1])
        theirs += time.thread_time() - start
    return theirs / ours


def measure_memory(options: argparse.Namespace, folder: Path) -> None:
    """Child process: run the stage, print the peaks of the driver and of its workers."""
    import psutil

    with (
        connect("local", runtime(options), str(folder / "run")) as cluster,
        run_in(folder / "run", str(folder / "manifest.parquet"), cluster) as context,
    ):
        rates, _ = stage_side(context, str(folder / "cams.parquet"), "stage")
        tasks = [p for p in psutil.process_iter(["name"]) if p.info["name"].startswith("ray::")]
        ours = psutil.Process().children(recursive=True)
        workers = [peak_bytes(p.pid) for p in tasks if p in ours]
    print(json.dumps({"driver": peak_bytes(), "worker": max(workers), "rate": rates[0]}))


def memory(options: argparse.Namespace, folder: Path) -> None:
    """Peaks at 500 rows and at ten times as many, each in a driver of its own."""
    peaks = []
    for rows in (500, 5000):
        place = folder / str(rows)
        place.mkdir()
        make_tables(place, options, rows, scale=options.scale)
        peaks.append(json.loads(child("measure-memory", place, options)))
        found = ", ".join(f"{k} {v / 1e6:.0f} MB" for k, v in peaks[-1].items() if k != "rate")
        print(f"{rows} rows: {found}; {peaks[-1]['rate']:.1f} images/s")
    for who in ("driver", "worker"):
        print(f"{who}: {peaks[1][who] / peaks[0][who]:.3f}x (goal 1.1x)")


def child(action: str, folder: Path, options: argparse.Namespace) -> str:
    """Run an action of this script in a process of its own; its last line."""
    command = [sys.executable, __file__, action, "--folder", str(folder)]
    command += ["--workers", str(options.workers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip().splitlines()[-1]


def sweep(options: argparse.Namespace, folder: Path) -> None:
    """CPU seconds of an image with 12 combinations of parameters, and with one."""
    manifest, cams = make_tables(folder, options, options.rows or 40)
    one_thread()
    grid = {"alpha": (3.0, 5.0, 8.0, 11.0, 16.0, 24.0), "smoothing": (0.0, 0.3)}
    points = sweep_masks.grid(grid)
    opened = open_manifest(manifest)
    photographs = Photographs(opened.root, opened.apply_exif, 10**9, opened.label_space)
    truth = Path(options.voc) / "SegmentationClassAug"
    rows = [
        {"manifest": m | {"ground_truth_uri": str(truth / f"{m['image_id'][:-4]}.png")}, "cams": c}
        for m, c in zip(
            tables.read_table(manifest).to_pylist(),
            tables.read_table(cams).to_pylist(),
            strict=True,
        )
    ]
    spent = {}
    for count in (1, len(points), 1, len(points)):
        configs = [sweep_masks.combined(MasksConfig(), point) for point in points[:count]]
        worker = sweep_masks.sweep_worker(
            proportional_masks, list(map(mask_parameters, configs)), "lattice", photographs, "sweep"
        )
        list(worker(rows[:2]))
        start = time.thread_time()
        bad = [row for row in worker(rows) if not isinstance(row, dict)]
        spent[count] = (time.thread_time() - start) / len(rows)
        assert not bad, bad[0]
        print(f"{count:2} combinations: {spent[count] * 1e3:6.1f} CPU ms an image")
    print(f"{spent[len(points)] / spent[1]:.2f}x the time of one (goal 4x)")


def latency(options: argparse.Namespace, folder: Path) -> None:
    """Seconds of a mask where reading a photograph takes time, with and without reading ahead."""
    manifest, cams = make_tables(folder, options, options.rows or 40)
    one_thread()
    opened = open_manifest(manifest)
    photographs = Photographs(opened.root, opened.apply_exif, 10**9, opened.label_space)
    parameters = mask_parameters(MasksConfig())
    worker = make_masks.mask_worker(proportional_masks, parameters, "lattice", photographs, "x")
    rows = [
        {"manifest": m, "cams": c}
        for m, c in zip(
            tables.read_table(manifest).to_pylist(),
            tables.read_table(cams).to_pylist(),
            strict=True,
        )
    ]
    list(worker(rows))
    read = storage.read_bytes
    for milliseconds in (0, 20, 50, 100):

        def slow(uri: str, limit: int | None = None, pause: float = milliseconds / 1e3) -> bytes:
            time.sleep(pause)
            return read(uri, limit)

        storage.read_bytes = slow
        spent = []
        for chunks in ([rows], [[row] for row in rows]):  # a chunk of one row: nothing is ahead
            started = time.monotonic()
            for chunk in chunks:
                list(worker(chunk))
            spent.append((time.monotonic() - started) / len(rows) * 1e3)
        print(f"read {milliseconds:3} ms: {spent[0]:.1f} ms a mask, {spent[1]:.1f} not ahead")
    storage.read_bytes = read


ACTIONS: dict[str, Callable[[argparse.Namespace, Path], None]] = {
    "pool": against_pool,
    "script": against_script,
    "memory": memory,
    "resume": resume,
    "sweep": sweep,
    "latency": latency,
    "measure-memory": measure_memory,
}


def main() -> None:
    """Parse the options and run one comparison."""
    data = shared()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=ACTIONS, metavar="|".join(ACTIONS))
    parser.add_argument("--voc", default=str(data / "voc12-mini/VOCdevkit/VOC2012"))
    parser.add_argument("--cams", default=str(data / "oracle/cams"))
    parser.add_argument("--rows", type=int, help="images; default: as the comparison needs")
    parser.add_argument("--photographs", type=int, help="how many to take; default: all")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=2, help="turns of each side of `pool`")
    parser.add_argument("--scale", type=float, default=0.5, help="of the photographs of `memory`")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder is not None:
        ACTIONS[options.action](options, options.folder)
        return
    with tempfile.TemporaryDirectory(prefix="pmm-masks-") as place:
        ACTIONS[options.action](options, Path(place))


if __name__ == "__main__":
    main()
