"""The relabel stage beside a bare inference loop, and what its actors send to its tasks.

    python benchmarks/predict_throughput.py loop
    python benchmarks/predict_throughput.py traffic --model RUN/train_segmenter-r0-HASH/model.pt

`loop`: the stage (actors with the network, then tasks with the CRF) against a multiprocessing.Pool
whose processes each do all of it for an image, float32 and every class, with the same number of
workers, in turn. Rates are steady: they begin when every worker has finished a chunk. Without
`--model` the network is the demo's, its head untrained.

`traffic`: for each image the classes that are sent, the bytes, and the pixels whose class is
another than with all classes in float32.

Photographs: the training split of `--manifest`, or shapes of `--size` px drawn for the purpose.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from masks_data import run_in, runtime

from latticecrf import DenseCrf
from pmm_ray.config import PredictConfig, load_recipe
from pmm_ray.labels import LabelSpace
from pmm_ray.nets.checkpoints import save_model
from pmm_ray.nets.segmenter import build_segmenter
from pmm_ray.runtime.cluster.connect import connect, inference_process
from pmm_ray.runtime.core import tables
from pmm_ray.runtime.core.events import read_events
from pmm_ray.runtime.core.index import index_file, read_all
from pmm_ray.runtime.core.manifest import open_manifest
from pmm_ray.runtime.core.stage import RunContext, StageFolder
from pmm_ray.runtime.mapping.chunks import make_chunks
from pmm_ray.runtime.mapping.tasks import Output, run_chunk
from pmm_ray.runtime.mapping.workers import InputRow, Worker, row_by_row
from pmm_ray.runtime.rows.images import decode_mask
from pmm_ray.runtime.rows.masks import MaskOutput, crf_parameters
from pmm_ray.runtime.rows.photographs import Photographs
from pmm_ray.runtime.rows.scores import pack_scores, refine_row
from pmm_ray.sources.datasets.shapes import make_shapes
from pmm_ray.stages import predict_masks
from pmm_ray.stages.predict_masks import Scorer

RECIPE = Path(__file__).resolve().parent.parent / "recipes" / "shapes.yaml"


def plain_mask(
    image_HW3: np.ndarray[Any, Any], classes: Any, scores: Any, config: PredictConfig
) -> Any:
    """What one process does that sends nothing: all classes, float32."""
    crf = DenseCrf(image_HW3, crf_parameters(config.crf), config.backend)
    return classes[crf.joint(scores).argmax(0)]


def plain_worker(
    checkpoint: str, config: PredictConfig, photographs: Photographs, space: LabelSpace
) -> Worker:
    """Makes the worker of one pool process."""
    scorer = Scorer(checkpoint, config, photographs, use_gpu=False)
    output = MaskOutput(space, round_number=0)

    def make(row: InputRow) -> dict[str, Any]:
        image, classes, scores = scorer(row["manifest"])
        return output(row["manifest"], plain_mask(image, classes, scores, config))

    return row_by_row("loop", make)


def start_worker(factory: Callable[[], Worker], output: Output) -> None:
    """A pool process gets ready as an actor does."""
    global WORKER, OUTPUT
    inference_process()
    torch.set_num_threads(1)
    WORKER, OUTPUT = factory(), output


def pool_chunk(chunk: str) -> dict[str, Any]:
    return run_chunk(chunk, WORKER, OUTPUT)


class Plain:
    """`plain_worker` without arguments; small and picklable."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __call__(self) -> Worker:
        return plain_worker(*self.arguments)


def steady(times: Sequence[float], images: Sequence[int], workers: int) -> float:
    """Images/s from the moment when every worker had finished a chunk to the end."""
    return sum(images[workers:]) / (times[-1] - times[workers - 1])


def stage_side(
    context: RunContext, config: PredictConfig, checkpoint: str, name: str
) -> tuple[float, StageFolder]:
    """(images/s, folder) of the stage."""
    folder = StageFolder.below(context.run_dir, name, "00000000")
    predict_masks.run(
        config,
        context,
        folder,
        images=index_file(context.manifest.uri),
        checkpoint_uri=checkpoint,
        round_number=0,
    )
    chunks = [e for e in read_events(context.run_dir, "chunk") if e["stage"] == name]
    times, images = [e["time"] for e in chunks], [e["images"] for e in chunks]
    return steady(times, images, int(context.cluster.cpus)), folder


def pool_side(
    context: RunContext, config: PredictConfig, checkpoint: str, name: str, workers: int
) -> tuple[float, StageFolder]:
    """(images/s, folder) of the bare loop."""
    folder = StageFolder.below(context.run_dir, name, "00000000")
    index = index_file(context.manifest.uri)
    chunks = make_chunks(index.image_ids, {"manifest": index}, config.batch_size)
    output = Output(folder.uri, tables.MASKS, name, context.run_dir, context.attempt)
    photographs = Photographs.of(context)
    factory = Plain(checkpoint, config, photographs, context.manifest.label_space)
    times, images = [], []
    spawn = multiprocessing.get_context("spawn")
    with spawn.Pool(workers, start_worker, (factory, output)) as pool:
        for counts in pool.imap_unordered(pool_chunk, chunks):
            if counts["failure"]:
                sys.exit(counts["failure"])
            times.append(time.time())
            images.append(counts["images"])
    return steady(times, images, workers), folder


