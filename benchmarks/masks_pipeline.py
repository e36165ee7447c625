"""The mask stage beside a bare process pool, beside the usual script, at 10x the rows, resumed.

    python benchmarks/masks_pipeline.py pool      # throughput, against multiprocessing.Pool
    python benchmarks/masks_pipeline.py script    # against pydensecrf per class, one PNG each
    python benchmarks/masks_pipeline.py memory    # peak memory at 500 and 5,000 rows
    python benchmarks/masks_pipeline.py resume    # 82,081 rows: all done, half done
    python benchmarks/masks_pipeline.py sweep     # 12 combinations of parameters against one

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
from masks_data import make_tables, peak_bytes, run_in, runtime, shared, steady
from masks_script import script_mask, start_script
from PIL import Image

from pmm_ray.config import MasksConfig, RunConfig
from pmm_ray.labels import VOC12
from pmm_ray.method.cams import smooth, upsample_cam
from pmm_ray.method.crf import CrfParameters, DenseCrf
from pmm_ray.method.crf.warm import warm_up
from pmm_ray.runtime import tables
from pmm_ray.runtime.cluster import connect, one_thread
from pmm_ray.runtime.events import read_events
from pmm_ray.runtime.index import index_file, read_index
from pmm_ray.runtime.stage import RunContext, StageFolder
from pmm_ray.runtime.stream import Output, make_chunks, run_chunk
from pmm_ray.runtime.table_stage import auto_batch
from pmm_ray.sources.manifest import ManifestRow, open_manifest, write_manifest
from pmm_ray.stages import make_masks, sweep_masks
from pmm_ray.stages.make_masks import mask_factory
from pmm_ray.stages.photographs import Photographs

COCO_ROWS = 82_081


def stage_side(context: RunContext, cams: str, name: str) -> tuple[float, float, StageFolder]:
    """(images/s, seconds up to the first chunk, folder) of the stage."""
    folder = StageFolder.below(context.run_dir, name, "00000000")
    started = time.time()
    make_masks.run(
        MasksConfig(),
        context,
        folder,
        cams=index_file(cams),
        images=index_file(context.manifest.uri),
    )
    chunks = [e for e in read_events(context.run_dir, "chunk") if e["stage"] == name]
    times = [event["time"] for event in chunks]
    rate = steady(times, [event["images"] for event in chunks], int(context.cluster.cpus))
    return rate, times[0] - started, folder


def start_worker(factory: Callable[[], Any], output: Output) -> None:
    """A pool process gets ready: what a Ray task does at its first chunk."""
    global WORKER, OUTPUT
    one_thread()
    WORKER, OUTPUT = factory(), output


def pool_chunk(chunk: str) -> dict[str, Any]:
    """What a Ray task does with a chunk: read, map, commit."""
    return run_chunk(chunk, WORKER, OUTPUT)


def pool_side(context: RunContext, cams: str, name: str, workers: int) -> tuple[float, float]:
    """(images/s, seconds up to the first chunk) of the same work in a multiprocessing.Pool."""
    folder = StageFolder.below(context.run_dir, name, "00000000")
    index = index_file(cams)
    inputs = {"cams": index, "manifest": index_file(context.manifest.uri)}
    chunks = make_chunks(index.image_ids, inputs, auto_batch(len(index), workers, 0.06))
    output = Output(folder.uri, tables.MASKS, name, context.run_dir, context.attempt)
    factory = mask_factory(MasksConfig(), context, name, "proportional")
    started = time.time()
    spawn = multiprocessing.get_context("spawn")
    times, images = [], []
    with spawn.Pool(workers, start_worker, (factory, output)) as pool:
        for counts in pool.imap_unordered(pool_chunk, chunks):
            if counts["failure"]:
                sys.exit(counts["failure"])
            times.append(time.time())
            images.append(counts["images"])
    return steady(times, images, workers), times[0] - started


def against_pool(options: argparse.Namespace, folder: Path) -> None:
    """Throughput of the stage and of a bare pool, alternating."""
    manifest, cams = make_tables(folder, options, options.rows or 600)
    rates: dict[str, list[float]] = {"stage": [], "pool": []}
    with connect("local", runtime(options), str(folder / "run")) as cluster:
        for turn in range(options.repeats):
            with run_in(folder / "run", manifest, cluster) as context:
                rate, start, done = stage_side(context, cams, f"stage-{turn}")
                rates["stage"].append(rate)
                bare, bare_start = pool_side(context, cams, f"pool-{turn}", options.workers)
                rates["pool"].append(bare)
            print(f"stage {rate:6.2f} images/s (first chunk after {start:4.1f} s)", end="   ")
            print(f"pool {bare:6.2f} images/s (first chunk after {bare_start:4.1f} s)")
    summary = done.summary()
    a, b = (statistics.median(rates[side]) for side in ("stage", "pool"))
    print(f"median {a:.2f} and {b:.2f} images/s: {a / b:.3f}x (goal 0.9x); {summary}")


def against_script(options: argparse.Namespace, folder: Path) -> None:
    """The stage, the script, and the CRF engines alone, on the same images."""
    rows = options.rows or 150
    manifest, cams = make_tables(folder, options, rows)
    with (
        connect("local", runtime(options), str(folder / "run")) as cluster,
        run_in(folder / "run", manifest, cluster) as context,
    ):
        stage_rate, _, done = stage_side(context, cams, "stage")
        stems = [image_id[:-4] for image_id in index_file(manifest).image_ids]
        jobs = [(stem, options.voc, options.cams, str(folder / "script")) for stem in stems]
        (folder / "script").mkdir()
        spawn = multiprocessing.get_context("spawn")
        times = []
        with spawn.Pool(options.workers, start_script) as pool:
            for _ in pool.imap_unordered(script_mask, jobs):
                times.append(time.time())
    script_rate = steady(times, [1] * len(times), options.workers)
    differing, pixels = differences(done.uri, folder / "script")
    engine = engine_ratio(options, stems)
    ratio = stage_rate / script_rate
    print(f"{rows} images, {options.workers} workers: stage {stage_rate:.2f} images/s,", end=" ")
    print(f"script {script_rate:.2f} images/s: {ratio:.2f}x; {differing} of {pixels} px differ")
    print(f"engine alone {engine:.2f}x; pipeline / engine {ratio / engine:.3f} (goal 0.9)")


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
        rate, _, _ = stage_side(context, str(folder / "cams.parquet"), "stage")
        tasks = [p for p in psutil.process_iter(["name"]) if p.info["name"].startswith("ray::")]
        ours = psutil.Process().children(recursive=True)
        workers = [peak_bytes(p.pid) for p in tasks if p in ours]
    print(json.dumps({"rate": rate, "driver": peak_bytes(), "worker": max(workers)}))


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


def resume(options: argparse.Namespace, folder: Path) -> None:
    """A table of COCO's size, whole and half: seconds until the stage ends or goes on."""
    rows = options.rows or COCO_ROWS
    mask = make_masks.mask_row({"image_id": "x"}, blobs(), VOC12, 0)
    images = [
        ManifestRow(f"image-{i:06d}", f"{i:06d}.jpg", (1, 2), 480, 640, "train")
        for i in range(rows)
    ]
    manifest = str(folder / "manifest.parquet")
    write_manifest(manifest, images, VOC12, source="benchmark", exif="ignore")
    ids = [image.image_id for image in images]
    output = StageFolder.below(str(folder / "run"), "stage", "00000000")
    names = []
    for first in range(0, rows, 32):
        chunk = ids[first : first + 32]
        names.append(output.path(f"part-{tables.chunk_name(chunk)}.parquet"))
        tables.write_rows(names[-1], [mask | {"image_id": i} for i in chunk], tables.MASKS)
    done = json.loads(child("measure-resume", folder, options))
    print(
        f"{rows} rows in {len(names)} parts, all done: {done['seconds']:.1f} s in the stage,",
        end=" ",
    )
    print(f"{done['process']:.1f} s in all (goal 15 s)")
    Path(output.path("summary.json")).unlink()
    Path(output.path("index.parquet")).unlink()
    for name in names[::2]:
        Path(name).unlink()
    half = json.loads(child("measure-half", folder, options))
    print(f"half done: {half['seconds']:.2f} s until the other half is sent to the workers")


def blobs() -> Any:
    """A mask with two objects, 480 x 640."""
    mask = np.zeros((480, 640), np.uint8)
    cv2.ellipse(mask, (200, 240), (120, 180), 20, 0, 360, 1, -1)
    cv2.ellipse(mask, (430, 300), (90, 130), -30, 0, 360, 2, -1)
    return mask


def measure_resume(folder: Path) -> None:
    """Child process: the stage on a finished table that has no summary yet."""
    from pmm_ray.runtime.table_stage import run_table_stage  # what a command imports as well

    with (
        connect("local", RunConfig().runtime, str(folder / "run")) as cluster,
        run_in(folder / "run", str(folder / "manifest.parquet"), cluster) as context,
    ):
        started = time.monotonic()
        images = index_file(context.manifest.uri)
        stage = StageFolder.below(context.run_dir, "stage", "00000000")
        summary = run_table_stage(
            context,
            stage,
            inputs={"manifest": images},
            primary="manifest",
            factory=make_masks.mask_factory(MasksConfig(), context, "stage", "proportional"),
            schema=tables.MASKS,
            pool=make_masks.mask_pool(MasksConfig(), context),
            batch_size=32,
        )
        stage.finish(summary)
        seconds = time.monotonic() - started
    import psutil

    print(json.dumps({"seconds": seconds, "process": time.time() - psutil.Process().create_time()}))