def against_loop(options: argparse.Namespace, folder: Path) -> None:
    """Throughput of the stage and of the loop, alternating, and where their masks differ."""
    manifest, config, checkpoint = prepare(options, folder)
    rates: dict[str, list[float]] = {"stage": [], "loop": []}
    with connect("local", runtime(options), str(folder / "run")) as cluster:
        for turn in range(options.repeats):
            with run_in(folder / "run", manifest, cluster) as context:
                rate, done = stage_side(context, config, checkpoint, f"stage-{turn}")
                bare, plain = pool_side(
                    context, config, checkpoint, f"loop-{turn}", options.workers
                )
            rates["stage"].append(rate)
            rates["loop"].append(bare)
            print(f"stage {rate:.2f} images/s, loop {bare:.2f} images/s", flush=True)
    a, b = (statistics.median(rates[side]) for side in ("stage", "loop"))
    print(f"median {a:.2f} and {b:.2f} images/s: {a / b:.3f}x (goal 0.9x)")
    print(f"{100 * differing(done, plain):.4f} % of the pixels differ")


def differing(stage: StageFolder, loop: StageFolder) -> float:
    """Share of pixels where the two sides' masks differ."""
    parts = [tables.read_table(str(p)) for p in sorted(Path(loop.uri).glob("part-*.parquet"))]
    plain = {r["image_id"]: r["mask_png"] for part in parts for r in part.to_pylist()}
    other = pixels = 0
    for row in read_all(stage.uri).to_pylist():
        ours, theirs = decode_mask(row["mask_png"]), decode_mask(plain[row["image_id"]])
        other += int((ours != theirs).sum())
        pixels += ours.size
    return other / pixels


def traffic(options: argparse.Namespace, folder: Path) -> None:
    """What is sent of each image, and what that changes."""
    uri, config, checkpoint = prepare(options, folder)
    manifest = open_manifest(uri)
    photographs = Photographs(manifest.root, manifest.apply_exif, 100_000_000, manifest.label_space)
    scorer = Scorer(checkpoint, config, photographs, use_gpu=False)
    kept, sent, whole, other, pixels = [], [], [], 0, 0
    for row in tables.read_table(uri).to_pylist()[: options.images]:
        image, classes, scores = scorer(row)
        packed = pack_scores(row["image_id"], image, classes, scores, config)
        mask = refine_row(packed, row["height"], row["width"], config)
        other += int((mask != plain_mask(image, classes, scores, config)).sum())
        pixels += mask.size
        kept.append(len(packed["labels"]))
        sent.append(len(packed["scores"]) + len(packed["pixels"]))
        whole.append(scores.nbytes)
    print(f"{len(kept)} images of {len(manifest.label_space.names)} classes")
    print(f"classes sent: median {statistics.median(kept):g}, {min(kept)} to {max(kept)}")
    print(f"bytes an image: {np.mean(sent) / 1e6:.2f} MB with the pixels", end=", ")
    print(f"{np.mean(whole) / 1e6:.2f} MB for all classes in float32 ", end="")
    print(f"({np.mean(sent) / np.mean(whole):.3f}x)")
    print(f"pixels of another class: {other} of {pixels} ({100 * other / pixels:.4f} %)")


def prepare(options: argparse.Namespace, folder: Path) -> tuple[str, PredictConfig, str]:
    """(manifest, section, checkpoint): what was given, or the demo's."""
    recipe = load_recipe(options.recipe or RECIPE, options.set or ())
    manifest = options.manifest
    if manifest is None:
        make_shapes(str(folder / "data"), images=options.images, size=options.size, seed=0)
        manifest = str(folder / "data" / "manifest.parquet")
    checkpoint = options.model
    if checkpoint is None:
        space = open_manifest(manifest).label_space
        torch.manual_seed(0)
        network = build_segmenter(recipe.segmenter, space.num_classes, space.ignore)
        checkpoint = str(folder / "model.pt")
        meta = {"config": recipe.segmenter.model_dump(mode="json"), "round": 0, "training": {}}
        meta |= {"num_classes": space.num_classes, "ignore_index": space.ignore}
        save_model(checkpoint, "segmenter", network, meta | {"label_space": space.to_json()})
    return manifest, recipe.predict, checkpoint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("what", choices=("loop", "traffic"))
    parser.add_argument("--recipe", type=Path, help="its segmenter and predict sections")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE")
    parser.add_argument("--model", help="a trained segmenter's model.pt")
    parser.add_argument("--manifest")
    parser.add_argument("--images", type=int, default=160)
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (against_loop if options.what == "loop" else traffic)(options, Path(folder))


if __name__ == "__main__":
    main()