def measure_half(folder: Path) -> None:
    """Child process: what a resumed stage does before it sends anything."""
    from pmm_ray.runtime.index import scan_parts

    started = time.monotonic()
    images = index_file(str(folder / "manifest.parquet"))
    finished = set(scan_parts(str(folder / "run" / "stage-00000000"))[0].image_ids)
    todo = [image_id for image_id in images.image_ids if image_id not in finished]
    make_chunks(todo, {"manifest": images}, 32)
    print(json.dumps({"seconds": time.monotonic() - started}))


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
        combinations = [sweep_masks.combined(MasksConfig(), point) for point in points[:count]]
        worker = sweep_masks.sweep_worker(combinations, "lattice", photographs, "sweep")
        list(worker(rows[:2]))
        start = time.thread_time()
        bad = [row for row in worker(rows) if not isinstance(row, dict)]
        spent[count] = (time.thread_time() - start) / len(rows)
        assert not bad, bad[0]
        print(f"{count:2} combinations: {spent[count] * 1e3:6.1f} CPU ms an image")
    print(f"{spent[len(points)] / spent[1]:.2f}x the time of one (goal 4x)")


ACTIONS: dict[str, Callable[[argparse.Namespace, Path], None]] = {
    "pool": against_pool,
    "script": against_script,
    "memory": memory,
    "resume": resume,
    "sweep": sweep,
    "measure-memory": measure_memory,
    "measure-resume": lambda options, folder: measure_resume(folder),
    "measure-half": lambda options, folder: measure_half(folder),
}


def main() -> None:
    """Parse the options and run one comparison."""
    data = shared()
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("action", choices=ACTIONS, metavar="|".join(ACTIONS))
    parser.add_argument("--voc", default=str(data / "voc12-mini/VOCdevkit/VOC2012"))
    parser.add_argument("--cams", default=str(data / "oracle/cams"))
    parser.add_argument("--rows", type=int, help="images; default: as the comparison needs")
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
